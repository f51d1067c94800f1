/** Loss, learning rate and gradient norm above the map, on its axis: a lane each, with the epochs and the incidents. */

import { epochs, rowOf } from "./axis.js";
import { nearest, smooth, trace } from "./curve.js";
import { h, once, surface, theme, tint } from "./dom.js";
import { glyph } from "./marks.js";
import { grouped, number, shorten } from "./text.js";

/** @typedef {import("./types.js").Slice} Slice */
/** @typedef {import("./overview.js").Seen} Seen */

/** Width that the words beside it need. */
export const LABELS = 112;
const WIDE = 100;
const PAD = 4;
const LANE = 26;
const LOSS = 40;
/** Room for the signs of the incidents and the numbers of the epochs. */
const TOP = 15;

/** @typedef {{name: string, rows: Float32Array[], color: string, dash: number[], height: number}} Lane */

/** @param {Slice|null} course @param {number} tall  Height of the loss beyond its usual one. @returns {Lane[]} */
function lanesOf(course, tall = 0) {
  if (!course) return [];
  const rows = (/** @type {(name: string) => boolean} */ of) => (course.statistics ?? []).filter(of).map((name) => /** @type {Float32Array} */ (rowOf(course, name)));
  return [
    { name: "loss", rows: rows((name) => name === "loss"), color: "accent", dash: [], height: LOSS + tall },
    { name: "lr", rows: rows((name) => name.startsWith("lr ")), color: "second", dash: [5, 3], height: LANE },
    { name: "grad norm", rows: rows((name) => name === "gradient norm"), color: "text", dash: [2, 2], height: LANE },
  ].filter((lane) => lane.rows.length);
}

/** Height that a course takes. @param {Slice|null} course @param {number} [tall] */
export const heightOf = (course, tall) => {
  const lanes = lanesOf(course, tall);
  return lanes.length ? TOP + lanes.reduce((sum, lane) => sum + lane.height, 0) + 6 : 0;
};

export class Strip {
  /** @param {import("./heatmap.js").HeatMap} map  What it stands above. @param {{zoom: (view: import("./types.js").Range|null) => void, hover: (step: number|null) => void, step: (step: number) => void}} on */
  constructor(map, on) {
    this.map = map;
    this.canvas = h("canvas", { role: "img" });
    this.el = h("div", { class: "strip", hidden: true }, this.canvas);
    /** @type {number|null} */
    this.pointed = null;
    this.draw = once(() => this.paint());
    /** @type {{from: number, to: number}|null} */
    this.drag = null;
    const place = (/** @type {PointerEvent} */ e) => e.clientX - this.canvas.getBoundingClientRect().left - map.options.names;
    this.canvas.addEventListener("pointermove", (/** @type {PointerEvent} */ e) => {
      const x = place(e);
      if (this.drag) this.drag.to = Math.max(0, Math.min(map.width, x));
      on.hover(x >= 0 ? map.stepAt(x) : null);
      this.draw();
    });
    this.canvas.addEventListener("pointerleave", () => on.hover(null));
    this.canvas.addEventListener("dblclick", () => on.zoom(null));
    this.canvas.addEventListener("pointerdown", (/** @type {PointerEvent} */ e) => {
      const x = place(e);
      if (e.button || x < 0) return;
      this.drag = { from: x, to: x };
      this.canvas.setPointerCapture(e.pointerId);
    });
    this.canvas.addEventListener("pointerup", () => {
      const { drag } = this;
      this.drag = null;
      if (!drag) return;
      const [from, to] = [Math.min(drag.from, drag.to), Math.max(drag.from, drag.to)];
      if (to - from > 4) on.zoom({ from: map.stepAt(from), to: map.stepAt(to) });
      else on.step(Math.round(map.stepAt(drag.from)));
    });
  }

