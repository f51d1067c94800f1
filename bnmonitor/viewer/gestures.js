/** What the pointer, the wheel and the keys do on a map. */

import { h } from "./dom.js";

/** @typedef {import("./heatmap.js").Shown} Shown */

export class Gestures {
  /** @param {import("./heatmap.js").HeatMap} map */
  constructor(map) {
    this.map = map;
    /** @type {{x: number, y: number}|null} Within the plot. */
    this.pointer = null;
    /** @type {{x: number, now: number}|null} */
    this.drag = null;
    const { el, over } = map;
    el.addEventListener("keydown", (/** @type {KeyboardEvent} */ e) => this.key(e));
    el.addEventListener("wheel", (/** @type {WheelEvent} */ e) => this.wheel(e), { passive: false });
    over.addEventListener("pointermove", (/** @type {PointerEvent} */ e) => this.move(e));
    over.addEventListener("pointerleave", () => this.leave());
    over.addEventListener("pointerdown", (/** @type {PointerEvent} */ e) => this.down(e));
    over.addEventListener("pointerup", (/** @type {PointerEvent} */ e) => this.up(e));
    over.addEventListener("dblclick", () => map.options.zoom(null));
  }

  /** @param {PointerEvent} e */
  move(e) {
    const box = this.map.over.getBoundingClientRect();
    this.pointer = { x: e.clientX - box.left - this.map.options.names, y: e.clientY - box.top };
    if (this.drag) this.drag.now = Math.max(0, Math.min(this.map.width, this.pointer.x));
    this.map.redraw();
    this.hover(e.clientX, e.clientY);
  }

  /** @param {number} clientX @param {number} clientY */
  hover(clientX, clientY) {
    const at = this.drag ? null : this.map.under();
    const s = this.map.shown;
    this.map.tip.hidden = !at;
    this.map.options.hover?.(at && s?.slice ? s.slice.ends[at.column] : null, at ? at.row : -1);
    if (!at || !s) return;
    this.map.tip.replaceChildren(...s.describe(at.row, at.column).map((line, i) => h("div", { class: i ? "" : "tip-head" }, line)));
    const box = this.map.el.getBoundingClientRect();
    const x = clientX - box.left;
    const y = clientY - box.top;
    this.map.tip.style.left = `${Math.max(0, x + 14 + this.map.tip.offsetWidth > box.width ? x - this.map.tip.offsetWidth - 14 : x + 14)}px`;
    this.map.tip.style.top = `${y + 18 + this.map.tip.offsetHeight > box.height + 40 ? Math.max(0, y - this.map.tip.offsetHeight - 10) : y + 18}px`;
  }

  leave() {
    if (this.drag) return;
    this.pointer = null;
    this.map.tip.hidden = true;
    this.map.options.hover?.(null, -1);
    this.map.redraw();
  }

  /** @param {PointerEvent} e */
  down(e) {
    if (e.button !== 0 || !this.map.shown) return;
    this.move(e);
    const x = this.pointer?.x ?? 0;
    if (x >= 0) {
      this.drag = { x, now: x };
      this.map.over.setPointerCapture(e.pointerId);
    }
  }

  /** @param {PointerEvent} e */
  up(e) {
    const drag = this.drag;
    this.drag = null;
    if (!this.map.shown || !this.map.placed || e.button !== 0) return;
    if (drag && Math.abs(drag.now - drag.x) > 4) {
      this.map.options.zoom({ from: this.map.stepAt(Math.min(drag.x, drag.now)), to: this.map.stepAt(Math.max(drag.x, drag.now)) });
      return;
    }
    const at = this.map.under();
    const row = this.map.line;
    if (row < 0) return;
    const { kind } = this.map.shown.rows[row];
    const { select, toggle, open } = this.map.options;
    const step = at && this.map.shown.slice ? this.map.shown.slice.ends[at.column] : null;
    if (kind === "open" || (kind === "folded" && (!at || !open))) toggle?.(row);
    else if (kind === "folded" && at) open?.(row, step, at.column);
    else select(row, step);
  }

  /** @param {WheelEvent} e */
  wheel(e) {
    const s = this.map.shown;
    if (!s) return;
    this.map.tip.hidden = true;
    const sideways = e.shiftKey ? e.deltaY || e.deltaX : e.deltaX;
    if (e.ctrlKey || e.metaKey) {
      e.preventDefault();
      this.scale(Math.exp(Math.max(-60, Math.min(60, e.deltaY)) / 150), this.pointer && this.pointer.x >= 0 ? this.map.stepAt(this.pointer.x) : null);
    } else if (sideways && s.view.to - s.view.from < s.full.to - s.full.from) {
      e.preventDefault();
      this.pan(sideways / this.map.width);
    }
  }

  /** @param {number} factor  Of the width of the view. @param {number|null} about  Step that stays where it is. */
  scale(factor, about) {
    const { view, full, axis } = /** @type {Shown} */ (this.map.shown);
    const [start, end] = [axis.of(view.from), axis.of(view.to)];
    const middle = about === null ? (start + end) / 2 : axis.of(about);
    const from = Math.max(full.from, axis.back(middle - (middle - start) * factor));
    const to = Math.min(full.to, axis.back(middle + (end - middle) * factor));
    if (to - from >= Math.min(4, full.to - full.from)) this.map.options.zoom(from <= full.from && to >= full.to ? null : { from, to });
  }

  /** @param {number} part  Of the width of the view. */
  pan(part) {
    const { view, full } = /** @type {Shown} */ (this.map.shown);
    const width = view.to - view.from;
    const from = Math.max(full.from, Math.min(full.to - width, view.from + part * width));
    this.map.options.zoom({ from, to: from + width });
  }

  /** @param {KeyboardEvent} e */
  key(e) {
    const s = this.map.shown;
    if (!s || e.altKey || e.ctrlKey || e.metaKey) return;
    const rows = s.rows.length;
    const steps = s.slice?.ends ?? [];
    const at = s.step === null ? steps.length - 1 : steps.findIndex((end) => end >= /** @type {number} */ (s.step));
    const go = (/** @type {number} */ by) => steps.length && this.map.options.select(s.selected, steps[Math.max(0, Math.min(steps.length - 1, (at < 0 ? steps.length - 1 : at) + by))]);
    /** @type {Record<string, () => unknown>} */
    const does = {
      ArrowDown: () => this.map.options.select(Math.min(rows - 1, s.selected + 1), s.step),
      ArrowUp: () => this.map.options.select(Math.max(0, s.selected - 1), s.step),
      ArrowLeft: () => (e.shiftKey ? this.pan(-0.2) : go(-1)),
      ArrowRight: () => (e.shiftKey ? this.pan(0.2) : go(1)),
      "+": () => this.scale(0.6, s.step),
      "=": () => this.scale(0.6, s.step),
      "-": () => this.scale(1 / 0.6, s.step),
      0: () => this.map.options.zoom(null),
      Home: () => this.map.options.select(0, s.step),
      End: () => this.map.options.select(rows - 1, s.step),
      Enter: () => this.toggle(),
      " ": () => this.toggle(),
    };
    if (!(e.key in does)) return;
    e.preventDefault();
    e.stopPropagation();
    does[e.key]();
    this.map.reveal();
  }

  /** Fold or unfold the selected group. */
  toggle() {
    const s = /** @type {Shown} */ (this.map.shown);
    if (s.rows[s.selected] && s.rows[s.selected].kind !== "layer") this.map.options.toggle?.(s.selected);
  }
}
