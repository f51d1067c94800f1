/** A hyperparameter against health and loss: where does BatchNorm break? */

import { chooseName, drawing, h } from "./dom.js";
import { logTicks, ticks } from "./scale.js";
import { count, cut, number } from "./text.js";

/** @typedef {import("./types.js").Row} Row */

const HEIGHT = 150;
const LEFT = 44;
const BOTTOM = 22;
const MOST = 16;

/** The chosen setting and all that differ between runs. @param {Row[]} rows @param {string} wanted @returns {[string, string[]]} */
export function settingsOf(rows, wanted) {
  const names = [...new Set(rows.flatMap((r) => Object.keys(r.settings)))].filter((name) => new Set(rows.map((r) => r.settings[name]).filter((v) => v !== undefined && v !== null)).size > 1);
  const rate = names.find((n) => /^(lr|learning_rate)$/i.test(n)) ?? names.find((n) => /(^|[._])(lr|learning_rate)$/i.test(n)) ?? names.find((n) => n === "highest learning rate");
  return [names.includes(wanted) ? wanted : rate ?? names[0] ?? "", names];
}

export class Sweep {
  /** @param {{change: (part: Partial<import("./view_state.js").State>) => void, open: (run: string) => void}} on */
  constructor(on) {
    this.on = on;
    this.setting = h("select", { "aria-label": "hyperparameter", onchange: () => on.change({ against: this.setting.value }) });
    this.said = h("p");
    this.plots = h("div");
    this.el = h("section", { class: "sweep" }, h("div", { class: "row" }, h("h2", { class: "minor" }, "Sweep over"), this.setting), this.said, this.plots);
  }

  /** @param {Row[]} rows @param {import("./view_state.js").State} state @param {Set<string>} chosen */
  show(rows, state, chosen) {
    const [name, names] = settingsOf(rows, state.against);
    this.el.hidden = !name;
    if (!name) return;
    chooseName(this.setting, names, name);
    const runs = rows.filter((r) => r.settings[name] !== undefined && r.settings[name] !== null);
    const x = axis(runs.map((r) => r.settings[name]));
    this.said.textContent = sentence(runs, name);
    const width = this.el.clientWidth || 380;
    const health = plot("lowest health of any layer", name, runs, x, (r) => r.lowest, { low: 0, high: 100, log: false }, chosen, width);
    const losses = runs.map((r) => Number(r.loss ?? NaN)).filter(Number.isFinite);
    const log = losses.length > 0 && Math.min(...losses) > 0 && Math.max(...losses) > 20 * Math.min(...losses);
    const ends = losses.length ? { low: log ? Math.min(...losses) : Math.min(0, ...losses), high: Math.max(...losses), log } : null;
    this.plots.replaceChildren(health, ...(ends ? [plot(`last loss${log ? ", log" : ""}`, name, runs, x, (r) => (r.loss === null ? null : Number(r.loss)), ends, chosen, width)] : []));
    this.plots.querySelectorAll("circle").forEach((/** @type {SVGElement} */ dot) => dot.addEventListener("click", () => this.on.open(String(dot.getAttribute("data-run")))));
  }
}

/** Where it breaks, if there is such a place. @param {Row[]} runs @param {string} name */
function sentence(runs, name) {
  const ill = runs.filter((r) => r.first);
  const well = runs.filter((r) => !r.first);
  if (!ill.length) return `No incident in ${count(runs.length, "run")}, whatever the ${name}.`;
  if (!well.length) return `Each of ${count(runs.length, "run")} has an incident, whatever the ${name}.`;
  const of = (/** @type {Row[]} */ some) => some.map((r) => Number(r.settings[name]));
  const [sick, sound] = [of(ill), of(well)];
  if ([...sick, ...sound].every(Number.isFinite) && typeof runs[0].settings[name] === "number") {
    if (Math.min(...sick) > Math.max(...sound)) return `${name} up to ${number(Math.max(...sound))}: no incident in ${count(well.length, "run")}. From ${number(Math.min(...sick))} on: an incident in each of ${count(ill.length, "run")}.`;
    if (Math.max(...sick) < Math.min(...sound)) return `${name} from ${number(Math.min(...sound))} on: no incident in ${count(well.length, "run")}. Up to ${number(Math.max(...sick))}: an incident in each of ${count(ill.length, "run")}.`;
  }
  return `${ill.length} of ${count(runs.length, "run")} have an incident; the ${name} alone does not tell them apart.`;
}