  /**
   * @param {Slice|null} course  A row for the loss and one for each learning rate, as far as they are known.
   * @param {Seen} seen
   */
  set(course, seen) {
    this.course = course;
    this.seen = seen;
    this.el.hidden = !lanesOf(course).length;
    this.paint();
  }

  /** Point at a step that is looked at elsewhere. @param {number|null} step */
  point(step) {
    if (step === this.pointed) return;
    this.pointed = step;
    this.draw();
  }

  paint() {
    const { course, seen, map } = this;
    const lanes = lanesOf(course ?? null, seen?.tall);
    if (!course || !seen || !lanes.length) return;
    const { view, axis, state, run } = seen;
    const { width } = map;
    const { names } = map.options;
    const colors = /** @type {any} */ (theme());
    const height = heightOf(course, seen.tall) - 6;
    const context = surface(this.canvas, names + width, height);
    context.font = colors.small;
    context.textBaseline = "middle";
    const step = this.pointed ?? state.step;
    const at = nearest(course.ends, step ?? view.to);
    const x = (/** @type {number} */ s) => names + map.xOf(s);
    context.save();
    context.beginPath();
    context.rect(names, 0, width, height);
    context.clip();
    this.borders(context, course, x, names + width, height, colors, run.incidents.map((i) => Math.max(names + 7, x(i.first_step))));
    for (const incident of run.incidents) {
      const of = incident.state === "open" ? incident.severity : "info";
      const at = x(incident.first_step);
      tint(context, colors[of], 0.6, at - 0.5, TOP - 2, 1, height);
      if (at > names - 1) glyph(context, incident.severity, Math.max(names + 7, at), 7, 5, { ...colors, [incident.severity]: colors[of] });
    }
    context.font = colors.small;
    const words = [];
    let top = TOP;
    for (const lane of lanes) {
      const log = state.scale === "log" ? positive(lane.rows) : state.scale !== "linear" && wide(lane.rows);
      const y = scale(lane, course.ends, view, log, top);
      for (const row of lane.rows) {
        const soft = lane.name === "lr" ? row : smooth(row, state.smooth);
        if (soft !== row) draw(context, course.ends, row, x, y, lane, colors, 0.3, log, names - 2, names + width + 2);
        draw(context, course.ends, soft, x, y, lane, colors, 1, log, names - 2, names + width + 2);
      }
      words.push(`${lane.name} ${said(lane, at)}${log ? ", log" : ""}`);
      top += lane.height;
      context.fillStyle = colors.line;
      context.fillRect(names, top - 1, width, 1);
    }
    const { drag, pointed } = this;
    if (step !== null) tint(context, pointed === null ? colors.accent : colors.text, pointed === null ? 1 : 0.55, x(step) - 0.5, 0, 1, height);
    if (drag) tint(context, colors.accent, 0.2, names + Math.min(drag.from, drag.to), 0, Math.abs(drag.to - drag.from), height);
    context.restore();
    this.words(context, lanes, words, names, width, colors);
    this.canvas.setAttribute("aria-label", `${words.join(", ")}, over the ${axis.name === "time" ? "time" : `${axis.name}s`}`);
    this.canvas.title = words.join("\n");
  }

  /** Where epochs begin, as many as there is room for. @param {CanvasRenderingContext2D} context @param {Slice} course @param {(step: number) => number} x @param {number} right  Where the plot ends. @param {number} height @param {any} colors @param {number[]} taken  Where signs stand. */
  borders(context, course, x, right, height, colors, taken) {
    const known = epochs(course);
    if (known.length < 2) return;
    const [first, last] = [known[0], known[known.length - 1]];
    const each = (x(last.step) - x(first.step)) / (last.epoch - first.epoch);
    const room = context.measureText(grouped(last.epoch)).width + 16;
    const every = [1, 2, 5].flatMap((m) => [m, m * 10, m * 100, m * 1000, m * 1e4]).sort((a, b) => a - b).find((n) => n * each >= room) ?? 1e5;
    for (const { epoch, step } of known) {
      if (epoch % every) continue;
      context.fillStyle = colors.line;
      context.fillRect(x(step), 0, 1, height);
      context.fillStyle = colors.muted;
      const end = x(step) + 3 + context.measureText(grouped(epoch)).width;
      if (end <= right && !taken.some((at) => at > x(step) - 5 && at < end + 8)) context.fillText(grouped(epoch), x(step) + 3, 7);
    }
  }

