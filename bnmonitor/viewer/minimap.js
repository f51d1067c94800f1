/** All lines of a map that does not fit, beside it: each pixel shows the worst of its lines. Drag it to scroll. */

import { h, surface, theme } from "./dom.js";
import { fold } from "./folded.js";
import { image } from "./heat.js";

export const WIDTH = 44;
const GAP = 6;

export class MiniMap {
  /** @param {HTMLElement} scroll  What it scrolls. */
  constructor(scroll) {
    this.scroll = scroll;
    this.canvas = h("canvas", { "aria-hidden": true });
    this.frame = h("div", { class: "mini-frame" });
    this.el = h("div", { class: "mini", hidden: true, title: "All layers; drag to scroll" }, this.canvas, this.frame);
    const to = (/** @type {PointerEvent} */ e) => {
      const box = this.canvas.getBoundingClientRect();
      scroll.scrollTop = ((e.clientY - box.top) / box.height) * scroll.scrollHeight - scroll.clientHeight / 2;
    };
    this.el.addEventListener("pointerdown", (/** @type {PointerEvent} */ e) => {
      this.el.setPointerCapture(e.pointerId);
      to(e);
    });
    this.el.addEventListener("pointermove", (/** @type {PointerEvent} */ e) => {
      if (e.buttons & 1) to(e);
    });
  }

  /**
   * @param {import("./heatmap.js").Shown} s @param {import("./layout.js").Layout} placed @param {number} height
   * @param {(hex: string) => number} packed
   */
  paint(s, placed, height, packed) {
    const colors = theme();
    const width = WIDTH - GAP;
    const context = surface(this.canvas, width, height);
    const { slice } = s;
    if (!slice || !slice.columns) return;
    const lines = Math.max(1, Math.floor(height));
    /** @type {number[][]} */
    const members = Array.from({ length: lines }, () => []);
    s.rows.forEach((row, i) => {
      if (row.kind === "open") return;
      const last = Math.min(lines - 1, Math.ceil(((placed.tops[i] + placed.heights[i]) / placed.total) * lines) - 1);
      for (let y = Math.floor((placed.tops[i] / placed.total) * lines); y <= last; y++) members[y].push(i);
    });
    const rows = members.map((its) => /** @type {import("./rows.js").Row} */ ({ id: "", kind: its.length === 1 ? "layer" : "folded", label: "", depth: 0, members: its }));
    const folded = fold(slice, rows, Int32Array.from(s.rows, (_, i) => i), s.statistic);
    const bitmap = h("canvas", { width, height: lines });
    bitmap.getContext("2d").putImageData(image(folded.slice, s.view, width, s.scale, packed(colors.gap), packed(colors.text), s.axis), 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(bitmap, 0, 0, width, height);
    for (const mark of s.marks) {
      context.fillStyle = colors[/** @type {"error"} */ (mark.severity)] ?? colors.info;
      if (mark.first) context.fillRect(width - 4, (placed.tops[mark.row] / placed.total) * height - 2, 4, 4);
    }
    if (s.selected >= 0 && s.selected < placed.tops.length) {
      context.fillStyle = colors.accent;
      context.fillRect(0, (placed.tops[s.selected] / placed.total) * height - 1, width, 3);
    }
    this.follow();
  }

  /** Show which part is in sight. */
  follow() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroll;
    const height = this.canvas.clientHeight;
    this.frame.style.top = `${(scrollTop / scrollHeight) * height}px`;
    this.frame.style.height = `${Math.max(6, (clientHeight / scrollHeight) * height)}px`;
  }
}
