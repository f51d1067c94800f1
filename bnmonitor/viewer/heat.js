/** Paints a matrix: columns of steps onto pixels so that no spike is lost, rows onto lines. */

/**
 * For each pixel the first column that it shows, and the column after its last; equal if it shows none.
 * @param {import("./types.js").Slice} slice
 * @param {import("./types.js").Range} view
 * @param {number} width
 * @param {import("./axis.js").Axis} axis
 */
export function columnsOf(slice, view, width, axis) {
  const first = new Int32Array(width);
  const after = new Int32Array(width);
  const { ends, before, columns } = slice;
  const start = axis.of(view.from);
  const span = (axis.of(view.to) - start) / width;
  let c = 0;
  let high = view.from;
  for (let x = 0; x < width; x++) {
    const low = high;
    high = axis.back(start + (x + 1) * span);
    while (c < columns && ends[c] <= low) c++;
    first[x] = c;
    let last = c;
    // Every column that begins within the pixel belongs to it.
    while (last < columns && (last ? ends[last - 1] : before) < high) last++;
    after[x] = last;
  }
  return { first, after };
}

/** @type {WeakMap<import("./types.js").Slice, Float32Array>} */
const known = new WeakMap();

/** The usual value of each row: its median. @param {import("./types.js").Slice} slice */
export function middles(slice) {
  const found = known.get(slice) ?? medians(slice);
  known.set(slice, found);
  return found;
}

/** @param {import("./types.js").Slice} slice */
function medians(slice) {
  const { rows, columns, values } = slice;
  const out = new Float32Array(rows);
  const every = Math.max(1, Math.floor(columns / 256));
  for (let r = 0; r < rows; r++) {
    const some = new Float32Array(Math.ceil(columns / every));
    let n = 0;
    for (let c = r * columns; c < (r + 1) * columns; c += every) if (Number.isFinite(values[c])) some[n++] = values[c];
    out[r] = n ? some.subarray(0, n).sort()[(n - 1) >> 1] : 0;
  }
  return out;
}

/**
 * The column of a row that a pixel shows: of several the one furthest from the row's usual value.
 * @param {import("./types.js").Slice} slice
 * @param {number} row @param {number} first @param {number} after @param {number} usual @param {import("./scale.js").Scale} scale
 */
export function shown(slice, row, first, after, usual, scale) {
  if (after <= first) return -1;
  const { log, lowest } = scale;
  const at = row * slice.columns;
  let best = first;
  let most = -1;
  for (let c = first; c < after; c++) {
    const v = slice.values[at + c];
    if (v !== v) continue; // not known
    const away = lowest ? 1e6 - v : !Number.isFinite(v) ? Infinity : log ? Math.abs(Math.log(Math.abs(v) / Math.abs(usual || 1))) : Math.abs(v - usual);
    if (away > most) {
      best = c;
      most = away;
    }
  }
  return best;
}

/**
 * One pixel per column of the screen and per row, as an image to be stretched.
 * @param {import("./types.js").Slice} slice
 * @param {import("./types.js").Range} view
 * @param {number} width
 * @param {import("./scale.js").Scale} scale
 * @param {number} missing  Color of what is not known.
 * @param {number} infinite  Color of what is not finite.
 * @param {import("./axis.js").Axis} axis
 * @param {number} [from]  First row. @param {number} [to]  Row after the last.
 */
export function image(slice, view, width, scale, missing, infinite, axis, from = 0, to = slice.rows) {
  const out = new ImageData(width, Math.max(1, to - from));
  const pixels = new Uint32Array(out.data.buffer);
  const { first, after } = columnsOf(slice, view, width, axis);
  // The usual values choose among the columns of a pixel, where there are several; of health the lowest is shown.
  const usual = !scale.lowest && after.some((end, x) => end - first[x] > 1) ? middles(slice) : null;
  const { colors, place } = scale;
  for (let r = from; r < to; r++) {
    const line = (r - from) * width;
    let last = -1;
    let color = missing;
    for (let x = 0; x < width; x++) {
      if (after[x] <= first[x]) continue; // transparent: no step was logged there
      const c = after[x] - first[x] === 1 ? first[x] : shown(slice, r, first[x], after[x], usual ? usual[r] : 0, scale);
      if (c !== last) {
        last = c;
        const v = slice.values[r * slice.columns + c];
        const t = place(v);
        color = Number.isNaN(v) ? missing : !Number.isFinite(v) ? infinite : colors[t <= 0 ? 0 : t >= 1 ? 255 : (t * 255 + 0.5) | 0];
      }
      pixels[line + x] = color;
    }
  }
  return out;
}
