/** Channels at one step: a histogram of a statistic, and gamma against beta. */

import { h, once, surface, theme } from "./dom.js";
import { logTicks, ticks } from "./scale.js";
import { count, measured, number, severity } from "./text.js";

/** @typedef {{x: Float32Array, y: Float32Array|null, log: boolean, statistic: import("./types.js").Statistic, flags: Map<number, string>, selected: number}} Drawn */

const LEFT = 42;
const BOTTOM = 18;
const HEIGHT = 150;
const BINS = 28;
const TOP = 8;

/** What both pictures share: a title, a canvas, and a line that says what is pointed at. */
class Picture {
  /** @param {string} title */
  constructor(title) {
    this.title = h("figcaption", {}, title);
    this.canvas = h("canvas", { role: "img", "aria-label": title });
    this.said = h("div", { class: "quiet said-of" });
    this.el = h("figure", { class: "chart" }, this.title, this.canvas, this.said);
    /** @type {Drawn|null} */
    this.drawn = null;
    /** @type {{x: number, y: number}|null} */
    this.pointer = null;
    this.draw = once(() => this.paint());
    /** Width that it was painted at. */
    this.wide = 0;
    new ResizeObserver(() => this.el.clientWidth !== this.wide && this.draw()).observe(this.el);
    const move = (/** @type {{x: number, y: number}|null} */ to) => {
      this.pointer = to;
      this.draw();
    };
    this.canvas.addEventListener("pointermove", (/** @type {PointerEvent} */ e) => move({ x: e.offsetX, y: e.offsetY }));
    this.canvas.addEventListener("pointerleave", () => move(null));
  }

  /** @param {Drawn|null} drawn */
  set(drawn) {
    this.drawn = drawn;
    this.el.hidden = !drawn;
    this.paint();
  }

  paint() {}
}

/** The range of what is known, a little wider; [0, 1] if nothing is. @param {Float32Array} values @param {boolean} log @returns {[number, number]} */
function extent(values, log) {
  let [low, high] = [Infinity, -Infinity];
  for (const v of values) if (Number.isFinite(v) && (!log || v > 0)) [low, high] = [Math.min(low, v), Math.max(high, v)];
  if (low > high) return log ? [0.1, 10] : [0, 1];
  if (log) return high / low < 1.5 ? [low / 1.5, high * 1.5] : [low, high];
  const pad = (high - low) * 0.04 || Math.abs(high) * 0.1 || 1;
  return [low - pad, high + pad];
}

export class Histogram extends Picture {
  paint() {
    const d = this.drawn;
    const width = (this.wide = this.el.clientWidth);
    if (!d || !width) return;
    const colors = /** @type {any} */ (theme());
    const context = surface(this.canvas, width, HEIGHT);
    const [low, high] = extent(d.x, d.log);
    const f = d.log ? Math.log : (/** @type {number} */ v) => v;
    const back = d.log ? Math.exp : (/** @type {number} */ v) => v;
    const plot = { w: width - LEFT - 6, h: HEIGHT - BOTTOM - TOP };
    const place = (/** @type {number} */ v) => (f(v) - f(low)) / (f(high) - f(low));
    const bins = Math.max(6, Math.min(BINS, Math.floor(plot.w / 6)));
    /** @type {number[][]} */
    const inside = Array.from({ length: bins }, () => []);
    let off = 0;
    d.x.forEach((v, i) => {
      if (!Number.isFinite(v) || (d.log && v <= 0)) off++;
      else inside[Math.max(0, Math.min(bins - 1, Math.floor(place(v) * bins)))].push(i);
    });
    const most = Math.max(1, ...inside.map((its) => its.length));
    const y = (/** @type {number} */ n) => TOP + plot.h * (1 - n / most);
    axes(context, colors, plot, d.log ? logTicks(low, high) : ticks(low, high, plot.w / 60), (t) => LEFT + place(t) * plot.w, ticks(0, most, 3).filter((t) => t === Math.round(t)), y);
    const at = this.pointer ? Math.floor(((this.pointer.x - LEFT) / plot.w) * bins) : -1;
    inside.forEach((its, i) => {
      const left = LEFT + (i / bins) * plot.w;
      const its_ = its.filter((c) => d.flags.has(c));
      context.fillStyle = i === at ? colors.text : colors.second;
      context.fillRect(left + 0.5, y(its.length), plot.w / bins - 1, plot.h + TOP - y(its.length));
      // Channels of an incident stand at the foot of the bar.
      if (its_.length) {
        context.fillStyle = colors[/** @type {string} */ (d.flags.get(its_[0]))] ?? colors.info;
        context.fillRect(left + 0.5, y(its_.length), plot.w / bins - 1, plot.h + TOP - y(its_.length));
      }
    });
    const one = d.x[d.selected];
    if (Number.isFinite(one) && (!d.log || one > 0)) {
      context.fillStyle = colors.accent;
      context.fillRect(LEFT + place(one) * plot.w - 1, TOP - 2, 2, plot.h + 2);
    }
    const edge = (/** @type {number} */ i) => measured(back(f(low) + (i / bins) * (f(high) - f(low))), d.statistic);
    const its = inside[at];
    const some = its?.filter((c) => d.flags.has(c)) ?? [];
    this.said.textContent = its
      ? `${edge(at)} to ${edge(at + 1)}: ${count(its.length, "channel")}${some.length ? `, ${some.length} of an incident ${severity(/** @type {string} */ (d.flags.get(some[0]))).glyph}` : ""}`
      : off ? `${count(off, "channel")} not drawn: not known${d.log ? ", or not above 0" : ""}` : "";
    const known = [...d.x].filter(Number.isFinite).sort((a, b) => a - b);
    this.canvas.setAttribute("aria-label", `${this.title.textContent}: ${count(known.length, "channel")}, ${known.length ? `${measured(known[0], d.statistic)} to ${measured(known[known.length - 1], d.statistic)}, median ${measured(known[known.length >> 1], d.statistic)}` : "no value known"}`);
  }
}

