/** A map of rows × steps: hover for values, drag to zoom, click to select, all of it also by keyboard. */

import { h, once, surface, theme } from "./dom.js";
import { Gestures } from "./gestures.js";
import { columnsOf, image, middles, shown } from "./heat.js";
import { layout, rowAt } from "./layout.js";
import { ticks } from "./scale.js";
import { grouped, severity, shorten } from "./text.js";

/** @typedef {import("./types.js").Range} Range */
/** @typedef {{row: number, from: number, to: number, severity: string, first: boolean}} Mark  `first`: where an incident began. */

/**
 * What a map shows.
 * @typedef {object} Shown
 * @property {string[]} rows
 * @property {import("./types.js").Slice|null} slice
 * @property {Range} view
 * @property {Range} full
 * @property {import("./scale.js").Scale} scale
 * @property {Mark[]} marks
 * @property {number} selected  Row; -1 for none.
 * @property {number|null} step  Where the cursor stands.
 * @property {number} room  Height to fill.
 * @property {(row: number, column: number) => string[]} describe  Lines for the tooltip.
 *
 * @typedef {object} Options
 * @property {string} label  What it is, for those who do not see it.
 * @property {number} names  Width for the names of the rows; 0: none.
 * @property {boolean} [grouped]
 * @property {number} [least]  Height of a row.
 * @property {number} [most]
 * @property {(row: number, step: number|null) => void} select
 * @property {(view: Range|null) => void} zoom  null: all of it.
 * @property {(step: number|null, row: number) => void} [hover]
 */

const AXIS = 24;

export class HeatMap {
  /** @param {Options} options */
  constructor(options) {
    this.options = options;
    /** @type {Shown|null} */
    this.shown = null;
    this.base = h("canvas");
    this.over = h("canvas", { class: "over" });
    this.axis = h("canvas", { class: "axis" });
    this.tip = h("div", { class: "tip", hidden: true });
    this.scroll = h("div", { class: "map-scroll" }, this.base, this.over);
    this.el = h(
      "div",
      {
        class: "map", tabindex: 0, role: "application", "aria-label": options.label,
      },
      this.scroll, this.axis, this.tip,
    );
    this.gestures = new Gestures(this);
    this.draw = once(() => this.paint());
    this.redraw = once(() => this.paintOver());
    new ResizeObserver(this.draw).observe(this.el);
  }

  /** @param {Shown} shown */
  set(shown) {
    this.shown = shown;
    this.paint();
  }

  /** Width of the plot. */
  get width() {
    return Math.max(1, Math.floor(this.el.clientWidth - this.options.names - 1));
  }

  // -- places ---------------------------------------------------------------------------------------------------------

  /** @param {number} x  Within the plot. */
  stepAt(x) {
    const { view } = /** @type {Shown} */ (this.shown);
    return view.from + (x / this.width) * (view.to - view.from);
  }

  /** @param {number} step */
  xOf(step) {
    const { view } = /** @type {Shown} */ (this.shown);
    return ((step - view.from) / (view.to - view.from)) * this.width;
  }

  /** Row and column under the pointer, of a column that is thinned the one that is shown. */
  under() {
    const s = this.shown;
    if (!s || !s.slice || !this.gestures.pointer || !this.placed) return null;
    const row = rowAt(this.placed, this.gestures.pointer.y);
    const x = Math.floor(this.gestures.pointer.x);
    if (row < 0 || row >= s.slice.rows || x < 0 || x >= this.width) return null;
    const at = this.columns ?? columnsOf(s.slice, s.view, this.width);
    this.columns = at;
    this.usual ??= middles(s.slice);
    const column = shown(s.slice, row, at.first[x], at.after[x], this.usual[row], s.scale);
    return column < 0 ? null : { row, column };
  }

  // -- painting -------------------------------------------------------------------------------------------------------

  paint() {
    const s = this.shown;
    if (!s || !this.el.clientWidth) return;
    const { names, least = 2, most = 26 } = this.options;
    const colors = theme();
    const placed = layout(s.rows, s.room, { grouped: !!this.options.grouped, least, most });
    this.placed = placed;
    this.columns = this.usual = undefined;
    this.scroll.style.maxHeight = `${Math.max(s.room, 60)}px`;
    const width = this.width;
    const context = surface(this.base, names + width, placed.total);
    if (s.slice && s.slice.columns && s.slice.rows === s.rows.length) {
      const ratio = window.devicePixelRatio || 1;
      const fine = Math.round(width * ratio);
      const packed = (/** @type {string} */ hex) => (255 << 24) | parseInt(hex.slice(5, 7) + hex.slice(3, 5) + hex.slice(1, 3), 16);
      const bitmap = document.createElement("canvas");
      const pixels = image(s.slice, s.view, fine, s.scale, packed(colors.gap), packed(colors.text));
      bitmap.width = pixels.width;
      bitmap.height = pixels.height;
      /** @type {CanvasRenderingContext2D} */ (bitmap.getContext("2d")).putImageData(pixels, 0, 0);
      context.imageSmoothingEnabled = false;
      // Rows that follow each other without a gap are stretched together.
      for (let r = 0; r < s.rows.length; ) {
        let end = r + 1;
        while (end < s.rows.length && Math.abs(placed.tops[end] - placed.tops[end - 1] - placed.height) < 0.01) end++;
        context.drawImage(bitmap, 0, r, fine, end - r, names, placed.tops[r], width, (end - r) * placed.height);
        r = end;
      }
      if (placed.height >= 8) {
        context.fillStyle = colors.surface;
        for (const top of placed.tops) context.fillRect(names, top + placed.height - 1, width, 1);
      }
    }
    if (names) this.label(context, placed, colors);
    this.drawAxis(colors);
    this.paintOver();
  }

