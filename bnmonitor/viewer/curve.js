/** Curves made smooth. */

/**
 * The running average of a curve, as TensorBoard smooths: what it was before counts by the weight, and the start is
 * not drawn to zero. Unknown values stay unknown.
 * @template {Float32Array|number[]} T
 * @param {T} values
 * @param {number} weight  From 0, as it is, to 1.
 * @returns {T|Float32Array}
 */
export function smooth(values, weight) {
  if (!(weight > 0)) return values;
  const out = new Float32Array(values.length).fill(NaN);
  let sum = 0;
  let mass = 0;
  for (let i = 0; i < values.length; i++) {
    const v = values[i];
    if (!Number.isFinite(v)) {
      out[i] = v;
      continue;
    }
    sum = weight * sum + (1 - weight) * v;
    mass = weight * mass + (1 - weight);
    out[i] = sum / mass;
  }
  return out;
}
