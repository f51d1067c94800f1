/** The thin bar: layers or runs, run, run to compare with, statistic, scale, range of steps. */

import { choose, h } from "./dom.js";
import { legend } from "./legend.js";
import { cut, grouped } from "./text.js";

export class Toolbar {
  /** @param {{change: (part: Partial<import("./view_state.js").State>) => void}} on */
  constructor(on) {
    const pick = (/** @type {string} */ id) => h("select", { id: `bn-${id}` });
    this.run = pick("run");
    this.compare = pick("compare");
    this.statistic = pick("statistic");
    this.run.addEventListener("change", () => on.change({ run: this.run.value, focus: this.run.value, incident: "", box: "", channel: null }));
    this.compare.addEventListener("change", () => on.change({ compare: this.compare.value, focus: "" }));
    this.statistic.addEventListener("change", () => on.change({ statistic: this.statistic.value }));
    const go = (/** @type {string} */ label, /** @type {""|"runs"} */ view) => h("button", { type: "button", onclick: () => on.change({ view }) }, label);
    this.tabs = [go("Layers", ""), go("Runs", "runs")];
    this.nav = h("nav", { class: "buttons", "aria-label": "views" }, ...this.tabs);
    this.diff = h("input", { type: "checkbox", id: "bn-diff", onchange: () => on.change({ diff: this.diff.checked ? "1" : "" }) });
    this.diffField = h("label", { class: "field", for: "bn-diff" }, this.diff, "difference");
    this.legend = h("div", { class: "scale" });
    this.range = h("button", { class: "range", type: "button", title: "Show all steps", onclick: () => on.change({ from: null, to: null }) });
    const field = (/** @type {string} */ label, /** @type {HTMLSelectElement} */ select) => h("label", { class: "field", for: select.id }, h("span", {}, label), select);
    this.compareField = field("compare with", this.compare);
    this.runField = field("run", this.run);
    this.el = h("header", { class: "bar", hidden: true }, this.nav, this.runField, this.compareField, this.diffField, field("show", this.statistic), this.legend, this.range);
  }

  clear() {
    this.el.hidden = true;
  }

  /**
   * @param {import("./types.js").Index} index
   * @param {import("./view_state.js").State} state
   * @param {import("./types.js").Statistic} statistic
   * @param {import("./scale.js").Scale|null} scale  null: there is no map.
   * @param {import("./types.js").Range} view
   * @param {Set<string>} severities  Of the incidents of the runs that are shown.
   */
  set(index, state, statistic, scale, view, severities) {
    this.el.hidden = false;
    const runs = index.runs.map((r) => ({ value: r.name, label: cut(r.name, 48), title: r.name }));
    choose(this.run, runs, state.run);
    choose(this.compare, [{ value: "", label: "nothing" }, ...runs.filter((r) => r.value !== state.run)], state.compare);
    const list = state.view === "runs";
    this.nav.hidden = runs.length < 2;
    this.tabs.forEach((tab, i) => tab.setAttribute("aria-pressed", String(list === (i === 1))));
    this.tabs[1].textContent = `Runs (${runs.length})`;
    this.runField.hidden = list;
    this.compareField.hidden = runs.length < 2 || list;
    this.diffField.hidden = !state.compare || list;
    this.diff.checked = !!state.diff;
    choose(this.statistic, index.statistics.map((s) => ({ value: s.name, label: s.label, title: s.meaning })), state.statistic);
    this.legend.replaceChildren(scale ? legend(scale, statistic, false, severities) : "");
    this.steps(state, view);
  }

  /** @param {import("./view_state.js").State} state @param {import("./types.js").Range} view */
  steps(state, view) {
    this.range.hidden = state.from === null || state.view === "runs";
    this.range.textContent = `steps ${grouped(view.from)} to ${grouped(view.to)}  ✕`;
  }
}
