/** Where the rows of a map lie: grouped by module path, as high as there is room. */

/**
 * @typedef {object} Layout
 * @property {Float64Array} tops  Of each row.
 * @property {number} height  Of a row.
 * @property {number} total
 * @property {string[]} labels  Of each row, without what its heading says.
 * @property {{top: number, label: string}[]} headings
 */

const HEADING = 18;

/**
 * How many parts of the path the headings take: as many as give few groups without splitting one.
 * @param {string[][]} paths
 */
function depth(paths) {
  const most = Math.max(2, Math.min(14, Math.floor(paths.length / 3)));
  let found = 0;
  for (let k = 1; k <= 6; k++) {
    let runs = 0;
    paths.forEach((p, i) => {
      if (!i || key(p, k) !== key(paths[i - 1], k)) runs++;
    });
    if (runs <= most) found = k;
    else break;
  }
  return found;
}

/** The group of a path: its first parts, but never the last one. @param {string[]} path @param {number} k */
const key = (path, k) => path.slice(0, Math.min(k, path.length - 1)).join(".");

/**
 * @param {string[]} names
 * @param {number} room  Height that would be nice to fill.
 * @param {{grouped: boolean, least: number, most: number}} options
 * @returns {Layout}
 */
export function layout(names, room, { grouped, least, most }) {
  const paths = names.map((name) => name.split("."));
  const k = grouped && names.length > 2 ? depth(paths) : 0;
  const keys = paths.map((p) => (k ? key(p, k) : ""));
  const begins = keys.map((one, i) => one !== "" && one !== keys[i - 1]);
  const headings = begins.filter(Boolean).length;
  const raw = (room - headings * HEADING) / Math.max(1, names.length);
  const height = Math.max(least, Math.min(most, raw >= 2 ? Math.floor(raw) : Math.floor(raw * 2) / 2));
  const tops = new Float64Array(names.length);
  /** @type {Layout["headings"]} */
  const labels = [];
  let y = 0;
  names.forEach((_, i) => {
    if (begins[i]) {
      labels.push({ top: y, label: keys[i] });
      y += HEADING;
    } else if (i && keys[i] === "" && keys[i - 1] !== "") y += 6;
    tops[i] = y;
    y += height;
  });
  return { tops, height, total: y, headings: labels, labels: names.map((name, i) => (keys[i] ? name.slice(keys[i].length + 1) : name)) };
}

/** The row at a height; -1 if there is no row. @param {Layout} placed @param {number} y */
export function rowAt(placed, y) {
  let low = 0;
  let high = placed.tops.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (placed.tops[middle] <= y) low = middle;
    else high = middle - 1;
  }
  return placed.tops.length && y >= placed.tops[low] && y < placed.tops[low] + placed.height ? low : -1;
}
