/** One run's layers × steps, with its incidents on it and on a time line under it, and the loss above it. */

import { h, theme } from "./dom.js";
import { fold } from "./folded.js";
import { HeatMap } from "./heatmap.js";
import { spanOf, verdict } from "./incidents.js";
import { INDENT, nameOf } from "./marks.js";
import { LEGIBLE } from "./rows.js";
import { LABELS, Strip } from "./strip.js";
import { count, grouped, measured, nearLimit, severity } from "./text.js";
import { timeline } from "./timeline.js";

/** @typedef {import("./types.js").Slice} Slice */
/** @typedef {import("./types.js").Incident} Incident */
/** @typedef {import("./rows.js").Row} Row */

/**
 * @typedef {object} Seen
 * @property {import("./types.js").Run} run
 * @property {string[]} names  Of the layers of all runs that are shown.
 * @property {Row[]} rows
 * @property {Slice|null} slice
 * @property {Slice|null} course  Loss and learning rates.
 * @property {import("./types.js").Statistic} statistic
 * @property {import("./scale.js").Scale} scale
 * @property {import("./axis.js").Axis} axis
 * @property {import("./types.js").Range} view
 * @property {import("./types.js").Range} full
 * @property {import("./view_state.js").State} state
 * @property {boolean} focused
 * @property {number} room
 * @property {number} tall  Height that the loss takes beyond its usual one.
 * @property {boolean} titled
 * @property {string} [said]  Instead of the verdict.
 */

/** The most height of a row, of few. */
export const MOST = 48;

export class Overview {
  /**
   * @param {number} names  Most width for the names; 0: none.
   * @param {{select: (layer: string, step: number|null, unfold?: string) => void, group: (path: string, step: number|null) => void, toggle: (path: string, open: boolean) => void, incident: (incident: Incident) => void, zoom: (view: import("./types.js").Range|null) => void, point: (step: number|null) => void}} on
   */
  constructor(names, on) {
    this.most = this.names = names;
    this.on = on;
    this.map = new HeatMap({
      label: "layers by steps; arrow keys move, Enter folds and unfolds a group, plus and minus zoom", names, least: LEGIBLE, zoom: on.zoom,
      select: (row, step) => {
        const { id, kind } = this.rows[row] ?? {};
        if (kind === "layer") on.select(id, step);
        else on.group(kind ? id : "", step);
      },
      open: (row, step, column) => {
        const layer = this.seen?.names[this.which?.get(row)?.[column] ?? -1];
        if (layer) on.select(layer, step, this.rows[row].id);
      },
      toggle: (row) => on.toggle(this.rows[row].id, this.rows[row].kind === "folded"),
      hover: (step) => on.point(step),
    });
    /** @type {Row[]} */
    this.rows = [];
    /** @type {Row[]} */
    this.fitted = [];
    /** @type {string|undefined} */
    this.order = undefined;
    this.head = h("div", { class: "run-head" });
    this.time = h("div");
    this.strip = new Strip(this.map, { zoom: on.zoom, hover: on.point, step: (step) => on.group(this.seen?.state.group ?? "", step) });
    this.nothing = h("p", { class: "quiet nothing", hidden: true });
    this.el = h("div", { class: "overview" }, this.head, this.strip.el, this.map.el, this.nothing, this.time);
  }

  /** Give the names the width they need, and both runs plots of one width. @param {Row[]} rows @param {boolean} two @param {number} least */
  fit(rows, two, least) {
    if (this.most && (rows !== this.fitted || least !== this.least)) {
      this.fitted = rows;
      this.least = least;
      const context = /** @type {CanvasRenderingContext2D} */ (h("canvas").getContext("2d"));
      context.font = theme().small;
      const widths = rows.map((row) => context.measureText(nameOf(row)).width + row.depth * INDENT);
      this.names = this.map.options.names = Math.ceil(Math.min(this.most, Math.max(least, ...widths) + 16));
    }
    this.el.style.flex = two && this.most ? `0 0 calc(50% - 7px + ${this.names / 2}px)` : "1";
  }

