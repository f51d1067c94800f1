/** Where the lines of a map lie: as high as there is room, and never so low that a name is illegible. */

import { HEADING } from "./rows.js";

/**
 * @typedef {object} Layout
 * @property {Float64Array} tops  Of each line.
 * @property {Float64Array} heights
 * @property {number} height  Of a line with numbers.
 * @property {number} total
 */

/**
 * @param {import("./rows.js").Row[]} rows
 * @param {number} room  Height that would be nice to fill.
 * @param {{least: number, most: number}} options
 * @returns {Layout}
 */
export function layout(rows, room, { least, most }) {
  const headings = rows.filter((row) => row.kind === "open").length;
  const raw = (room - headings * HEADING) / Math.max(1, rows.length - headings);
  const height = Math.max(least, Math.min(most, raw >= 2 ? Math.floor(raw) : Math.floor(raw * 2) / 2));
  const tops = new Float64Array(rows.length);
  const heights = new Float64Array(rows.length);
  let y = 0;
  rows.forEach((row, i) => {
    tops[i] = y;
    heights[i] = row.kind === "open" ? HEADING : height;
    y += heights[i];
  });
  return { tops, heights, height, total: y };
}

/** The line at a height; -1 if there is none. @param {Layout} placed @param {number} y */
export function rowAt(placed, y) {
  const i = lineAt(placed, y);
  return placed.tops.length && y >= placed.tops[i] && y < placed.tops[i] + placed.heights[i] ? i : -1;
}

/** The last line that begins above a height, or the first one. @param {Layout} placed @param {number} y */
export function lineAt(placed, y) {
  let low = 0;
  let high = placed.tops.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (placed.tops[middle] <= y) low = middle;
    else high = middle - 1;
  }
  return low;
}
