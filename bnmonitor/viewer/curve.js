/** Curves: made smooth, and drawn. */

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

/**
 * Draw a curve in the color and width that are set, interrupted where it is not known.
 * @param {CanvasRenderingContext2D} context @param {number[]} steps @param {ArrayLike<number>} values
 * @param {(step: number) => number} x @param {(value: number) => number} y @param {boolean} log  Only what is above 0 has a place. @param {number[]} dash
 */
export function trace(context, steps, values, x, y, log, dash) {
  context.setLineDash(dash);
  context.beginPath();
  let pen = false;
  steps.forEach((step, i) => {
    const v = values[i];
    const known = Number.isFinite(v) && (!log || v > 0);
    if (known && pen) context.lineTo(x(step), y(v));
    else if (known) context.moveTo(x(step), y(v));
    pen = known;
  });
  context.stroke();
  context.setLineDash([]);
}

/** The place of the step that is nearest to another; -1 if there is none. @param {number[]} steps @param {number} step */
export function nearest(steps, step) {
  let best = steps.length ? 0 : -1;
  steps.forEach((s, i) => {
    if (Math.abs(s - step) < Math.abs(steps[best] - step)) best = i;
  });
  return best;
}