  /** @param {Seen} seen */
  set(seen) {
    const { run, names, rows, slice, course, statistic, scale, axis, view, full, state, focused, room, titled, said } = seen;
    this.seen = seen;
    this.rows = rows;
    const at = new Map(run.layers.map((l, i) => [l.name, i]));
    const found = slice && fold(slice, rows, Int32Array.from(names, (name) => at.get(name) ?? -1), statistic);
    this.which = found?.which;
    this.head.replaceChildren(...(said ? [h("div", { class: "run-title focused", title: said }, said)] : titled ? [h("div", { class: `run-title${focused ? " focused" : ""}`, title: run.name }, run.name)] : []), said ? h("div", { class: "quiet" }, statistic.label) : titled ? verdict(run) : "");
    this.head.hidden = !said && !titled;
    this.head.classList.toggle("one-line", titled);
    this.map.options.most = rows.length <= 12 ? MOST : 26;
    this.fit(rows, titled, course?.rows ? LABELS : 64);
    this.nothing.hidden = rows.length > 0;
    this.nothing.textContent = `No layer is named like “${state.filter}”.`;
    this.map.el.hidden = this.time.hidden = !rows.length;
    const own = rows.findIndex((row) => (state.group ? row.kind !== "layer" && row.id === state.group : row.kind === "layer" && row.id === state.layer));
    const layer = names.indexOf(state.layer);
    this.map.set({
      rows, slice: found?.slice ?? null, statistic, view, full, axis, scale, marks: marks(run, names, rows), begins: run.incidents.map((i) => i.first_step),
      // A layer in a folded group is where its group is.
      selected: own < 0 && !state.group && layer >= 0 ? rows.findIndex((row) => row.kind === "folded" && row.members.includes(layer)) : own,
      step: state.step, room, describe: (row, column) => this.describe(row, column),
    });
    // In another order the first rows are what was asked for.
    const order = JSON.stringify([run.name, state.filter, state.sort, state.least]);
    if (this.order !== undefined && this.order !== order) this.map.scroll.scrollTop = 0;
    this.order = order;
    this.strip.set(rows.length ? course : null, seen);
    this.time.style.paddingRight = `${this.map.beside}px`;
    this.time.replaceChildren(timeline(run.incidents, view, run.steps[1], axis, this.names, this.map.width, focused ? state.incident : "", this.on.incident));
  }

  /** What a cell shows, in a few lines. @param {number} row @param {number} column */
  describe(row, column) {
    const { run, names, statistic, scale, axis } = /** @type {Seen} */ (this.seen);
    const data = /** @type {Slice} */ (this.map.shown?.slice);
    const { id, kind, members } = this.rows[row];
    const first = column ? data.ends[column - 1] + 1 : data.before + 1;
    const last = data.ends[column];
    const value = data.values[row * data.columns + column];
    const its = new Set(members.map((i) => names[i]));
    const said = run.incidents.filter((i) =>
      i.layers.some((name) => {
        if (!its.has(name)) return false;
        const { from, to } = spanOf(i, name, run.steps[1]);
        return from <= last && to >= first;
      }),
    );
    const where = names[this.which?.get(row)?.[column] ?? -1];
    const thinned = data.frames > data.columns;
    return [
      kind === "layer" ? id : `${id} · ${count(members.length, "layer")}`,
      ...(kind === "open" ? [] : [`${statistic.label} ${measured(value, statistic)}${nearLimit(value, statistic) ? " · near its limit" : ""}`]),
      ...(kind === "folded" && where ? [`in ${where}, which stands out most`] : []),
      thinned ? `steps ${grouped(first)} to ${grouped(last)}: ${scale.lowest ? "lowest" : "most extreme"} value in this bin` : axis.say(last),
      ...said.slice(0, 3).map((i) => `${severity(i.severity).glyph} ${i.title}, since step ${grouped(i.first_step)}`),
      ...(said.length > 3 ? [`and ${count(said.length - 3, "more incident")}`] : []),
    ];
  }
}

/** The incidents on the rows: one mark for each incident on a row. @param {import("./types.js").Run} run @param {string[]} names @param {Row[]} rows */
function marks(run, names, rows) {
  /** @type {Map<string, number>} */
  const place = new Map();
  rows.forEach((row, r) => {
    if (row.kind !== "open") for (const i of row.members) place.set(names[i], r);
  });
  const found = run.incidents.flatMap((i) => {
    /** @type {Map<number, import("./heatmap.js").Mark>} */
    const by = new Map();
    for (const name of i.layers) {
      const row = place.get(name);
      if (row === undefined) continue;
      const { from, to } = spanOf(i, name, run.steps[1]);
      const old = by.get(row);
      by.set(row, { row, from: Math.min(from, old?.from ?? from), to: Math.max(to, old?.to ?? to), severity: i.severity, first: !!old?.first || name === i.layer });
    }
    return [...by.values()];
  });
  return found.sort((a, b) => severity(a.severity).rank - severity(b.severity).rank || Number(a.first) - Number(b.first));
}
