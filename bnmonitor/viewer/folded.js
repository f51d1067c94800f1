/** The numbers of the lines of a map: of a folded group, at each step, those of the layer that stands out most. */

import { middles } from "./heat.js";

/** @typedef {import("./types.js").Slice} Slice */
/** @typedef {import("./rows.js").Row} Row */

/** @type {WeakMap<Slice, {key: string, found: Folded}>} */
const known = new WeakMap();

/**
 * @typedef {object} Folded
 * @property {Slice} slice  A row for each line.
 * @property {Map<number, Int32Array>} which  Of each folded line the layer whose number each column shows.
 */

/**
 * How far a number stands out in its group: below for health, above for what has a limit, and otherwise from the
 * group's usual value; below it a number has to be much further away, or two layers would take turns.
 * @param {import("./types.js").Statistic} statistic @param {number} usual
 * @returns {(value: number) => number}
 */
function standsOut(statistic, usual) {
  if (statistic.scale === "health") return (v) => -v;
  if (statistic.scale === "signed") return Math.abs;
  if (Object.keys(statistic.limits).length) return (v) => v;
  if (statistic.scale === "log") return (v) => (v > 0 ? apart(Math.log(v / (usual || 1)), 1) : Infinity);
  return (v) => apart(v - usual, Math.abs(usual) / 4);
}

const apart = (/** @type {number} */ far, /** @type {number} */ margin) => (far >= 0 ? far : -far - margin);

/**
 * @param {Slice} slice
 * @param {Row[]} rows
 * @param {Int32Array} own  Of each layer of the map its row in the slice; -1: it has none, and its numbers are not known.
 * @param {import("./types.js").Statistic} statistic
 * @returns {Folded}
 */
export function fold(slice, rows, own, statistic) {
  const key = `${statistic.name}\n${own.join()}\n${rows.map((row) => (row.kind === "open" ? "" : row.members.join())).join(";")}`;
  const old = known.get(slice);
  if (old?.key === key) return old.found;
  const { columns, values } = slice;
  const out = new Float32Array(rows.length * columns).fill(NaN);
  /** @type {Folded["which"]} */
  const which = new Map();
  rows.forEach((row, at) => {
    if (row.kind === "open") return;
    const mine = row.members.filter((i) => own[i] >= 0 && own[i] < slice.rows);
    if (row.kind === "layer") {
      if (mine.length) out.set(values.subarray(own[mine[0]] * columns, (own[mine[0]] + 1) * columns), at * columns);
      return;
    }
    which.set(at, worst(slice, mine, own, statistic, out.subarray(at * columns, (at + 1) * columns)));
  });
  const found = { slice: { ...slice, rows: rows.length, values: out }, which };
  known.set(slice, { key, found });
  return found;
}

/** @param {Slice} slice @param {number[]} members @param {Int32Array} own @param {import("./types.js").Statistic} statistic @param {Float32Array} out */
function worst(slice, members, own, statistic, out) {
  const { columns, values } = slice;
  // Health has no usual value: less is worse.
  const all = statistic.scale === "health" ? null : middles(slice);
  const usual = all ? members.map((i) => all[own[i]]).sort((a, b) => a - b)[(members.length - 1) >> 1] ?? 0 : 0;
  const far = standsOut(statistic, usual);
  const which = new Int32Array(columns).fill(-1);
  const most = new Float64Array(columns).fill(-Infinity);
  for (const i of members) {
    const start = own[i] * columns;
    for (let c = 0; c < columns; c++) {
      const v = values[start + c];
      if (v !== v) continue; // not known
      const away = Number.isFinite(v) ? far(v) : Infinity;
      if (which[c] < 0 || away > most[c]) {
        which[c] = i;
        most[c] = away;
        out[c] = v;
      }
    }
  }
  return which;
}

/**
 * How far each layer stands out at a step, to order them by; NaN where it is not known.
 * @param {Slice} slice @param {Int32Array} own @param {import("./types.js").Statistic} statistic @param {number} step @param {boolean} least  Least first.
 */
export function ranks(slice, own, statistic, step, least) {
  let column = slice.ends.findIndex((end) => end >= step);
  if (column < 0) column = slice.columns - 1;
  return Float64Array.from(own, (row) => {
    if (row < 0 || row >= slice.rows || column < 0) return NaN;
    const v = slice.values[row * slice.columns + column];
    const away = statistic.scale === "health" ? -v : statistic.scale === "signed" ? Math.abs(v) : v;
    return least ? -away : away;
  });
}
