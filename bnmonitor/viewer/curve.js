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
 * Draw a curve in the color and width that are set, interrupted where it is not known. What is out of sight is left out:
 * a dashed line that goes on far beyond the plot would take longer than all else.
 * @param {CanvasRenderingContext2D} context @param {number[]} steps @param {ArrayLike<number>} values
 * @param {(step: number) => number} x  Rising. @param {(value: number) => number} y @param {boolean} log  Only what is above 0 has a place. @param {number[]} dash
 * @param {number} left  What is in sight. @param {number} right
 */
export function trace(context, steps, values, x, y, log, dash, left, right) {
  context.setLineDash(dash);
  context.beginPath();
  let pen = false;
  let joined = false;
  let fromX = 0;
  let fromY = 0;
  for (let i = 0; i < steps.length; i++) {
    const v = values[i];
    const known = Number.isFinite(v) && (!log || v > 0);
    const toX = known ? x(steps[i]) : 0;
    const toY = known ? y(v) : 0;
    const seen = known && pen && toX >= left && fromX <= right;
    if (seen) {
      const at = (/** @type {number} */ edge) => fromY + ((edge - fromX) / (toX - fromX)) * (toY - fromY);
      if (fromX < left) context.moveTo(left, at(left));
      else if (!joined) context.moveTo(fromX, fromY);
      if (toX > right) context.lineTo(right, at(right));
      else context.lineTo(toX, toY);
    }
    pen = known;
    joined = seen;
    fromX = toX;
    fromY = toY;
  }
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
