/** Two runs as one map: how far the second lies above or below the first, at the same steps. */

/** @typedef {import("./types.js").Slice} Slice */
/** @typedef {import("./types.js").Statistic} Statistic */

/**
 * The statistic that a map of differences shows: of magnitudes the logarithm of their ratio, to base 10.
 * @param {Statistic} of @returns {Statistic}
 */
export function differing(of) {
  const log = of.scale === "log";
  const meaning = log ? `log₁₀ of the ratio of the ${of.label} of the second run to that of the first: 1 is tenfold.` : `${of.label} of the second run less that of the first.`;
  return { ...of, label: log ? `${of.label}, log₁₀ of the ratio` : `difference in ${of.label}`, unit: log ? "" : of.scale === "health" ? "" : of.unit, scale: "signed", limits: {}, meaning };
}

/**
 * The second less the first, over the columns of the one that has fewer steps; NaN where one of them is not known.
 * @param {Slice} first @param {Slice} second @param {string[]} rows  Names to show. @param {string[]} a  Rows of the first. @param {string[]} b  Rows of the second.
 * @param {Statistic} statistic  What the slices hold.
 * @returns {Slice}
 */
export function difference(first, second, rows, a, b, statistic) {
  const base = first.columns <= second.columns ? first : second;
  const { ends, before, columns } = base;
  const log = statistic.scale === "log";
  const values = new Float32Array(rows.length * columns).fill(NaN);
  const [x, y] = [columnsAt(first, ends), columnsAt(second, ends)];
  const known = [];
  const [rowA, rowB] = [a, b].map((names) => new Map(names.map((name, i) => [name, i])));
  for (let r = 0; r < rows.length; r++) {
    const [i, j] = [rowA.get(rows[r]), rowB.get(rows[r])];
    if (i === undefined || j === undefined || i >= first.rows || j >= second.rows) continue;
    for (let c = 0; c < columns; c++) {
      if (x[c] < 0 || y[c] < 0) continue;
      const [p, q] = [first.values[i * first.columns + x[c]], second.values[j * second.columns + y[c]]];
      const value = log ? Math.log10(q / p) : q - p;
      values[r * columns + c] = value;
      if (Number.isFinite(value)) known.push(Math.abs(value));
    }
  }
  known.sort((p, q) => p - q);
  const most = known[Math.floor(0.99 * (known.length - 1))] || known[known.length - 1] || 1;
  return { rows: rows.length, columns, ends, before, frames: columns, values, extent: [-most, most] };
}

/** The column of a slice that each step is in; -1 outside of it. @param {Slice} slice @param {number[]} steps */
export function columnsAt(slice, steps) {
  let c = 0;
  return steps.map((step) => {
    while (c < slice.columns && slice.ends[c] < step) c++;
    return c < slice.columns && step > slice.before ? c : -1;
  });
}
