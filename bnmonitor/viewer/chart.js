/** Lines over steps, with a band and dots, on a canvas; the values at the cursor stand in the legend. */

import { nearest, smooth, trace } from "./curve.js";
import { h, once, surface, theme, tint } from "./dom.js";
import { logTicks, ticks } from "./scale.js";
import { number } from "./text.js";

/**
 * @typedef {object} Line
 * @property {string} label
 * @property {number[]|Float32Array} values
 * @property {"line"|"dots"|"dashed"} style
 * @property {string} color  Name of a color of the page.
 * @property {string} [missing]  What the legend says where there is no value.
 * @property {Band} [band]
 * @property {Band} [outer]
 *
 * @typedef {{low: number[]|Float32Array, high: number[]|Float32Array, label: string}} Band
 *
 * @typedef {object} Drawn
 * @property {number[]} steps
 * @property {Line[]} lines
 * @property {import("./types.js").Range} view
 * @property {import("./axis.js").Axis} axis
 * @property {number|null} step
 * @property {number} [smooth]
 * @property {boolean} log
 * @property {string} unit
 */

const LEFT = 46;
const BOTTOM = 18;
const RIGHT = 4;

export class Chart {
  /** @param {{label: string, height?: number, hover?: (step: number|null) => void, select?: (step: number) => void}} options */
  constructor(options) {
    this.options = options;
    this.canvas = h("canvas", { role: "img", "aria-label": options.label });
    this.legend = h("div", { class: "legend-lines" });
    this.caption = h("figcaption", {}, options.label);
    this.el = h("figure", { class: "chart" }, this.caption, this.canvas, this.legend);
    /** @type {Drawn|null} */
    this.drawn = null;
    this.draw = once(() => this.paint());
    new ResizeObserver(() => this.el.clientWidth !== this.wide && this.draw()).observe(this.el);
    const step = (/** @type {PointerEvent} */ e) => {
      const d = this.drawn;
      if (!d) return null;
      const x = e.clientX - this.canvas.getBoundingClientRect().left - LEFT;
      const [from, to] = [d.axis.of(d.view.from), d.axis.of(d.view.to)];
      return x < 0 ? null : d.axis.back(from + (x / (this.canvas.clientWidth - LEFT - RIGHT)) * (to - from));
    };
    this.canvas.addEventListener("pointermove", (/** @type {PointerEvent} */ e) => options.hover?.(step(e)));
    this.canvas.addEventListener("pointerleave", () => options.hover?.(null));
    this.canvas.addEventListener("click", (/** @type {PointerEvent} */ e) => {
      const at = step(e);
      if (at !== null) options.select?.(Math.round(at));
    });
  }

  /** @param {Drawn} drawn */
  set(drawn) {
    const { smooth: weight = 0 } = drawn;
    this.drawn = { ...drawn, lines: drawn.lines.map((line) => (line.style === "dots" ? line : { ...line, values: smooth(line.values, weight) })) };
    this.paint();
  }

  /** @param {string} text */
  title(text) {
    this.caption.textContent = text;
    this.canvas.setAttribute("aria-label", text);
  }

  /** Where the cursor stands. @param {number|null} step */
  at(step) {
    if (!this.drawn || this.drawn.step === step) return;
    this.drawn.step = step;
    this.draw();
  }