  /** @param {CanvasRenderingContext2D} context @param {import("./layout.js").Layout} placed @param {any} colors */
  label(context, placed, colors) {
    const room = this.options.names - 14;
    context.textBaseline = "middle";
    context.font = colors.small;
    const fits = (/** @type {number} */ most) => (/** @type {string} */ text) => context.measureText(text).width <= most;
    context.fillStyle = colors.muted;
    for (const { top, label } of placed.headings) context.fillText(shorten(label, fits(room)), 2, top + 11);
    if (placed.height < 10) return;
    context.fillStyle = colors.text;
    context.textAlign = "right";
    placed.labels.forEach((label, i) => context.fillText(shorten(label, fits(room)), this.options.names - 8, placed.tops[i] + placed.height / 2));
    context.textAlign = "left";
  }

  /** @param {any} colors */
  drawAxis(colors) {
    const s = /** @type {Shown} */ (this.shown);
    const { names } = this.options;
    const context = surface(this.axis, names + this.width, AXIS);
    context.font = colors.small;
    context.fillStyle = colors.muted;
    context.strokeStyle = colors.line;
    context.textBaseline = "top";
    if (names) context.fillText("step", 2, 8);
    for (const step of ticks(s.view.from, s.view.to, this.width / 90)) {
      if (step !== Math.round(step)) continue;
      const x = names + this.xOf(step);
      context.fillRect(x, 0, 1, 5);
      const text = grouped(step);
      const w = context.measureText(text).width;
      context.fillText(text, Math.max(names, Math.min(names + this.width - w, x - w / 2)), 8);
    }
  }

  paintOver() {
    const s = this.shown;
    const placed = this.placed;
    if (!s || !placed || !this.el.clientWidth) return;
    const { names } = this.options;
    const colors = theme();
    const width = this.width;
    const context = surface(this.over, names + width, placed.total);
    context.save();
    context.beginPath();
    context.rect(names, 0, width, placed.total);
    context.clip();
    for (const mark of s.marks) this.mark(context, mark, placed, colors);
    if (s.step !== null) {
      context.fillStyle = colors.accent;
      context.fillRect(names + this.xOf(s.step) - 0.5, 0, 1, placed.total);
    }
    if (this.gestures.drag) {
      context.globalAlpha = 0.2;
      context.fillStyle = colors.accent;
      context.fillRect(names + Math.min(this.gestures.drag.x, this.gestures.drag.now), 0, Math.abs(this.gestures.drag.now - this.gestures.drag.x), placed.total);
      context.globalAlpha = 1;
    }
    context.restore();
    if (s.selected >= 0 && s.selected < placed.tops.length) {
      context.strokeStyle = colors.accent;
      context.lineWidth = 2;
      context.strokeRect(1, placed.tops[s.selected] - 0.5, names + width - 2, Math.max(placed.height, 3));
    }
    if (this.gestures.pointer && !this.gestures.drag) {
      const row = rowAt(placed, this.gestures.pointer.y);
      context.fillStyle = colors.text;
      context.globalAlpha = 0.55;
      if (this.gestures.pointer.x >= 0) context.fillRect(names + this.gestures.pointer.x, 0, 1, placed.total);
      if (row >= 0 && row !== s.selected) {
        context.strokeStyle = colors.text;
        context.lineWidth = 1;
        context.strokeRect(0.5, placed.tops[row] - 0.5, names + width - 1, Math.max(placed.height, 3));
      }
      context.globalAlpha = 1;
    }
  }

  /** @param {CanvasRenderingContext2D} context @param {Mark} mark @param {import("./layout.js").Layout} placed @param {any} colors */
  mark(context, mark, placed, colors) {
    const { names } = this.options;
    const y = placed.tops[mark.row] + placed.height / 2;
    const from = names + this.xOf(mark.from);
    const to = Math.max(from + 1, names + this.xOf(mark.to));
    const color = colors[mark.severity] ?? colors.info;
    context.fillStyle = color;
    if (placed.height >= 6) context.fillRect(from, placed.tops[mark.row] + placed.height - 3, to - from, 2);
    if (!mark.first) return;
    const size = Math.max(5, Math.min(7, placed.height / 2));
    context.beginPath();
    context.arc(from, y, size + 1.5, 0, 7);
    context.fillStyle = colors.surface;
    context.fill();
    context.beginPath();
    context.arc(from, y, size, 0, 7);
    context.fillStyle = color;
    context.fill();
    context.fillStyle = colors.surface;
    context.font = `bold ${Math.round(size * 1.6)}px sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillText(severity(mark.severity).glyph, from, y + 0.5);
    context.textAlign = "left";
  }

  /** Scroll the selected row into sight. */
  reveal() {
    const s = this.shown;
    if (!s || !this.placed || s.selected < 0 || s.selected >= this.placed.tops.length) return;
    const top = this.placed.tops[s.selected];
    if (top < this.scroll.scrollTop + 20) this.scroll.scrollTop = top - 20;
    else if (top + this.placed.height > this.scroll.scrollTop + this.scroll.clientHeight) this.scroll.scrollTop = top + this.placed.height + 20 - this.scroll.clientHeight;
  }
}
