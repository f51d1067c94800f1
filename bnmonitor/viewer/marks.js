/** Names beside the rows of a map, and the marks of incidents on them. */

import { severity, shorten, unlike } from "./text.js";

/** Width of the step from a heading to what stands under it. */
export const INDENT = 10;

/** What the name of a row says: of a group whether it is folded, and how many layers it has. @param {import("./rows.js").Row} row */
export const nameOf = (row) => (row.kind === "layer" ? row.label : `${row.kind === "open" ? "▾" : "▸"} ${row.label} (${row.members.length})`);

/**
 * Names of the rows from one to another.
 * @param {CanvasRenderingContext2D} context @param {import("./heatmap.js").Shown} s @param {import("./layout.js").Layout} placed
 * @param {number} names  Width for them. @param {any} colors @param {number} from @param {number} to @param {boolean} sparse
 */
export function labels(context, s, placed, names, colors, from, to, sparse) {
  const every = placed.height >= 10 ? 1 : sparse ? Math.ceil(14 / placed.height) : 0;
  const tall = placed.height < 10 && sparse ? 11 : 0;
  context.textBaseline = "middle";
  context.font = placed.height >= 12 ? colors.small : colors.small.replace("11px", "10px");
  const fits = (/** @type {number} */ most) => (/** @type {string} */ text) => context.measureText(text).width <= most;
  const own = s.rows.filter((row) => row.kind === "layer").map((row) => row.label);
  const short = sparse ? String : unlike(own);
  // Channels of an incident have a mark, and their names come before those of others.
  const taken = [];
  for (const [i, of] of [...(s.flagged ?? [])].sort((a, b) => a[0] - b[0])) {
    if (i < from || i >= to) continue;
    const y = Math.max(6, placed.tops[i] + placed.heights[i] / 2);
    context.fillStyle = colors[of] ?? colors.info;
    context.fillRect(names - 5, placed.tops[i] + 0.5, 4, Math.max(2, placed.height - 2));
    if (tall && taken.length && y - taken[taken.length - 1] < tall) continue;
    taken.push(y);
    context.textAlign = "right";
    context.fillText(`${severity(of).glyph} ${s.rows[i].label}`, names - 8, y);
    context.textAlign = "left";
  }
  for (let i = from; i < to; i++) {
    const row = s.rows[i];
    const left = 2 + row.depth * INDENT;
    const y = Math.max(6, placed.tops[i] + placed.heights[i] / 2) + (row.kind === "open" ? 1 : 0);
    if (row.kind === "layer") {
      if (!every || i % every || s.flagged?.has(i) || (tall && taken.some((at) => Math.abs(at - y) < tall))) continue;
      const room = names - 10 - left;
      context.fillStyle = every > 1 ? colors.muted : colors.text;
      context.textAlign = "right";
      context.fillText(shorten(fits(room)(row.label) ? row.label : short(row.label), fits(room)), names - 8, y);
      context.textAlign = "left";
    } else {
      context.fillStyle = row.kind === "open" ? colors.muted : colors.text;
      // The number of layers stays whole, whatever the name.
      const count = ` (${row.members.length})`;
      const text = shorten(nameOf(row).slice(0, -count.length), fits(names - 10 - left - context.measureText(count).width));
      context.fillText(text + count, left, y);
    }
  }
}

/** @param {CanvasRenderingContext2D} context @param {import("./heatmap.js").Mark} mark @param {import("./layout.js").Layout} placed @param {number} left @param {number} from @param {number} until @param {any} colors */
export function drawMark(context, mark, placed, left, from, until, colors) {
  const height = placed.heights[mark.row];
  const y = placed.tops[mark.row] + height / 2;
  const to = Math.max(from + 1, until);
  const color = colors[mark.severity] ?? colors.info;
  context.fillStyle = color;
  if (height >= 6) context.fillRect(from, placed.tops[mark.row] + height - 3, to - from, 2);
  // At the edge the sign stays whole, unless the place is out of sight.
  if (!mark.first || from < left - 1) return;
  glyph(context, mark.severity, Math.max(left + 8, from), y, Math.max(5, Math.min(7, height / 2)), colors);
}

/** The sign of a severity in a disk, in strokes: a font that has it may have to be looked for. @param {CanvasRenderingContext2D} context @param {string} of @param {number} x @param {number} y @param {number} size @param {any} colors */
export function glyph(context, of, x, y, size, colors) {
  context.beginPath();
  context.arc(x, y, size + 1.5, 0, 7);
  context.fillStyle = colors.surface;
  context.fill();
  context.beginPath();
  context.arc(x, y, size, 0, 7);
  context.fillStyle = colors[of] ?? colors.info;
  context.fill();
  const sign = severity(of).glyph;
  const [arm, dot] = [size * 0.45, { "!": 0.5, "·": 0 }[sign]];
  context.strokeStyle = context.fillStyle = colors.surface;
  context.lineWidth = Math.max(1.4, size * 0.3);
  context.beginPath();
  if (sign === "✗") for (const way of [arm, -arm]) line(context, x - way, y - arm, x + way, y + arm);
  if (sign === "!") line(context, x, y - size * 0.65, x, y + size * 0.12);
  context.stroke();
  context.beginPath();
  if (dot !== undefined) context.arc(x, y + size * dot, context.lineWidth * 0.6, 0, 7);
  context.fill();
}

/** @param {CanvasRenderingContext2D} context @param {number} x @param {number} y @param {number} toX @param {number} toY */
function line(context, x, y, toX, toY) {
  context.moveTo(x, y);
  context.lineTo(toX, toY);
}