  /** @param {CanvasRenderingContext2D} context @param {Lane[]} lanes @param {string[]} words @param {number} names @param {number} width @param {any} colors */
  words(context, lanes, words, names, width, colors) {
    const fits = (/** @type {string} */ text) => context.measureText(text).width <= Math.max(60, names - 14);
    let top = TOP;
    context.textAlign = "right";
    context.fillStyle = colors.muted;
    if (names && epochs(/** @type {Slice} */ (this.course)).length > 1) context.fillText("epoch", names - 8, 7);
    lanes.forEach((lane, i) => {
      const y = top + lane.height / 2;
      top += lane.height;
      context.fillStyle = colors[lane.color];
      if (names) context.fillText(shorten(words[i], fits), names - 8, y);
      else {
        // Curves fall as a rule, so that there is room at the right.
        const wide = context.measureText(words[i]).width;
        context.fillStyle = colors.surface;
        context.fillRect(width - wide - 6, y - 8, wide + 6, 16);
        context.fillStyle = colors[lane.color];
        context.fillText(words[i], width - 3, y);
      }
    });
    context.textAlign = "left";
  }
}

/** Whether no value is 0 or less. @param {Float32Array[]} rows */
const positive = (rows) => rows.every((row) => row.every((v) => !(v <= 0)));

/** Whether the values are spread over more than a hundredfold. @param {Float32Array[]} rows */
function wide(rows) {
  let [low, high] = [Infinity, 0];
  for (const row of rows)
    for (const v of row)
      if (Number.isFinite(v)) {
        if (v <= 0) return false;
        low = Math.min(low, v);
        high = Math.max(high, v);
      }
  return high > WIDE * low;
}

/** The height of a value, by what is in sight. @param {Lane} lane @param {number[]} ends @param {import("./types.js").Range} view @param {boolean} log @param {number} top */
function scale(lane, ends, view, log, top) {
  const f = log ? Math.log : (/** @type {number} */ v) => v;
  let [low, high] = [Infinity, -Infinity];
  for (const row of lane.rows)
    for (let i = 0; i < row.length; i++) {
      const v = row[i];
      if (!Number.isFinite(v) || ends[i] < view.from || ends[i] > view.to) continue;
      const at = f(v);
      if (at < low) low = at;
      if (at > high) high = at;
    }
  if (!(high > low)) [low, high] = [low - 1, low + 1];
  return (/** @type {number} */ v) => top + lane.height - PAD - ((f(v) - low) / (high - low)) * (lane.height - 2 * PAD);
}

/** @param {CanvasRenderingContext2D} context @param {number[]} ends @param {Float32Array} row @param {(s: number) => number} x @param {(v: number) => number} y @param {Lane} lane @param {any} colors @param {number} alpha @param {boolean} log @param {number} left @param {number} right */
function draw(context, ends, row, x, y, lane, colors, alpha, log, left, right) {
  context.strokeStyle = colors[lane.color];
  context.lineWidth = 1.5;
  context.globalAlpha = alpha;
  trace(context, ends, row, x, y, log, lane.dash, left, right);
  context.globalAlpha = 1;
}

/** The value of a lane at a column; of several groups the smallest and the largest. @param {Lane} lane @param {number} at */
function said(lane, at) {
  const values = lane.rows.map((row) => row[at]).filter((v) => !Number.isNaN(v)).map((v) => Number(v.toPrecision(6)));
  if (!values.length) return "not known";
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return low === high ? number(low) : `${number(low)} to ${number(high)}`;
}
