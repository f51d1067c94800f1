/** One run's layers × steps, with its alerts on it and on a time line under it. */

import { timeline, verdict } from "./alerts.js";
import { h, theme } from "./dom.js";
import { HeatMap } from "./heatmap.js";
import { layout } from "./layout.js";
import { count, grouped, measured, severity } from "./text.js";

/** @typedef {import("./types.js").Slice} Slice */

export class Overview {
  /**
   * @param {number} names  Most width for the names; 0: none.
   * @param {{select: (layer: string, step: number|null) => void, alert: (alert: import("./types.js").Alert) => void, zoom: (view: import("./types.js").Range|null) => void}} on
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
    this.el = h("div", { class: "overview" }, this.head, this.map.el, this.time);
  }

  /** Give the names the width they need, and both runs plots of one width. @param {string[]} rows @param {boolean} two */
  fit(rows, two) {
    const fitted = rows.join("\n");
    if (this.most && fitted !== this.fitted) {
      this.fitted = fitted;
      const context = /** @type {CanvasRenderingContext2D} */ (h("canvas").getContext("2d"));
      context.font = theme().small;
      const placed = layout(rows, 1000, { grouped: true, least: 11, most: 26 });
      const widths = [...placed.labels, ...placed.headings.map((one) => one.label)].map((text) => context.measureText(text).width);
      this.names = this.map.options.names = Math.ceil(Math.min(this.most, Math.max(64, ...widths) + 16));
    }
    this.el.style.flex = two && this.most ? `0 0 calc(50% - 7px + ${this.names / 2}px)` : "1";
  }

  /**
   * @param {object} shown
   * @param {import("./types.js").Run} shown.run
   * @param {string[]} shown.rows  Names of the layers; those the run has not stay empty.
   * @param {Slice|null} shown.slice
   * @param {import("./types.js").Statistic} shown.statistic
   * @param {import("./scale.js").Scale} shown.scale
   * @param {import("./types.js").Range} shown.view
   * @param {import("./types.js").Range} shown.full
   * @param {import("./view_state.js").State} shown.state
   * @param {boolean} shown.focused
   * @param {number} shown.room
   * @param {boolean} shown.titled
   */
  set({ run, rows, slice, statistic, scale, view, full, state, focused, room, titled }) {
    this.rows = rows;
    const names = run.layers.map((l) => l.name);
    const place = new Map(rows.map((name, i) => [name, i]));
    const own = new Map(names.map((name, i) => [name, i]));
    const aligned = slice && rows.length !== slice.rows || rows.some((name, i) => names[i] !== name) ? align(slice, rows, own) : slice;
    const marks = run.alerts.flatMap((a) =>
      (a.layer ? [a.layer] : []).filter((name) => place.has(name)).map((name) => ({ row: /** @type {number} */ (place.get(name)), from: a.first_step, to: a.state === "open" ? run.steps[1] : a.last_step, severity: a.severity })),
    );
    marks.sort((a, b) => severity(a.severity).rank - severity(b.severity).rank);
    /** @type {Map<string, import("./types.js").Alert[]>} */
    const alerts = new Map();
    for (const a of run.alerts) for (const name of a.layers) alerts.set(name, [...(alerts.get(name) ?? []), a]);
    this.head.replaceChildren(...(titled ? [h("div", { class: `run-title${focused ? " focused" : ""}`, title: run.name }, run.name)] : []), verdict(run));
    // Names stay legible as long as scrolling past them is bearable.
    this.map.options.least = rows.length <= 80 ? 11 : rows.length <= 200 ? 5 : 2;
    this.map.options.most = rows.length <= 12 ? 40 : 26;
    this.fit(rows, titled);
    this.map.set({
      rows, slice: aligned, view, full, scale, marks, selected: rows.indexOf(state.layer), step: state.step, room,
      describe: (row, column) => {
        const data = /** @type {Slice} */ (aligned);
        const first = column ? data.ends[column - 1] + 1 : data.before + 1;
        const last = data.ends[column];
        const value = data.values[row * data.columns + column];
        const said = (alerts.get(rows[row]) ?? []).filter((a) => a.first_step <= last && (a.state === "open" ? run.steps[1] : a.last_step) >= first);
        const thinned = data.frames > data.columns;
        return [
          rows[row],
          `${statistic.label} ${measured(value, statistic)}`,
          thinned ? `steps ${grouped(first)} to ${grouped(last)}: the value furthest from the usual` : `step ${grouped(last)}`,
          ...said.slice(0, 3).map((a) => `${severity(a.severity).glyph} ${a.code} ${a.rule} since ${grouped(a.first_step)}`),
          ...(said.length > 3 ? [`and ${count(said.length - 3, "more alert")}`] : []),
        ];
      },
    });
    this.time.replaceChildren(timeline(run.alerts, view, run.steps[1], this.names, focused ? state.alert : "", this.on.alert));
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
