/** Loss and learning rate above the map, on the same axis of steps. */

import { h, surface, theme } from "./dom.js";
import { number, shorten } from "./text.js";

/** @typedef {import("./types.js").Slice} Slice */

export const HEIGHT = 52;
/** Width that the words beside it need. */
export const LABELS = 112;
const WIDE = 100;
const PAD = 4;

export class Strip {
  constructor() {
    this.canvas = h("canvas", { role: "img" });
    this.el = h("div", { class: "strip", hidden: true }, this.canvas);
  }

  /**
   * @param {Slice|null} course  A row for the loss and one for each learning rate, as far as they are known.
   * @param {import("./types.js").Range} view
   * @param {number} names  Width of the names beside the map.
   * @param {number} width  Of the map.
   * @param {number|null} step  Where the cursor stands.
   */
  set(course, view, names, width, step) {
    const lines = course ? linesOf(course) : [];
    this.el.hidden = !lines.length;
    if (!course || !lines.length) return;
    const colors = /** @type {any} */ (theme());
    const context = surface(this.canvas, names + width, HEIGHT);
    context.font = colors.small;
    context.textBaseline = "middle";
    const at = nearest(course.ends, step ?? view.to);
    const x = (/** @type {number} */ s) => names + ((s - view.from) / (view.to - view.from || 1)) * width;
    context.fillStyle = colors.line;
    context.fillRect(names, HEIGHT - 1, width, 1);
    context.save();
    context.beginPath();
    context.rect(names, 0, width, HEIGHT);
    context.clip();
    for (const line of lines) for (const row of line.rows) draw(context, course.ends, row, x, scale(line, course.ends, view), line, colors);
    if (step !== null) {
      context.fillStyle = colors.accent;
      context.fillRect(x(step) - 0.5, 0, 1, HEIGHT);
    }
    context.restore();
    const words = lines.map((line) => `${line.name} ${said(line, at)}${line.log ? ", log" : ""}`);
    const fits = (/** @type {string} */ text) => context.measureText(text).width <= Math.max(60, names - 14);
    lines.forEach((line, i) => {
      const y = 14 + i * 20;
      context.fillStyle = colors[line.color];
      if (names) {
        context.textAlign = "right";
        context.fillText(shorten(words[i], fits), names - 8, y);
      } else {
        // Both lines fall as a rule, so that there is room at the right.
        const wide = context.measureText(words[i]).width;
        context.fillStyle = colors.surface;
        context.fillRect(width - wide - 6, y - 8, wide + 6, 16);
        context.textAlign = "right";
        context.fillStyle = colors[line.color];
        context.fillText(words[i], width - 3, y);
      }
      context.textAlign = "left";
    });
    this.canvas.setAttribute("aria-label", `${words.join(", ")}, over the steps`);
    this.canvas.title = words.join("\n");
  }
}

/** @typedef {{name: string, rows: Float32Array[], color: string, dash: number[], log: boolean}} Line */

/** @param {Slice} course @returns {Line[]} */
function linesOf(course) {
  const rowOf = (/** @type {number} */ r) => course.values.subarray(r * course.columns, (r + 1) * course.columns);
  const all = (course.statistics ?? []).map((name, r) => ({ name, row: rowOf(r) }));
  const line = (/** @type {string} */ name, /** @type {Float32Array[]} */ rows, /** @type {string} */ color, /** @type {number[]} */ dash) => ({ name, rows, color, dash, log: wide(rows) });
  return [
    line("loss", all.filter((one) => one.name === "loss").map((one) => one.row), "accent", []),
    line("lr", all.filter((one) => one.name !== "loss").map((one) => one.row), "second", [5, 3]),
  ].filter((one) => one.rows.length);
}

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

/** The height of a value, by what is in sight. @param {Line} line @param {number[]} ends @param {import("./types.js").Range} view */
function scale(line, ends, view) {
  const f = line.log ? Math.log : (/** @type {number} */ v) => v;
  let [low, high] = [Infinity, -Infinity];
  for (const row of line.rows)
    row.forEach((v, i) => {
      if (Number.isFinite(v) && ends[i] >= view.from && ends[i] <= view.to) [low, high] = [Math.min(low, f(v)), Math.max(high, f(v))];
    });
  if (!(high > low)) [low, high] = [low - 1, low + 1];
  return (/** @type {number} */ v) => HEIGHT - PAD - ((f(v) - low) / (high - low)) * (HEIGHT - 2 * PAD);
}

/** @param {CanvasRenderingContext2D} context @param {number[]} ends @param {Float32Array} row @param {(s: number) => number} x @param {(v: number) => number} y @param {Line} line @param {any} colors */
function draw(context, ends, row, x, y, line, colors) {
  context.strokeStyle = colors[line.color];
  context.lineWidth = 1.5;
  context.setLineDash(line.dash);
  context.beginPath();
  let pen = false;
  row.forEach((v, i) => {
    if (!Number.isFinite(v)) pen = false;
    else {
      if (pen) context.lineTo(x(ends[i]), y(v));
      else context.moveTo(x(ends[i]), y(v));
      pen = true;
    }
  });
  context.stroke();
  context.setLineDash([]);
}

/** The value of a line at a column; of several groups the smallest and the largest. @param {Line} line @param {number} at */
function said(line, at) {
  const values = line.rows.map((row) => row[at]).filter((v) => !Number.isNaN(v)).map((v) => Number(v.toPrecision(6)));
  if (!values.length) return "not known";
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return low === high ? number(low) : `${number(low)} to ${number(high)}`;
}

/** @param {number[]} ends @param {number} step */
function nearest(ends, step) {
  let best = 0;
  ends.forEach((end, i) => {
    if (Math.abs(end - step) < Math.abs(ends[best] - step)) best = i;
  });
  return best;
}
