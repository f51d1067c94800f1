/** From numbers to colours and places: perceptually even scales, and the ticks beside them. */

const CIVIDIS = ["#00204d", "#00306f", "#2a406c", "#48526b", "#5e626e", "#727374", "#878479", "#9e9677", "#b6a971", "#d0be67", "#ead357", "#ffea46"];
const SIGNED = {
  light: ["#762a83", "#9970ab", "#c2a5cf", "#e7d4e8", "#f4f4f2", "#d9f0d3", "#a6dba0", "#5aae61", "#1b7837"],
  dark: ["#d2a8e0", "#a577ba", "#74538a", "#44364e", "#262b30", "#2c4233", "#3f7349", "#5fae6c", "#9be0a2"],
};
// Health is quiet where it is good; amber begins where a warning caps it (60), red where an error does (20).
const HEALTH = {
  light: [[0, "#a3161c"], [20, "#c8322f"], [21, "#eda63a"], [60, "#f2b857"], [61, "#a9c6cf"], [85, "#cfdfe2"], [100, "#e4edee"]],
  dark: [[0, "#ff5c52"], [20, "#f0665c"], [21, "#b97f21"], [60, "#b9892f"], [61, "#3f6470"], [85, "#2b434c"], [100, "#223138"]],
};

/** @param {string} hex */
const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

/** 256 colours between stops. @param {[number, string][]} stops  By place from 0 to 1. @returns {Uint32Array} */
function table(stops) {
  const out = new Uint32Array(256);
  for (let i = 0; i < 256; i++) {
    const t = i / 255;
    let k = stops.findIndex(([at]) => at >= t);
    if (k < 0) k = stops.length - 1;
    const [b, high] = stops[k];
    const [a, low] = stops[Math.max(0, k - 1)];
    const part = b > a ? (t - a) / (b - a) : 1;
    const from = rgb(low);
    const to = rgb(high);
    const [red, green, blue] = from.map((v, j) => Math.round(v + (to[j] - v) * Math.min(1, Math.max(0, part))));
    out[i] = (255 << 24) | (blue << 16) | (green << 8) | red;
  }
  return out;
}

const even = (/** @type {string[]} */ colours) => /** @type {[number, string][]} */ (colours.map((c, i) => [i / (colours.length - 1), c]));

/**
 * @typedef {object} Scale
 * @property {Uint32Array} colours  256, as little-endian RGBA.
 * @property {(value: number) => number} place  0 to 1, beyond where it is off the scale; NaN for NaN.
 * @property {number[]} ticks
 * @property {[number, number]} ends
 * @property {boolean} log
 */

/**
 * The scale of a statistic over an extent.
 * @param {import("./types.js").Statistic} statistic
 * @param {([number, number]|null|undefined)[]} extents  Of the runs that share it.
 * @param {boolean} dark
 * @returns {Scale}
 */
export function scaleOf(statistic, extents, dark) {
  const mode = dark ? "dark" : "light";
  const known = /** @type {[number, number][]} */ (extents.filter(Boolean));
  let low = known.length ? Math.min(...known.map((e) => e[0])) : 0;
  let high = known.length ? Math.max(...known.map((e) => e[1])) : 1;
  const colours = table(even(CIVIDIS));
  if (statistic.scale === "health") {
    const stops = /** @type {[number, string][]} */ (HEALTH[mode].map(([at, c]) => [Number(at) / 100, c]));
    return { colours: table(stops), place: (v) => v / 100, ticks: [0, 20, 60, 100], ends: [0, 100], log: false };
  }
  if (statistic.scale === "signed") {
    const most = Math.max(Math.abs(low), Math.abs(high)) || 1;
    return { colours: table(even(SIGNED[mode])), place: (v) => 0.5 + v / (2 * most), ticks: [-most, 0, most].map(trim), ends: [-most, most], log: false };
  }
  if (statistic.scale === "log" && known.length) {
    low = Math.max(low, 1e-30);
    high = Math.max(high, low * 1.001);
    if (high / low < 4) [low, high] = [low / 2, high * 2];
    const a = Math.log(low);
    const b = Math.log(high);
    return { colours, place: (v) => (v > 0 ? (Math.log(v) - a) / (b - a) : v === 0 ? -1 : NaN), ticks: logTicks(low, high), ends: [low, high], log: true };
  }
  if (statistic.scale === "share") [low, high] = [0, Math.max(high, 0.1)];
  else if (statistic.scale === "linear") low = Math.min(0, low);
  if (!(high > low)) [low, high] = [low - Math.abs(low) / 2 - 1e-9, high + Math.abs(high) / 2 + 1e-9];
  return { colours, place: (v) => (v - low) / (high - low), ticks: ticks(low, high, 4), ends: [low, high], log: false };
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

/** A colour of a scale for CSS. @param {Scale} scale @param {number} place */
export function css(scale, place) {
  const c = scale.colours[Math.max(0, Math.min(255, Math.round(place * 255)))];
  return `rgb(${c & 255} ${(c >> 8) & 255} ${(c >> 16) & 255})`;
}
