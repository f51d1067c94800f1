/** One statistic of one layer, of every chosen run, on one axis. */

import { STEPS } from "./axis.js";
import { Chart } from "./chart.js";
import { columnsAt } from "./difference.js";
import { chooseName, h } from "./dom.js";
import { ranked } from "./incidents.js";
import { rowOf } from "./layerview.js";
import { count, cut, grouped } from "./text.js";

/** @typedef {import("./types.js").Slice} Slice */

const COLORS = 8;
/** More curves than these cannot be told apart. */
const MOST = 24;
const COLUMNS = 800;

export class Overlay {
  /** @param {import("./types.js").Source} source @param {{change: (part: Partial<import("./view_state.js").State>) => void}} on */
  constructor(source, on) {
    this.source = source;
    this.layer = h("select", { "aria-label": "layer", onchange: () => on.change({ layer: this.layer.value }) });
    this.chart = new Chart({ label: "One layer of the chosen runs", height: 220, hover: (step) => this.chart.at(step) });
    this.note = h("p", { class: "quiet" });
    this.el = h("section", { class: "overlay" }, h("div", { class: "row" }, h("h2", { class: "minor" }, "Chosen runs"), h("label", { class: "field" }, "layer", this.layer)), this.chart.el, this.note);
  }

  /** @param {import("./types.js").Row[]} chosen @param {import("./view_state.js").State} state @param {import("./types.js").Statistic} statistic */
  async show(chosen, state, statistic) {
    const token = (this.token = {});
    this.el.hidden = !chosen.length;
    if (!chosen.length) return;
    const drawn = chosen.slice(0, MOST);
    const runs = await Promise.all(drawn.map((r) => this.source.run(r.name)));
    if (this.token !== token) return;
    const names = [...new Set(runs.flatMap((r) => r.layers.map((l) => l.name)))];
    const began = ranked(runs.flatMap((r) => r.incidents)).find((i) => i.layer)?.layer;
    const layer = names.includes(state.layer) ? state.layer : began ?? names[0] ?? "";
    chooseName(this.layer, names, layer);
    const slices = await Promise.all(runs.map((r) => (r.layers.some((l) => l.name === layer) ? this.source.layer(r.name, layer, null, COLUMNS) : null)));
    if (this.token !== token) return;
    const grid = gridOf(/** @type {Slice[]} */ (slices.filter(Boolean)));
    this.drawn = { layer, grid, lines: runs.map((r, i) => ({ run: r.name, missing: slices[i] ? `ended at ${grouped(r.steps[1])}` : undefined, values: resample(slices[i], statistic.name, grid) })) };
    const known = this.drawn.lines.filter((l) => l.values.some((v) => !Number.isNaN(v)));
    const log = statistic.scale === "log" && known.some((l) => l.values.some((v) => v > 0));
    this.chart.caption.replaceChildren(`${statistic.label}${statistic.unit ? `, ${statistic.unit}` : ""} of ${cut(layer, 40)}`);
    const absent = drawn.length - known.length;
    this.note.textContent = [
      chosen.length > MOST ? `The first ${MOST} of ${count(chosen.length, "chosen run")} are drawn.` : "",
      absent ? `${absent} of them ${absent > 1 ? "have" : "has"} no such layer, or did not record the statistic.` : "",
    ].join(" ");
    this.chart.set({
      axis: STEPS, steps: grid, step: null, log, unit: "", view: { from: Math.min(0, grid[0] ?? 0), to: Math.max(1, grid[grid.length - 1] ?? 1) },
      lines: this.drawn.lines.map((l, i) => ({ label: cut(l.run, 28), values: l.values, missing: l.missing, style: Math.floor(i / COLORS) % 2 ? "dashed" : "line", color: `run${i % COLORS}` })),
    });
  }
}

/** The steps of all runs together, thinned. @param {Slice[]} slices */
function gridOf(slices) {
  const all = [...new Set(slices.flatMap((s) => s.ends))].sort((a, b) => a - b);
  const every = Math.ceil(all.length / COLUMNS);
  return all.filter((_, i) => i % every === 0 || i === all.length - 1);
}

/** The value of the column that a step is in; NaN outside of the run. @param {Slice|null} slice @param {string} name @param {number[]} grid */
function resample(slice, name, grid) {
  if (!slice) return new Float32Array(grid.length).fill(NaN);
  const row = rowOf(slice, name);
  return Float32Array.from(columnsAt(slice, grid), (c) => (c < 0 ? NaN : row[c]));
}
