/** The bar over the map: which layers, in which order, folded or not; the axis, the scale and the smoothing. */

import { choose, h } from "./dom.js";

const AXES = { step: "by step", epoch: "by epoch", time: "by time" };

export class MapBar {
  /** @param {{change: (part: Partial<import("./view_state.js").State>) => void}} on */
  constructor(on) {
    this.filter = h("input", { id: "bn-filter", type: "search", placeholder: "filter layers  /", title: "A part of a name, or a pattern such as *.layer3.*bn2. Press / to come here.", "aria-label": "filter layers", spellcheck: "false", autocomplete: "off" });
    this.filter.addEventListener("input", () => on.change({ filter: this.filter.value }));
    this.filter.addEventListener("keydown", (/** @type {KeyboardEvent} */ e) => {
      if (e.key !== "Escape") return;
      e.stopPropagation();
      if (this.filter.value) on.change({ filter: "" });
      else this.filter.blur();
    });
    const pick = (/** @type {string} */ id, /** @type {"sort"|"axis"|"scale"} */ word, /** @type {string} */ label) => h("select", { id: `bn-${id}`, "aria-label": label, title: label, onchange: (/** @type {any} */ e) => on.change({ [word]: e.target.value }) });
    this.order = pick("order", "sort", "order of the layers");
    this.axis = pick("axis", "axis", "horizontal axis");
    this.scale = pick("scale", "scale", "scale of colors and curves");
    this.reverse = h("button", { type: "button", id: "bn-reverse", title: "Turn the order around", "aria-label": "least first", onclick: () => on.change({ least: this.reverse.getAttribute("aria-pressed") === "true" ? "" : "1" }) });
    const button = (/** @type {string} */ text, /** @type {string} */ title, /** @type {string} */ fold) => h("button", { type: "button", title, onclick: () => on.change({ fold }) }, text);
    this.fit = button("fit", "Fold as many groups as it takes to show all layers without scrolling", "");
    this.none = button("unfold", "Unfold all groups  ]", "+");
    this.all = button("fold", "Fold all groups  [", "-");
    this.groups = h("div", { class: "buttons", role: "group", "aria-label": "groups of layers" }, this.fit, this.all, this.none);
    this.smooth = h("input", { type: "range", id: "bn-smooth", min: 0, max: 0.98, step: 0.02, "aria-label": "smoothing of curves", oninput: () => on.change({ smooth: Number(this.smooth.value) }) });
    this.shown = h("span", { class: "quiet shown", "aria-live": "polite" });
    this.el = h("div", { class: "map-bar", role: "toolbar", "aria-label": "the map" }, this.filter, this.shown, this.groups, h("div", { class: "field" }, this.order, this.reverse), this.axis, this.scale, h("label", { class: "field", for: this.smooth.id }, "smooth", this.smooth));
  }

  /**
   * @param {import("./types.js").Index} index
   * @param {import("./view_state.js").State} state
   * @param {import("./axis.js").Axis["name"][]} axes  Those that the run allows.
   * @param {import("./axis.js").Axis["name"]} axis
   * @param {{shown: number, all: number, grouped: boolean, curves: boolean}} about
   */
  set(index, state, axes, axis, { shown, all, grouped, curves }) {
    if (this.filter.value !== state.filter) this.filter.value = state.filter;
    this.shown.textContent = state.filter ? `${shown} of ${all}` : "";
    choose(this.order, [{ value: "", label: "execution order" }, ...index.statistics.map((s) => ({ value: s.name, label: `by ${s.label}`, title: `By ${s.label} at the cursor, or at the last step in sight` }))], state.sort);
    this.reverse.hidden = !state.sort;
    this.reverse.textContent = state.least ? "↑" : "↓";
    this.reverse.setAttribute("aria-pressed", String(!!state.least));
    this.groups.hidden = !grouped;
    for (const [button, on] of [[this.fit, state.fold === ""], [this.all, state.fold === "-"], [this.none, state.fold === "+"]]) button.setAttribute("aria-pressed", String(on));
    choose(this.axis, axes.map((name) => ({ value: name, label: AXES[name] })), axis);
    this.axis.hidden = axes.length < 2;
    choose(this.scale, [{ value: "", label: "auto scale" }, { value: "log", label: "log scale" }, { value: "linear", label: "linear scale" }], state.scale);
    this.smooth.value = String(state.smooth);
    this.smooth.parentElement.hidden = !curves;
  }
}
