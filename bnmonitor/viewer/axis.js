/** The horizontal axis of maps and curves: steps, epochs, or the time since the run began. */

import { ticks } from "./scale.js";
import { grouped } from "./text.js";

/**
 * @typedef {object} Axis
 * @property {"step"|"epoch"|"time"} name
 * @property {(step: number) => number} of  The place of a step in units of the axis; rising.
 * @property {(place: number) => number} back  The step at a place.
 * @property {(from: number, to: number, wanted: number) => {step: number, text: string}[]} marks  Round places between two steps.
 * @property {(step: number) => string} say  A step in words.
 */

const stepWords = (/** @type {number} */ step) => `step ${grouped(step)}`;

/** @type {Axis} */
export const STEPS = {
  name: "step",
  of: (step) => step,
  back: (place) => place,
  marks: (from, to, wanted) => ticks(from, to, wanted).filter((t) => t === Math.round(t)).map((step) => ({ step, text: grouped(step) })),
  say: stepWords,
};

/** The unit in which a time reads well: seconds in it, and its sign. @type {[number, string][]} */
const UNITS = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

/** @param {number} seconds */
function duration(seconds) {
  const [size, sign] = UNITS.find(([unit]) => Math.abs(seconds) >= unit) ?? [1, "s"];
  return `${Number((seconds / size).toPrecision(3))} ${sign}`;
}

/** A row of a course. @param {import("./types.js").Slice|null} course @param {string} name */
export function rowOf(course, name) {
  const at = course?.statistics?.indexOf(name) ?? -1;
  return course && at >= 0 ? course.values.subarray(at * course.columns, (at + 1) * course.columns) : null;
}

/** @type {WeakMap<import("./types.js").Slice, {epoch: number, step: number}[]>} */
const known = new WeakMap();

/** The first step of each epoch that the course knows. @param {import("./types.js").Slice|null} course @returns {{epoch: number, step: number}[]} */
export function epochs(course) {
  const found = course ? known.get(course) ?? begins(course) : [];
  if (course) known.set(course, found);
  return found;
}

/** @param {import("./types.js").Slice} course */
function begins(course) {
  const row = rowOf(course, "epoch");
  /** @type {{epoch: number, step: number}[]} */
  const found = [];
  row?.forEach((v, i) => {
    if (Number.isFinite(v) && v > (found.at(-1)?.epoch ?? -1)) found.push({ epoch: v, step: i ? course.ends[i - 1] + 1 : course.before + 1 });
  });
  return found;
}

/** Which axes a course allows. @param {import("./types.js").Slice|null} course @returns {Axis["name"][]} */
export function offered(course) {
  /** @type {Axis["name"][]} */
  const names = ["step"];
  if (epochs(course).length > 1) names.push("epoch");
  if ((rowOf(course, "seconds")?.length ?? 0) > 1) names.push("time");
  return names;
}

/**
 * The axis of a name; that of steps where the course does not know enough for another.
 * @param {string} name @param {import("./types.js").Slice|null} course @returns {Axis}
 */
export function axisOf(name, course) {
  if (!course || !offered(course).includes(/** @type {Axis["name"]} */ (name)) || name === "step") return STEPS;
  return name === "epoch" ? byEpoch(course) : byTime(course);
}

/** @param {import("./types.js").Slice} course @returns {Axis} */
function byEpoch(course) {
  const known = epochs(course);
  const last = known[known.length - 1];
  const before = known[known.length - 2];
  // The last epoch may go on; it is taken to be as long as the one before it.
  const end = Math.max(course.ends[course.columns - 1] + 1, last.step + Math.round((last.step - before.step) / (last.epoch - before.epoch)));
  const { of, back } = piecewise([...known.map((k) => k.step), end], [...known.map((k) => k.epoch), last.epoch + 1]);
  return {
    name: "epoch", of, back,
    marks: (from, to, wanted) => {
      const found = ticks(of(from), of(to), wanted);
      const whole = found.filter((t) => t === Math.round(t));
      return (whole.length > 1 ? whole : found).map((t) => ({ step: back(t), text: String(Number(t.toPrecision(4))) }));
    },
    say: (step) => `epoch ${Math.floor(of(step) + 1e-9)} · ${stepWords(step)}`,
  };
}

/** @param {import("./types.js").Slice} course @returns {Axis} */
function byTime(course) {
  const row = /** @type {Float32Array} */ (rowOf(course, "seconds"));
  /** @type {number[]} */
  const steps = [];
  /** @type {number[]} */
  const times = [];
  row.forEach((v, i) => {
    if (Number.isFinite(v) && (!times.length || v > times[times.length - 1])) {
      steps.push(course.ends[i]);
      times.push(v);
    }
  });
  if (times.length < 2) return STEPS;
  const { of, back } = piecewise(steps, times);
  return {
    name: "time", of, back,
    marks: (from, to, wanted) => {
      const [a, b] = [of(from), of(to)];
      const [size, sign] = UNITS.find(([unit]) => b - a >= 2 * unit) ?? [1, "s"];
      return ticks(a / size, b / size, wanted).filter((t) => t >= 0).map((t) => ({ step: back(t * size), text: `${t} ${sign}` }));
    },
    say: (step) => `${duration(of(step))} · ${stepWords(step)}`,
  };
}

/** Straight lines between points, and on beyond the first and the last. @param {number[]} xs  Rising. @param {number[]} ys  Rising. */
function piecewise(xs, ys) {
  const between = (/** @type {number[]} */ a, /** @type {number[]} */ b) => (/** @type {number} */ v) => {
    let low = 0;
    let high = a.length - 2;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (a[middle] <= v) low = middle;
      else high = middle - 1;
    }
    return b[low] + ((v - a[low]) / (a[low + 1] - a[low])) * (b[low + 1] - b[low]);
  };
  return { of: between(xs, ys), back: between(ys, xs) };
}
