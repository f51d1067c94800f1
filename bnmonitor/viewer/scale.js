/** From numbers to colors and places: perceptually even scales, and the ticks beside them. */

import { ramp } from "./dom.js";

/** @param {string} hex */
const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

/** 256 colors between stops. @param {[number, string][]} stops  By place from 0 to 1. @returns {Uint32Array} */
function table(stops) {
  const out = new Uint32Array(256);
  const colors = stops.map(([, color]) => rgb(color));
  let k = 0;
  for (let i = 0; i < 256; i++) {
    const t = i / 255;
    while (k < stops.length - 1 && stops[k][0] < t) k++;
    const before = Math.max(0, k - 1);
    const [a, b] = [stops[before][0], stops[k][0]];
    const part = b > a ? Math.min(1, Math.max(0, (t - a) / (b - a))) : 1;
    const at = (/** @type {number} */ j) => Math.round(colors[before][j] + (colors[k][j] - colors[before][j]) * part);
    out[i] = (255 << 24) | (at(2) << 16) | (at(1) << 8) | at(0);
  }
  return out;
}

/** Colors at even distances. */
const even = (/** @type {string[]} */ colors) => /** @type {[number, string][]} */ (colors.map((c, i) => [i / (colors.length - 1), c]));

/**
 * @typedef {object} Scale
 * @property {Uint32Array} colors  256, as little-endian RGBA.
 * @property {(value: number) => number} place  0 to 1, beyond where it is off the scale; NaN for NaN.
 * @property {number[]} ticks
 * @property {[number, number]} ends
 * @property {boolean} log
 * @property {boolean} [lowest]  Whether less is worse, so that of several values the lowest is shown.
 */

/**
 * The scale of a statistic over an extent.
 * @param {import("./types.js").Statistic} statistic
 * @param {([number, number]|null|undefined)[]} extents  Of the runs that share it.
 * @param {string} [form]  `log` or `linear`; empty: that of the statistic.
 * @returns {Scale}
 */
export function scaleOf(statistic, extents, form = "") {
  const known = /** @type {[number, number][]} */ (extents.filter(Boolean));
  let low = known.length ? Math.min(...known.map((e) => e[0])) : 0;
  let high = known.length ? Math.max(...known.map((e) => e[1])) : 1;
  if (statistic.scale === "health") {
    // Red and amber are flat: an open incident gives its color to a layer, and nothing else comes near it.
    const { error, warning, near } = statistic.limits;
    const [red, amber, close, middle, healthy] = ramp("health");
    const stops = /** @type {[number, string][]} */ ([[0, red], [0.2, red], [0.2, amber], [0.4, amber], [0.4, close], [0.5, close], [0.75, middle], [1, healthy]]);
    const place = (/** @type {number} */ v) => (Number.isNaN(v) ? NaN : v <= error ? 0.1 : v <= warning ? 0.3 : v <= near ? 0.45 : 0.5 + (0.5 * (v - near)) / (100 - near));
    return { colors: table(stops), place, ticks: [], ends: [0, 100], log: false, lowest: true };
  }
  if (statistic.scale === "signed") {
    const most = Math.max(Math.abs(low), Math.abs(high)) || 1;
    return { colors: table(even(ramp("signed"))), place: (v) => 0.5 + v / (2 * most), ticks: [-most, 0, most].map(trim), ends: [-most, most], log: false };
  }
  const colors = table(even(ramp("cividis")));
  const log = form === "log" ? high > 0 : statistic.scale === "log" && form !== "linear";
  if (log && known.length) {
    // From a number that is not positive no log scale begins; it reaches over six powers of ten instead.
    if (!(low > 0)) low = high / 1e6;
    low = Math.max(low, 1e-30);
    high = Math.max(high, low * 1.001);
    if (high / low < 4) [low, high] = [low / 2, high * 2];
    const a = Math.log(low);
    const b = Math.log(high);
    return { colors, place: (v) => (v > 0 ? (Math.log(v) - a) / (b - a) : v === 0 ? -1 : NaN), ticks: logTicks(low, high), ends: [low, high], log: true };
  }
  if (statistic.scale === "share") [low, high] = [0, Math.max(high, 0.1)];
  else if (statistic.scale === "linear" || statistic.scale === "log") low = Math.min(0, low);
  if (!(high > low)) [low, high] = [low - Math.abs(low) / 2 - 1e-9, high + Math.abs(high) / 2 + 1e-9];
  return { colors, place: (v) => (v - low) / (high - low), ticks: ticks(low, high, 4), ends: [low, high], log: false };
}

const trim = (/** @type {number} */ v) => Number(v.toPrecision(2));

/** Round numbers in a range, about as many as wanted. @param {number} low @param {number} high @param {number} wanted */
export function ticks(low, high, wanted) {
  const raw = (high - low) / Math.max(1, wanted);
  if (!(raw > 0) || !Number.isFinite(raw)) return [low];
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * ([1, 2, 5, 10].find((m) => m * power >= raw) ?? 10);
  const out = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) out.push(Number((i * step).toPrecision(12)));
  return out;
}

/** Powers of ten in a range, thinned to five; between them if there are too few. @param {number} low @param {number} high */
export function logTicks(low, high) {
  const first = Math.ceil(Math.log10(low) - 1e-9);
  const last = Math.floor(Math.log10(high) + 1e-9);
  const every = Math.max(1, Math.ceil((last - first + 1) / 5));
  const out = [];
  for (let e = first; e <= last; e += every) out.push(Number(`1e${e}`));
  if (out.length > 1) return out;
  return [1, 2, 5].flatMap((m) => [first - 1, first, last].map((e) => m * 10 ** e)).filter((v, i, all) => v >= low && v <= high && all.indexOf(v) === i).sort((a, b) => a - b);
}

/** A color of a scale for CSS. @param {Scale} scale @param {number} place */
export function css(scale, place) {
  const c = scale.colors[Math.max(0, Math.min(255, Math.round(place * 255)))];
  return `rgb(${c & 255} ${(c >> 8) & 255} ${(c >> 16) & 255})`;
}
