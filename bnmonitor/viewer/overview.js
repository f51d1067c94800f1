/** One run's layers × steps, with its incidents on it and on a time line under it, and the loss above it. */

import { h, theme } from "./dom.js";
import { HeatMap } from "./heatmap.js";
import { spanOf, verdict } from "./incidents.js";
import { layout } from "./layout.js";
import { LABELS, Strip } from "./strip.js";
import { count, grouped, measured, nearLimit, severity } from "./text.js";
import { timeline } from "./timeline.js";

/** @typedef {import("./types.js").Slice} Slice */

export class Overview {
  /**
   * @param {number} names  Most width for the names; 0: none.
   * @param {{select: (layer: string, step: number|null) => void, incident: (incident: import("./types.js").Incident) => void, zoom: (view: import("./types.js").Range|null) => void}} on
   */
  constructor(names, on) {
    this.most = this.names = names;
    this.on = on;
    this.map = new HeatMap({
      label: "layers by steps; arrow keys move, plus and minus zoom", names, grouped: true, zoom: on.zoom,
      select: (row, step) => on.select(this.rows[row] ?? "", step),
    });
    /** @type {string[]} */
    this.rows = [];
    this.head = h("div", { class: "run-head" });
    this.time = h("div");
    this.strip = new Strip();
    this.el = h("div", { class: "overview" }, this.head, this.strip.el, this.map.el, this.time);
  }

  /** Give the names the width they need, and both runs plots of one width. @param {string[]} rows @param {boolean} two @param {number} least */
  fit(rows, two, least) {
    const fitted = [least, ...rows].join("\n");
    if (this.most && fitted !== this.fitted) {
      this.fitted = fitted;
      const context = /** @type {CanvasRenderingContext2D} */ (h("canvas").getContext("2d"));
      context.font = theme().small;
      const placed = layout(rows, 1000, { grouped: true, least: 11, most: 26 });
      const widths = [...placed.labels, ...placed.headings.map((one) => one.label)].map((text) => context.measureText(text).width);
      this.names = this.map.options.names = Math.ceil(Math.min(this.most, Math.max(least, ...widths) + 16));
    }
    this.el.style.flex = two && this.most ? `0 0 calc(50% - 7px + ${this.names / 2}px)` : "1";
  }

  /**
   * @param {object} shown
   * @param {import("./types.js").Run} shown.run
   * @param {string[]} shown.rows  Names of the layers; those the run has not stay empty.
   * @param {Slice|null} shown.slice
   * @param {Slice|null} shown.course  Loss and learning rates.
   * @param {import("./types.js").Statistic} shown.statistic
   * @param {import("./scale.js").Scale} shown.scale
   * @param {import("./types.js").Range} shown.view
   * @param {import("./types.js").Range} shown.full
   * @param {import("./view_state.js").State} shown.state
   * @param {boolean} shown.focused
   * @param {number} shown.room
   * @param {boolean} shown.titled
   */
  set({ run, rows, slice, course, statistic, scale, view, full, state, focused, room, titled }) {
    this.rows = rows;
    const names = run.layers.map((l) => l.name);
    const place = new Map(rows.map((name, i) => [name, i]));
    const own = new Map(names.map((name, i) => [name, i]));
    const aligned = slice && rows.length !== slice.rows || rows.some((name, i) => names[i] !== name) ? align(slice, rows, own) : slice;
    const marks = run.incidents.flatMap((i) =>
      i.layers.filter((name) => place.has(name)).map((name) => ({ row: /** @type {number} */ (place.get(name)), ...spanOf(i, name, run.steps[1]), severity: i.severity, first: name === i.layer })),
    );
    marks.sort((a, b) => severity(a.severity).rank - severity(b.severity).rank || Number(a.first) - Number(b.first));
    /** @type {Map<string, import("./types.js").Incident[]>} */
    const incidents = new Map();
    for (const i of run.incidents) for (const name of i.layers) incidents.set(name, [...(incidents.get(name) ?? []), i]);
    this.head.replaceChildren(...(titled ? [h("div", { class: `run-title${focused ? " focused" : ""}`, title: run.name }, run.name)] : []), verdict(run));
    this.head.classList.toggle("one-line", titled);
    // Names stay legible as long as scrolling past them is bearable.
    this.map.options.least = rows.length <= 80 ? 11 : rows.length <= 200 ? 5 : 2;
    this.map.options.most = rows.length <= 12 ? 40 : 26;
    this.fit(rows, titled, course?.rows ? LABELS : 64);
    this.map.set({
      rows, slice: aligned, view, full, scale, marks, selected: rows.indexOf(state.layer), step: state.step, room,
      describe: (row, column) => {
        const data = /** @type {Slice} */ (aligned);
        const first = column ? data.ends[column - 1] + 1 : data.before + 1;
        const last = data.ends[column];
        const value = data.values[row * data.columns + column];
        const said = (incidents.get(rows[row]) ?? []).filter((i) => {
          const { from, to } = spanOf(i, rows[row], run.steps[1]);
          return from <= last && to >= first;
        });
        const thinned = data.frames > data.columns;
        return [
          rows[row],
          `${statistic.label} ${measured(value, statistic)}${nearLimit(value, statistic) ? " · near its limit" : ""}`,
          thinned ? `steps ${grouped(first)} to ${grouped(last)}: ${scale.lowest ? "lowest" : "most extreme"} value in this bin` : `step ${grouped(last)}`,
          ...said.slice(0, 3).map((i) => `${severity(i.severity).glyph} ${i.title}, since step ${grouped(i.first_step)}`),
          ...(said.length > 3 ? [`and ${count(said.length - 3, "more incident")}`] : []),
        ];
      },
    });
    this.strip.set(course, view, this.names, this.map.width, state.step);
    this.time.replaceChildren(timeline(run.incidents, view, run.steps[1], this.names, focused ? state.incident : "", this.on.incident));
  }
}

/** Rows in another order; those that are not there are not known. @param {Slice|null} slice @param {string[]} rows @param {Map<string, number>} own */
function align(slice, rows, own) {
  if (!slice) return null;
  const values = new Float32Array(rows.length * slice.columns).fill(NaN);
  rows.forEach((name, i) => {
    const at = own.get(name);
    if (at !== undefined && at < slice.rows) values.set(slice.values.subarray(at * slice.columns, (at + 1) * slice.columns), i * slice.columns);
  });
  return { ...slice, rows: rows.length, values };
}