export class Plane extends Picture {
  /** @param {string} title @param {(channel: number) => void} select */
  constructor(title, select) {
    super(title);
    this.canvas.addEventListener("click", () => {
      const at = this.nearest();
      if (at >= 0) select(at);
    });
  }

  /** The channel under the pointer. */
  nearest() {
    const { pointer, at } = this;
    let [best, least] = [-1, 14 ** 2];
    if (pointer && at)
      at.forEach(([x, y], i) => {
        const far = (x - pointer.x) ** 2 + (y - pointer.y) ** 2;
        if (far < least) [best, least] = [i, far];
      });
    return best;
  }

  paint() {
    const d = this.drawn;
    const width = (this.wide = this.el.clientWidth);
    if (!d || !d.y || !width) return;
    const colors = /** @type {any} */ (theme());
    const context = surface(this.canvas, width, HEIGHT);
    const plot = { w: width - LEFT - 6, h: HEIGHT - BOTTOM - TOP };
    // Zero is in sight, on both axes: a channel whose gamma is 0 says nothing.
    const [left, right] = extent(Float32Array.of(0, ...d.x), false);
    const [low, high] = extent(Float32Array.of(0, ...d.y), false);
    const x = (/** @type {number} */ v) => LEFT + ((v - left) / (right - left)) * plot.w;
    const y = (/** @type {number} */ v) => TOP + plot.h * (1 - (v - low) / (high - low));
    axes(context, colors, plot, ticks(left, right, plot.w / 50), x, ticks(low, high, 4), y);
    context.fillStyle = colors.muted;
    context.fillRect(x(0), TOP, 1, plot.h);
    context.fillRect(LEFT, y(0), plot.w, 1);
    const { y: betas } = d;
    this.at = Array.from(d.x, (v, i) => /** @type {[number, number]} */ ([x(v), y(betas[i])]));
    const size = d.x.length > 200 ? 2 : 3;
    const dot = (/** @type {number} */ i) => {
      const [px, py] = /** @type {[number, number][]} */ (this.at)[i];
      if (!Number.isFinite(px + py)) return;
      const flag = d.flags.get(i);
      context.fillStyle = flag ? (colors[flag] ?? colors.info) : colors.second;
      context.globalAlpha = flag ? 1 : 0.7;
      if (flag) {
        // A cross, so that no color is needed to see it.
        context.fillRect(px - 4, py - 1, 9, 3);
        context.fillRect(px - 1, py - 4, 3, 9);
      } else context.fillRect(px - size / 2, py - size / 2, size, size);
      context.globalAlpha = 1;
    };
    d.x.forEach((_, i) => d.flags.has(i) || dot(i));
    for (const i of d.flags.keys()) if (i < d.x.length) dot(i);
    const ring = (/** @type {number} */ i, /** @type {string} */ color) => {
      const [px, py] = /** @type {[number, number][]} */ (this.at)[i];
      context.strokeStyle = color;
      context.lineWidth = 2;
      context.strokeRect(px - 6, py - 6, 12, 12);
    };
    if (d.selected >= 0 && d.selected < d.x.length) ring(d.selected, colors.accent);
    const at = this.nearest();
    if (at >= 0) ring(at, colors.text);
    const said = at >= 0 ? at : d.selected;
    this.said.textContent = said >= 0 && said < d.x.length ? `channel ${said}: γ ${number(d.x[said])}, β ${number(betas[said])}` : "";
    const near = [...d.x].filter((v) => Math.abs(v) < 0.01).length;
    this.canvas.setAttribute("aria-label", `${this.title.textContent}: ${count(d.x.length, "channel")}, ${near} with gamma near 0`);
  }
}

/** @param {CanvasRenderingContext2D} context @param {any} colors @param {{w: number, h: number}} plot @param {number[]} along @param {(v: number) => number} x @param {number[]} up @param {(v: number) => number} y */
function axes(context, colors, plot, along, x, up, y) {
  context.font = colors.small;
  context.textBaseline = "middle";
  context.textAlign = "right";
  for (const t of up) {
    context.fillStyle = colors.line;
    context.fillRect(LEFT, Math.round(y(t)), plot.w, 1);
    context.fillStyle = colors.muted;
    context.fillText(number(t), LEFT - 5, y(t));
  }
  context.textAlign = "center";
  context.textBaseline = "top";
  for (const t of along) if (x(t) >= LEFT - 1 && x(t) <= LEFT + plot.w + 1) context.fillText(number(t), Math.max(LEFT + 6, Math.min(LEFT + plot.w - 8, x(t))), TOP + 4 + plot.h);
}