/** @typedef {{place: (value: any) => number, ticks: {at: number, text: string}[]}} Axis */

/** Numbers on a line, on a log scale if they are far apart; everything else side by side. @param {any[]} values @returns {Axis} */
function axis(values) {
  if (values.every((v) => typeof v === "number" && Number.isFinite(v))) {
    let [low, high] = [Math.min(...values), Math.max(...values)];
    const log = low > 0 && high >= 20 * low;
    const f = log ? Math.log : (/** @type {number} */ v) => v;
    if (low === high) [low, high] = [low - 1, high + 1];
    const place = (/** @type {any} */ v) => 0.04 + (0.92 * (f(v) - f(low))) / (f(high) - f(low));
    return { place, ticks: (log ? logTicks(low, high) : ticks(low, high, 4)).map((t) => ({ at: place(t), text: number(t) })) };
  }
  const names = [...new Set(values.map(String))].sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
  const place = (/** @type {any} */ v) => (names.indexOf(String(v)) + 0.5) / names.length;
  return { place, ticks: names.length > MOST ? [] : names.map((n) => ({ at: place(n), text: cut(n, Math.max(3, Math.floor(52 / names.length))) })) };
}

/**
 * @param {string} label @param {string} name @param {Row[]} runs @param {Axis} x @param {(row: Row) => number|null} value
 * @param {{low: number, high: number, log: boolean}} ends @param {Set<string>} chosen @param {number} width
 */
function plot(label, name, runs, x, value, { low, high, log }, chosen, width) {
  const f = log ? Math.log : (/** @type {number} */ v) => v;
  if (high === low) [low, high] = log ? [low / 2, high * 2] : [low, high + 1];
  const px = (/** @type {number} */ at) => LEFT + at * (width - LEFT - 8);
  const py = (/** @type {number} */ v) => 8 + (HEIGHT - BOTTOM - 14) * (1 - (f(v) - f(low)) / (f(high) - f(low)));
  // What is not finite lies on the upper edge, and says so.
  const dots = runs.map((r) => ({ r, v: value(r) })).filter(({ v }) => v !== null && !Number.isNaN(v)).map(({ r, v }) => {
    const inside = Number.isFinite(v);
    const said = `${r.name}\n${name} ${r.settings[name]}\n${label} ${number(v)}\n${r.verdict}`;
    return drawing("circle", { cx: px(x.place(r.settings[name])).toFixed(1), cy: inside ? py(Number(v)).toFixed(1) : 4, r: chosen.has(r.name) ? 6 : 4, class: `dot ${r.severity || "healthy"}${chosen.has(r.name) ? " chosen" : ""}`, "data-run": r.name }, drawing("title", {}, said));
  });
  const text = (/** @type {number} */ at, /** @type {number} */ y, /** @type {string} */ anchor, /** @type {string} */ words) => drawing("text", { x: at, y, "text-anchor": anchor }, words);
  return h("figure", { class: "chart" }, h("figcaption", {}, label),
    drawing("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": `${label} against ${name}, ${count(dots.length, "run")}`, class: "plot" },
      ...(log ? logTicks(low, high) : ticks(low, high, 3)).flatMap((t) => [drawing("line", { x1: LEFT, x2: width, y1: py(t), y2: py(t) }), text(LEFT - 6, py(t) + 4, "end", number(t))]),
      ...x.ticks.map((t) => text(px(t.at), HEIGHT - 6, "middle", t.text)), ...dots));
}
