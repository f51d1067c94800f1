/** A color scale with its numbers and unit. */

import { h } from "./dom.js";
import { css } from "./scale.js";
import { measured, number } from "./text.js";

/** @param {import("./scale.js").Scale} scale @param {import("./types.js").Statistic} statistic @param {boolean} [small] */
export function legend(scale, statistic, small = false) {
  const stops = Array.from({ length: 33 }, (_, i) => css(scale, i / 32)).join(", ");
  const words = statistic.scale === "health" ? /** @type {Record<number, string>} */ ({ 0: "", [statistic.limits.error]: "error", [statistic.limits.warning]: "warning", 100: "healthy" }) : {};
  const ticks = scale.ticks.map((t) => ({ at: scale.place(t), text: words[t] ?? (statistic.scale === "share" ? measured(t, statistic) : number(t)) })).filter((t) => t.text && t.at >= -0.01 && t.at <= 1.01);
  return h(
    "div",
    { class: `legend${small ? " small" : ""}`, title: statistic.meaning },
    h("div", { class: "ramp", style: { background: `linear-gradient(90deg, ${stops})` } }),
    ...ticks.map((t) => h("span", { class: "tick", style: { left: `${100 * t.at}%` } }, t.text)),
    statistic.unit ? h("span", { class: "unit" }, statistic.unit) : null,
  );
}
