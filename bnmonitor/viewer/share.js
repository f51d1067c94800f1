/** The menu that gives out what is shown, and the list of keys. */

import { h } from "./dom.js";
import { copy, csv, picture, png, save } from "./out.js";

/** @typedef {{root: HTMLElement, name: string, lines: () => (string|number|null)[][]}} Shown */

const KEYS = [
  ["?", "show these keys"],
  ["/", "filter layers or runs"],
  ["↑ ↓", "choose a layer or a channel, in a map"],
  ["← →", "choose a step; with Shift move along the steps"],
  ["+ −", "zoom into the steps and out"],
  ["0", "all steps"],
  ["[ ]", "fold and unfold the groups; Enter folds one"],
  ["Esc", "close what is open, then see all steps, then leave the layer"],
  ["Tab", "go to the next control; Enter or Space presses it"],
  ["Alt ← →", "back and forward through what was looked at"],
];

export class Share {
  /** @param {() => Shown|null} shown */
  constructor(shown) {
    this.said = h("span", { class: "unseen", role: "status" });
    const item = (/** @type {string} */ label, /** @type {(what: Shown) => Promise<string>} */ act) =>
      h("button", { type: "button", onclick: async () => {
        const what = shown();
        if (!what) return;
        const words = await act(what).catch((error) => `This did not work: ${error instanceof Error ? error.message : error}`);
        this.say(words);
      } }, label);
    const text = (/** @type {Shown} */ what) => new XMLSerializer().serializeToString(picture(what.root));
    this.items = h("div", { class: "menu-items" },
      item("PNG picture", async (what) => (save(`${what.name}.png`, await png(picture(what.root))), "PNG saved")),
      item("SVG picture", async (what) => (save(`${what.name}.svg`, new Blob([text(what)], { type: "image/svg+xml" })), "SVG saved")),
      item("CSV numbers", async (what) => (save(`${what.name}.csv`, new Blob([csv(what.lines())], { type: "text/csv" })), "CSV saved")),
      item("Copy link", async () => ((await copy(address())) ? "Link copied" : "The browser forbids to copy: take it from the address bar")));
    this.label = h("summary", {}, "Export");
    this.menu = h("details", { class: "menu", onfocusout: (/** @type {FocusEvent} */ e) => e.relatedTarget && !this.menu.contains(e.relatedTarget) && (this.menu.open = false) }, this.label, this.items);
    this.keys = h("dialog", { class: "keys", "aria-label": "keys" }, h("h2", {}, "Keys"), h("dl", { class: "facts" }, ...KEYS.flatMap(([key, what]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, what)])), h("form", { method: "dialog" }, h("button", {}, "Close")));
    this.el = h("div", { class: "share" }, this.said, this.menu, h("button", { type: "button", "aria-label": "keys", title: "Keys (?)", onclick: () => this.keys.showModal() }, "?"), this.keys);
  }

  /** @param {string} words */
  say(words) {
    this.menu.open = false;
    this.said.textContent = this.label.textContent = words;
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => (this.label.textContent = "Export"), 1800);
  }
}

/** The address that opens this view: that of TensorBoard, where this is a tab of it. */
function address() {
  try {
    return window.parent.location.href;
  } catch {
    return window.location.href;
  }
}
