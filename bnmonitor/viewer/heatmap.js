/** A map of rows × steps: hover for values, drag to zoom, click to select, all of it also by keyboard. */

import { h, once, surface, theme, tint } from "./dom.js";
import { Gestures } from "./gestures.js";
import { columnsOf, image, middles, shown } from "./heat.js";
import { layout, lineAt, rowAt } from "./layout.js";
import { drawMark, labels } from "./marks.js";
import { MiniMap, WIDTH } from "./minimap.js";

/** @typedef {import("./types.js").Range} Range */
/** @typedef {import("./rows.js").Row} Row */
/** @typedef {{row: number, from: number, to: number, severity: string, first: boolean}} Mark  `first`: where an incident began. */

/**
 * What a map shows.
 * @typedef {object} Shown
 * @property {Row[]} rows
 * @property {import("./types.js").Slice|null} slice  A row for each of the rows.
 * @property {import("./types.js").Statistic} statistic
 * @property {Range} view
 * @property {Range} full
 * @property {import("./axis.js").Axis} axis
 * @property {import("./scale.js").Scale} scale
 * @property {Mark[]} marks
 * @property {Map<number, string>} [flagged]  Severity of the rows that an incident names.
 * @property {number[]} [begins]  Steps at which incidents began: a line through all rows.
 * @property {number} selected  Row; -1 for none.
 * @property {number|null} step  Where the cursor stands.
 * @property {number} room  Height to fill.
 * @property {(row: number, column: number) => string[]} describe  Lines for the tooltip.
 *
 * @typedef {object} Options
 * @property {string} label  What it is, for those who do not see it.
 * @property {number} names  Width for the names of the rows; 0: none.
 * @property {boolean} [sparse]  Where rows are too low for a name each, name only some of them.
 * @property {number} [least]  Height of a row.
 * @property {number} [most]
 * @property {(row: number, step: number|null) => void} select
 * @property {(row: number, step: number|null, column: number) => void} [open]  A click on a cell of a folded group.
 * @property {(row: number) => void} [toggle]  Fold or unfold a group.
 * @property {(view: Range|null) => void} zoom  null: all of it.
 * @property {(step: number|null, row: number) => void} [hover]
 */

const AXIS = 24;
/** The most height of a canvas that every browser paints. */
const PAPER = 16000;

export class HeatMap {
  /** @param {Options} options */
  constructor(options) {
    this.options = options;
    /** @type {Shown|null} */
    this.shown = null;
    /** @type {import("./layout.js").Layout|undefined} */
    this.placed = undefined;
    /** @type {{first: Int32Array, after: Int32Array}|undefined} */
    this.columns = undefined;
    /** @type {Float32Array|undefined} */
    this.usual = undefined;
    /** @type {number|null} */
    this.pointed = null;
    /** Width of the plot. */
    this.width = 1;
    /** Height of what is in sight of the rows. */
    this.high = 1;
    /** What the rows were painted from. @type {unknown[]} */
    this.painted = [];
    this.base = h("canvas");
    this.over = h("canvas", { class: "over" });
    this.axis = h("canvas", { class: "axis" });
    this.tip = h("div", { class: "tip", hidden: true });
    this.stage = h("div", { class: "map-stage" }, this.base, this.over);
    this.tall = h("div", {}, this.stage);
    this.scroll = h("div", { class: "map-scroll" }, this.tall);
    this.mini = new MiniMap(this.scroll);
    this.said = h("div", { class: "unseen", "aria-live": "polite" });
    this.el = h(
      "div",
      { class: "map", tabindex: 0, role: "application", "aria-label": options.label },
      h("div", { class: "map-row" }, this.scroll, this.mini.el), this.axis, this.tip, this.said,
    );
    this.gestures = new Gestures(this);
    this.draw = once(() => this.paint());
    this.redraw = once(() => this.paintOver());
    this.scroll.addEventListener("scroll", () => this.scrolled());
    new ResizeObserver(() => this.shown && this.el.clientWidth !== this.wide && this.draw()).observe(this.el);
    // On paper nothing scrolls.
    this.paper = window.matchMedia("print");
    this.paper.addEventListener("change", () => this.paint());
  }

  /** @param {Shown} shown */
  set(shown) {
    this.shown = shown;
    this.paint();
    if (document.activeElement === this.el) this.said.textContent = this.inWords();
  }

  /** The selected row at the cursor, for those who do not see it. */
  inWords() {
    const s = /** @type {Shown} */ (this.shown);
    const row = s.rows[s.selected];
    if (!row || !s.slice?.columns) return "";
    const at = s.slice.ends.findIndex((end) => s.step !== null && end >= s.step);
    const state = { layer: "", folded: "group, folded. ", open: "group, unfolded. " }[row.kind];
    return state + s.describe(s.selected, at < 0 ? s.slice.columns - 1 : at).join(", ");
  }

