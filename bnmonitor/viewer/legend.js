/** A color scale with its numbers and unit. */

import { h } from "./dom.js";
import { css } from "./scale.js";
import { measured, number, severity } from "./text.js";

/**
 * @param {import("./scale.js").Scale} scale @param {import("./types.js").Statistic} statistic @param {boolean} [small]
 * @param {Set<string>} [severities]  Of the incidents of the runs that are shown: only these stand in the legend.
 */
export function legend(scale, statistic, small = false, severities = new Set()) {
  if (statistic.scale === "health") return health(scale, statistic, severities);
  const stops = Array.from({ length: 33 }, (_, i) => css(scale, i / 32)).join(", ");
  const ticks = scale.ticks.map((t) => ({ at: scale.place(t), text: statistic.scale === "share" ? measured(t, statistic) : number(t) })).filter((t, i, all) => t.at >= -0.01 && t.at <= 1.01 && (!small || all.length < 4 || i % 2 === 0));
  return h(
    "div",
    { class: `legend${small ? " small" : ""}`, title: statistic.meaning },
    h("div", { class: "ramp", style: { background: `linear-gradient(90deg, ${stops})` } }),
    ...ticks.map((t) => h("span", { class: "tick", style: { left: `${100 * t.at}%` } }, t.text)),
    statistic.unit ? h("span", { class: "unit" }, statistic.unit) : null,
  );
}

/** @param {import("./scale.js").Scale} scale @param {import("./types.js").Statistic} statistic @param {Set<string>} severities */
function health(scale, statistic, severities) {
  const color = (/** @type {number} */ value) => css(scale, scale.place(value));
  const bands = ["error", "warning"].filter((s) => severities.has(s)).map((s) => ({ color: color(statistic.limits[s]), text: `${severity(s).glyph} ${s}` }));
  return h(
    "div",
    { class: "bands", title: statistic.meaning },
    ...[...bands, { color: color(statistic.limits.near), text: "near its limit" }, { color: color(100), text: "healthy" }].map((b) => h("span", { class: "band-key" }, h("i", { style: { background: b.color } }), b.text)),
  );
}
