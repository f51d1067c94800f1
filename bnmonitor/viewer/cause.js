/** The picture of an incident: what its findings measured, over the steps, with the limit as a line. */

import { STEPS } from "./axis.js";
import { Chart } from "./chart.js";
import { h } from "./dom.js";
import { rowOf } from "./layerview.js";
import { cut } from "./text.js";

/** @typedef {import("./types.js").Alert} Alert */
/** @typedef {import("./types.js").Statistic} Statistic */

const COLUMNS = 400;

/** The first finding, in causal order, that a recorded statistic shows. @param {Alert[]} evidence @param {Statistic[]} statistics @param {string[]} metrics */
export function visible(evidence, statistics, metrics) {
  for (const alert of evidence) {
    if (!alert.layer) continue;
    const known = statistics.filter((s) => metrics.includes(s.name));
    const judged = known.filter((s) => s.judged?.includes(alert.code));
    // Of two statistics with one rule it is the one that has the limit.
    const statistic = judged.find((s) => Object.values(s.limits).some((limit) => near(limit, Number(alert.threshold)))) ?? judged[0] ?? known.find((s) => s.seen?.includes(alert.code));
    if (statistic) return { alert, statistic };
  }
  return null;
}

const near = (/** @type {number} */ a, /** @type {number} */ b) => Math.abs(a - b) <= 1e-6 * Math.abs(b);

/**
 * The limit, if the statistic is what was compared with it: what was measured lies among what was recorded meanwhile.
 * @param {Alert} alert @param {Statistic} statistic @param {number[]} ends @param {Float32Array} values
 */
function limitOf(alert, statistic, ends, values) {
  const [measured, limit] = [Number(alert.value), Number(alert.threshold)];
  if (!statistic.judged?.includes(alert.code) || !Number.isFinite(measured) || !Number.isFinite(limit)) return null;
  const during = [...values].filter((v, i) => Number.isFinite(v) && ends[i] >= alert.first_step - (ends[1] - ends[0] || 1) && ends[i] <= alert.last_step);
  const slack = 0.25 * Math.abs(measured - limit) + 1e-6 * Math.abs(measured);
  return during.length && measured >= Math.min(...during) - slack && measured <= Math.max(...during) + slack ? limit : null;
}

/**
 * A place for the picture; it is filled when the numbers have come.
 * @param {import("./types.js").Source} source @param {import("./types.js").Run} run @param {import("./types.js").Incident} incident @param {Statistic[]} statistics  Of layers.
 */
export function picture(source, run, incident, statistics) {
  const found = visible(incident.evidence, statistics, run.metrics);
  if (!found) return null;
  const { alert, statistic } = found;
  const layer = String(alert.layer);
  const place = h("div", { class: "picture" });
  if (!run.layers.some((l) => l.name === layer)) return null;
  const fill = async () => {
    const slice = await source.layer(run.name, layer, null, COLUMNS).catch(() => null);
    if (!slice || !slice.columns) return;
    const share = statistic.scale === "share" ? 100 : 1;
    const values = rowOf(slice, statistic.name);
    const limit = limitOf(alert, statistic, slice.ends, values);
    const chart = new Chart({ label: `${statistic.label} of ${cut(layer, 30)}`, height: 96, hover: (step) => chart.at(step ?? incident.first_step) });
    place.replaceChildren(chart.el);
    const lines = [{ label: statistic.label, values: values.map((v) => share * v), style: "line", color: "accent" }];
    if (limit !== null) lines.push({ label: "limit", values: new Float32Array(slice.columns).fill(share * limit), style: "dashed", color: incident.severity });
    chart.set({ axis: STEPS, steps: slice.ends, step: incident.first_step, log: statistic.scale === "log", unit: share > 1 ? "%" : statistic.unit, view: { from: slice.before, to: slice.ends[slice.columns - 1] }, lines: /** @type {import("./chart.js").Line[]} */ (lines) });
  };
  fill();
  return place;
}