  /** Whether there are more rows than room. */
  get scrolls() {
    return !this.paper.matches && !!this.placed && !!this.shown && this.placed.total > Math.max(this.shown.room, 60) + 0.5;
  }

  /** Width that the small map beside it takes. */
  get beside() {
    return this.scrolls ? WIDTH : 0;
  }

  // -- places ---------------------------------------------------------------------------------------------------------

  /** @param {number} x  Within the plot. */
  stepAt(x) {
    const { view, axis } = /** @type {Shown} */ (this.shown);
    const from = axis.of(view.from);
    return axis.back(from + (x / this.width) * (axis.of(view.to) - from));
  }

  /** @param {number} step */
  xOf(step) {
    const { view, axis } = /** @type {Shown} */ (this.shown);
    const from = axis.of(view.from);
    return ((axis.of(step) - from) / (axis.of(view.to) - from)) * this.width;
  }

  /** The row under the pointer; -1 if there is none. */
  get line() {
    return this.placed && this.gestures.pointer ? rowAt(this.placed, this.gestures.pointer.y + (this.scrolls ? this.scroll.scrollTop : 0)) : -1;
  }

  /** Row and column under the pointer, of a column that is thinned the one that is shown. */
  under() {
    const s = this.shown;
    if (!s || !s.slice || !this.gestures.pointer || !this.placed) return null;
    const row = this.line;
    const x = Math.floor(this.gestures.pointer.x);
    if (row < 0 || row >= s.slice.rows || x < 0 || x >= this.width) return null;
    const at = this.columns ?? columnsOf(s.slice, s.view, this.width, s.axis);
    this.columns = at;
    this.usual ??= middles(s.slice);
    const column = shown(s.slice, row, at.first[x], at.after[x], this.usual[row], s.scale);
    return column < 0 ? null : { row, column };
  }

  // -- painting -------------------------------------------------------------------------------------------------------

  paint() {
    const s = this.shown;
    if (!s) return;
    const wide = (this.wide = this.el.clientWidth);
    if (!wide) return;
    const { least = 2, most = 26, names } = this.options;
    const colors = theme();
    // What is selected is drawn over the rows, which stay as they are.
    const from = [s.rows, s.slice, s.scale, s.axis, s.view.from, s.view.to, s.room, s.flagged, wide, names, most, colors, this.paper.matches, window.devicePixelRatio];
    if (from.every((part, i) => part === this.painted[i])) {
      if (this.scrolls) this.mini.paint(s, /** @type {import("./layout.js").Layout} */ (this.placed), this.high, packed);
      return this.paintOver();
    }
    this.painted = from;
    this.placed = layout(s.rows, s.room, { least, most });
    this.columns = this.usual = undefined;
    this.width = Math.max(1, Math.floor(wide - names - 1 - this.beside));
    const height = Math.max(1, Math.min(this.placed.total, this.paper.matches ? PAPER : Math.max(s.room, 60)));
    this.high = Math.round(height);
    this.scroll.style.height = `${height}px`;
    this.tall.style.height = `${this.placed.total}px`;
    this.mini.el.hidden = !this.scrolls;
    this.paintRows();
    this.drawAxis(colors);
    this.paintOver();
    if (this.scrolls) this.mini.paint(s, this.placed, height, packed);
  }

  /** The lines in sight: the first, and the one after the last. Where all are, nothing is asked of the page, which would be laid out for it. */
  get inSight() {
    const placed = /** @type {import("./layout.js").Layout} */ (this.placed);
    const top = this.scrolls ? this.scroll.scrollTop : 0;
    return { top, from: lineAt(placed, top), to: Math.min(placed.tops.length, lineAt(placed, top + this.high) + 1) };
  }