  paint() {
    const d = this.drawn;
    const width = (this.wide = this.el.clientWidth);
    if (!d || !width) return;
    const height = this.options.height ?? 130;
    const colors = theme();
    const context = surface(this.canvas, width, height);
    const plot = { w: width - LEFT - RIGHT, h: height - BOTTOM - 6 };
    const inside = d.steps.map((s) => s >= d.view.from && s <= d.view.to);
    let low = Infinity;
    let high = -Infinity;
    const take = (/** @type {ArrayLike<number>} */ values) => {
      for (let i = 0; i < d.steps.length; i++) {
        const v = values[i];
        if (inside[i] && Number.isFinite(v) && (!d.log || v > 0)) {
          if (v < low) low = v;
          if (v > high) high = v;
        }
      }
    };
    for (const line of d.lines) {
      take(line.values);
      for (const band of [line.band, line.outer]) if (band) [band.low, band.high].forEach(take);
    }
    if (low > high) [low, high] = d.log ? [0.1, 10] : [0, 1];
    if (d.log && high / low < 3) [low, high] = [low / 1.8, high * 1.8];
    if (low === 0 && high === 0) high = 1;
    if (!d.log && high - low < 1e-12) [low, high] = [low - Math.abs(low) * 0.5 - 1e-6, high + Math.abs(high) * 0.5 + 1e-6];
    const f = d.log ? Math.log : (/** @type {number} */ v) => v;
    const [a, b] = [f(low), f(high)];
    const pad = (b - a) * 0.06;
    const [start, end] = [d.axis.of(d.view.from), d.axis.of(d.view.to)];
    const x = (/** @type {number} */ s) => LEFT + ((d.axis.of(s) - start) / (end - start || 1)) * plot.w;
    const y = (/** @type {number} */ v) => 4 + plot.h - ((f(v) - a + pad) / (b - a + 2 * pad)) * plot.h;
    context.font = colors.small;
    context.textBaseline = "middle";
    for (const t of d.log ? logTicks(low, high) : ticks(low, high, 4)) {
      context.fillStyle = colors.line;
      context.fillRect(LEFT, Math.round(y(t)), plot.w, 1);
      context.fillStyle = colors.muted;
      context.textAlign = "right";
      context.fillText(number(t), LEFT - 6, y(t));
    }
    context.textAlign = "center";
    context.textBaseline = "top";
    context.fillStyle = colors.muted;
    for (const { step, text } of d.axis.marks(d.view.from, d.view.to, plot.w / 90)) context.fillText(text, Math.min(width - 18, Math.max(LEFT + 8, x(step))), 8 + plot.h);
    context.save();
    context.beginPath();
    context.rect(LEFT, 0, plot.w + 4, plot.h + 8);
    context.clip();
    for (const line of d.lines) for (const band of [line.outer, line.band]) if (band) this.band(context, d, band, line.color, x, y, colors);
    for (const line of [...d.lines].sort((p, q) => Number(q.style === "dots") - Number(p.style === "dots"))) this.line(context, d, line, x, y, colors);
    const at = this.column();
    if (d.step !== null && at >= 0) tint(context, colors.text, 0.5, x(d.steps[at]), 0, 1, plot.h + 8);
    context.restore();
    this.legend.replaceChildren(
      ...d.lines.flatMap((line) => [
        h("span", { class: "key" }, h("i", { class: line.style, style: { color: `var(--${line.color})` } }), line.label, at >= 0 ? h("b", {}, Number.isNaN(line.values[at]) ? line.missing ?? "not known" : `${number(line.values[at])}${d.unit ? " " + d.unit : ""}`) : null),
        ...[line.band, line.outer].map((band, i) => band && h("span", { class: "key" }, h("i", { class: i ? "band outer" : "band", style: { color: `var(--${line.color})` } }), band.label)),
      ].filter(Boolean)),
      h("span", { class: "key at" }, at >= 0 ? d.axis.say(d.steps[at]) : ""),
    );
  }

  /** The column at the cursor; without a cursor the last one in sight. */
  column() {
    const d = /** @type {Drawn} */ (this.drawn);
    return nearest(d.steps, d.step ?? d.view.to);
  }

  /** @param {CanvasRenderingContext2D} context @param {Drawn} d @param {Band} band @param {string} color @param {(s: number) => number} x @param {(v: number) => number} y @param {any} colors */
  band(context, d, band, color, x, y, colors) {
    const good = d.steps.map((_, i) => i).filter((i) => Number.isFinite(band.low[i]) && Number.isFinite(band.high[i]) && (!d.log || band.low[i] > 0));
    if (!good.length) return;
    context.beginPath();
    for (const i of good) context.lineTo(x(d.steps[i]), y(band.high[i]));
    for (const i of good.reverse()) context.lineTo(x(d.steps[i]), y(band.low[i]));
    context.fillStyle = colors[color];
    context.globalAlpha = 0.18;
    context.fill();
    context.globalAlpha = 1;
  }

  /** @param {CanvasRenderingContext2D} context @param {Drawn} d @param {Line} line @param {(s: number) => number} x @param {(v: number) => number} y @param {any} colors */
  line(context, d, line, x, y, colors) {
    context.strokeStyle = context.fillStyle = colors[line.color];
    const known = (/** @type {number} */ v) => Number.isFinite(v) && (!d.log || v > 0);
    if (line.style === "dots") {
      const size = d.steps.length > 400 ? 1.5 : 2.5;
      context.globalAlpha = d.steps.length > 400 ? 0.6 : 0.85;
      for (let i = 0; i < d.steps.length; i++) if (known(line.values[i])) context.fillRect(x(d.steps[i]) - size / 2, y(line.values[i]) - size / 2, size, size);
      context.globalAlpha = 1;
      return;
    }
    context.lineWidth = 1.75;
    trace(context, d.steps, line.values, x, y, d.log, line.style === "dashed" ? [5, 3] : [], LEFT - 2, (this.wide ?? 0) + 2);
  }
}
