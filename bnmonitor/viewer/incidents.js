/** Incidents, one a root cause: as a list, one of them in full, and the verdict on a run. */

import { evidence, link, when } from "./alerts.js";
import { h } from "./dom.js";
import { copy } from "./out.js";
import { count, cut, grouped, severity } from "./text.js";

/** @typedef {import("./types.js").Incident} Incident */

/** Open before resolved, the worst first, then by when they began. @param {Incident[]} incidents */
export const ranked = (incidents) =>
  [...incidents].sort((a, b) => Number(b.state === "open") - Number(a.state === "open") || severity(b.severity).rank - severity(a.severity).rank || a.first_step - b.first_step || a.index - b.index);

/** The steps in which an incident affects a layer. @param {Incident} incident @param {string} layer @param {number} last  The run's last step. */
export function spanOf(incident, layer, last) {
  const begins = incident.evidence.filter((a) => a.layers.includes(layer)).map((a) => a.first_step);
  return { from: begins.length ? Math.min(...begins) : incident.first_step, to: incident.state === "open" ? last : incident.last_step };
}

/** The layers that are affected, in words. @param {Incident} i */
export function where(i) {
  if (i.layer === null) return "the whole model";
  if (i.layers.length < 2) return cut(i.layer, 44);
  return `${extent(i)}, first ${cut(i.layer, 34)}`;
}

/** How bad, and since when. @param {Incident} i */
const stamp = (i) => `${i.severity}${i.state === "open" ? "" : ", resolved"} · ${when(i)}`;

const extent = (/** @type {Incident} */ i) => `${grouped(i.layers.length)}${i.of_layers >= i.layers.length ? ` of ${grouped(i.of_layers)}` : ""} layers`;

/** Is it healthy, and if not, what is the worst, in one line. @param {import("./types.js").Run} run */
export function verdict(run) {
  const [worst, ...others] = ranked(run.incidents).filter((i) => i.state === "open");
  const step = h("small", {}, ` · step ${grouped(run.steps[1])}`);
  if (!worst) return h("div", { class: "verdict healthy" }, h("b", {}, "✓"), ` healthy, ${count(run.layers.length, "layer")}`, step);
  const affected = worst.layer === null ? "" : ` (${worst.layers.length > 1 ? extent(worst) : cut(worst.layer, 36)})`;
  const more = others.length ? `, ${count(others.length, "more incident")}` : "";
  const said = `${worst.title}, since step ${grouped(worst.first_step)}${affected}${more}`;
  return h("div", { class: `verdict ${worst.severity}`, title: said }, h("b", {}, severity(worst.severity).glyph), ` ${said}`, step);
}

/** @param {Incident[]} incidents @param {string} selected @param {(incident: Incident) => void} select */
export function list(incidents, selected, select) {
  if (!incidents.length) return h("p", { class: "quiet" }, "No incident so far.");
  return h("ol", { class: "incidents" }, ...ranked(incidents).map((i) => h("li", {}, row(i, String(i.index) === selected, select))));
}

/** @param {Incident} i @param {boolean} selected @param {(incident: Incident) => void} select */
function row(i, selected, select) {
  return h(
    "button",
    { class: `incident ${i.severity} ${i.state}`, type: "button", "aria-pressed": selected, title: i.layer ?? "", onclick: () => select(i) },
    h("span", { class: "glyph", "aria-hidden": true }, severity(i.severity).glyph),
    h("span", { class: "what" }, h("b", {}, i.title)),
    h("span", { class: "when" }, stamp(i)),
    h("span", { class: "where" }, where(i)),
    h("span", { class: "why" }, i.detail),
    i.state === "open" && i.advice ? h("span", {}, h("b", {}, "Fix"), ` ${i.advice}`) : null,
  );
}

/**
 * One incident in full: cause, since when, where, its numbers, the fix, and what was found, in causal order.
 * @param {Incident} i
 * @param {import("./alerts.js").On} on
 */
export function card(i, on) {
  const safe = /^https?:\/\//.test(i.url);
  const open = i.evidence.map((a) => on.box(a)).find(Boolean);
  return h(
    "article",
    { class: `card ${i.severity} ${i.state}` },
    h("h3", {}, h("span", { class: "glyph", "aria-hidden": true }, severity(i.severity).glyph), ` ${i.title}`),
    h("p", {}, `${stamp(i)} · `, i.layer && i.layers.length > 1 ? `${extent(i)}, first ` : "", i.layer ? link(i.layer, () => on.layer(String(i.layer), i.first_step)) : "the whole model"),
    i.detail ? h("p", {}, i.detail) : null,
    on.picture(i),
    h("div", { class: "fix" }, h("p", {}, h("b", {}, "Fix"), " ", i.advice), copied(i.advice)),
    h("details", { class: "behind" }, h("summary", {}, `${count(i.evidence.length, "finding")} behind it${i.evidence.length > 1 ? ", in causal order" : ""}`), evidence(i.evidence, on)),
    h("p", { class: "more" }, open && h("button", { type: "button", onclick: open }, "Open the black box"), h("button", { type: "button", onclick: () => on.page(i.cause) }, "What it means"), safe && h("a", { href: i.url, target: "_blank", rel: "noopener noreferrer", title: i.url }, `${i.code} ↗`)),
  );
}

/** A button that copies a text, and says so. @param {string} text */
function copied(text) {
  const button = h("button", { class: "copy", type: "button", "aria-label": "copy the fix", onclick: async () => {
    button.textContent = (await copy(text)) ? "Copied" : "Not allowed";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  } }, "Copy");
  return button;
}