  paintRows() {
    const s = /** @type {Shown} */ (this.shown);
    const placed = /** @type {import("./layout.js").Layout} */ (this.placed);
    const { names } = this.options;
    const colors = theme();
    const width = this.width;
    const { top, from, to } = this.inSight;
    const context = surface(this.base, names + width, this.high);
    context.translate(0, -top);
    if (s.slice && s.slice.columns && s.slice.rows === s.rows.length && to > from) {
      const fine = Math.round(width * (window.devicePixelRatio || 1));
      const bitmap = h("canvas", { width: fine, height: to - from });
      bitmap.getContext("2d").putImageData(image(s.slice, s.view, fine, s.scale, packed(colors.gap), packed(colors.text), s.axis, from, to), 0, 0);
      context.imageSmoothingEnabled = false;
      // Rows that follow each other without a heading are stretched together.
      for (let r = from; r < to; ) {
        let end = r + 1;
        if (s.rows[r].kind !== "open") {
          while (end < to && s.rows[end].kind !== "open") end++;
          context.drawImage(bitmap, 0, r - from, fine, end - r, names, placed.tops[r], width, (end - r) * placed.height);
        }
        r = end;
      }
      if (placed.height >= 8) {
        context.fillStyle = colors.surface;
        for (let r = from; r < to; r++) context.fillRect(names, placed.tops[r] + placed.heights[r] - 1, width, 1);
      }
    }
    if (names) labels(context, s, placed, names, colors, from, to, !!this.options.sparse);
  }

  scrolled() {
    if (!this.shown || !this.placed) return;
    this.paintRows();
    this.paintOver();
    this.mini.follow();
  }

  /** @param {any} colors */
  drawAxis(colors) {
    const s = /** @type {Shown} */ (this.shown);
    const { names } = this.options;
    const context = surface(this.axis, names + this.width, AXIS);
    context.font = colors.small;
    context.fillStyle = colors.muted;
    context.textBaseline = "top";
    if (names) context.fillText(s.axis.name, 2, 8);
    for (const { step, text } of s.axis.marks(s.view.from, s.view.to, Math.max(4, this.width / 90))) {
      const x = names + this.xOf(step);
      context.fillRect(x, 0, 1, 5);
      const w = context.measureText(text).width;
      context.fillText(text, Math.max(names, Math.min(names + this.width - w, x - w / 2)), 8);
    }
  }

  paintOver() {
    const s = this.shown;
    const placed = this.placed;
    if (!s || !placed || !this.wide) return;
    const { names } = this.options;
    const { drag, pointer } = this.gestures;
    const colors = theme();
    const width = this.width;
    const { top, from, to } = this.inSight;
    const height = this.high;
    const context = surface(this.over, names + width, height);
    const vertical = (/** @type {number} */ x, /** @type {string} */ color, /** @type {number} */ alpha) => tint(context, color, alpha, names + x - 0.5, top, 1, height);
    context.translate(0, -top);
    context.save();
    context.beginPath();
    context.rect(names, top, width, height);
    context.clip();
    for (const step of s.begins ?? []) vertical(this.xOf(step), colors.text, 0.35);
    for (const mark of s.marks) if (mark.row >= from && mark.row < to) drawMark(context, mark, placed, names, names + this.xOf(mark.from), names + this.xOf(mark.to), colors);
    if (s.step !== null) vertical(this.xOf(s.step), colors.accent, 1);
    if (drag) tint(context, colors.accent, 0.2, names + Math.min(drag.x, drag.now), top, Math.abs(drag.now - drag.x), height);
    if (this.pointed !== null) vertical(this.xOf(this.pointed), colors.text, 0.55);
    context.restore();
    const outline = (/** @type {number} */ row, /** @type {string} */ color, /** @type {number} */ thick) => {
      context.strokeStyle = color;
      context.lineWidth = thick;
      const y = Math.max(thick / 2, placed.tops[row] - 0.5);
      context.strokeRect(thick / 2, y, names + width - thick, Math.max(placed.tops[row] + placed.heights[row] - 0.5 - y, 3));
    };
    if (s.selected >= from && s.selected < to) outline(s.selected, colors.accent, 2);
    if (pointer && !drag) {
      const row = this.line;
      if (pointer.x >= 0) vertical(pointer.x, colors.text, 0.55);
      context.globalAlpha = 0.55;
      if (row >= 0 && row !== s.selected) outline(row, colors.text, 1);
      context.globalAlpha = 1;
    }
  }

  /** Point at a step that is looked at elsewhere. @param {number|null} step */
  point(step) {
    this.pointed = step;
    this.redraw();
  }

  /** Scroll the selected row into sight. */
  reveal() {
    const s = this.shown;
    if (!s || !this.placed || s.selected < 0 || s.selected >= this.placed.tops.length) return;
    const top = this.placed.tops[s.selected];
    const bottom = top + this.placed.heights[s.selected];
    if (top < this.scroll.scrollTop + 20) this.scroll.scrollTop = top - 20;
    else if (bottom > this.scroll.scrollTop + this.scroll.clientHeight) this.scroll.scrollTop = bottom + 20 - this.scroll.clientHeight;
  }
}

const packed = (/** @type {string} */ hex) => (255 << 24) | parseInt(hex.slice(5, 7) + hex.slice(3, 5) + hex.slice(1, 3), 16);
