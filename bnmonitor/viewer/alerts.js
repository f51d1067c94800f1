/** Alerts as the evidence of an incident, and as notes that no incident explains. */

import { h } from "./dom.js";
import { cut, grouped, number, severity } from "./text.js";

/** @typedef {import("./types.js").Alert} Alert */
/** @typedef {{layer: (name: string, step: number) => void, box: (alert: Alert) => (() => void)|null, page: (name: string) => void, picture: (incident: import("./types.js").Incident) => Element|null}} On */

const MANY = 16;

/** Since when, or from when to when. @param {{state: string, first_step: number, last_step: number}} it */
export const when = (it) => (it.state === "open" ? `since step ${grouped(it.first_step)}` : `step ${grouped(it.first_step)} to ${grouped(it.last_step)}`);

/** Alerts in the order given, each with its place, its numbers and its black box. @param {Alert[]} alerts @param {On} on */
export const evidence = (alerts, on) => h("ol", { class: "evidence" }, ...alerts.map((a) => h("li", {}, ...item(a, on))));

/** @param {Alert} a @param {On} on */
function item(a, on) {
  const open = on.box(a);
  const more = a.layers.length > 1 ? ` and ${a.layers.length - 1} more` : "";
  const channels = a.channels.length ? `, channels ${a.channels.slice(0, MANY).join(", ")}${a.channels.length > MANY ? ` (+${a.channels.length - MANY})` : ""}` : "";
  return [
    h("span", { class: "glyph", "aria-hidden": true }, severity(a.severity).glyph), " ", h("button", { class: "link", type: "button", title: `About ${a.code}`, onclick: () => on.page(a.code) }, h("b", {}, `${a.code} ${a.rule}`)), ` ${when(a)}${a.state === "open" ? "" : ", cleared"}`,
    h("div", {}, a.layer ? link(a.layer, () => on.layer(String(a.layer), a.first_step)) : "the whole model", more, channels),
    h("div", { class: "why" }, a.message),
    bullet(a),
    open && h("button", { type: "button", onclick: open }, "Open the black box"),
  ];
}

/** Notes that are open and that no incident explains, folded. @param {import("./types.js").Run} run @param {On} on @param {string} [layer] */
export function notes(run, on, layer) {
  const explained = new Set(run.incidents.flatMap((i) => i.evidence.map(keyOf)));
  const found = run.alerts.filter((a) => a.state === "open" && a.severity === "info" && !explained.has(keyOf(a)) && (!layer || a.layers.includes(layer)));
  return found.length ? h("details", { class: "notes" }, h("summary", {}, `${found.length} note${found.length > 1 ? "s" : ""}`), evidence(found, on)) : "";
}

const keyOf = (/** @type {Alert} */ a) => JSON.stringify([a.code, a.layer ?? a.message, a.first_step]);

/** @param {string} name @param {string} text */
export const fact = (name, text) => [h("dt", {}, name), h("dd", {}, text)];

/** @param {string} name @param {() => void} go */
export const link = (name, go) => h("button", { class: "link", type: "button", title: name, onclick: go }, cut(name, 34));

/** What was measured against its limit, as a bar with a mark; on a log scale if they are far apart. @param {Alert} alert */
function bullet(alert) {
  const [measured, limit] = [Number(alert.value), Number(alert.threshold)];
  const words = `measured ${number(alert.value)}, limit ${number(alert.threshold)}`;
  if (!(measured > 0) || !(limit > 0) || !Number.isFinite(measured / limit)) return h("div", { class: "why" }, words);
  const [low, high] = [Math.min(measured, limit), Math.max(measured, limit)];
  const log = high > 30 * low;
  const at = (/** @type {number} */ v) => (log ? (10 + 80 * (Math.log(v / low) / Math.log(high / low))) : (90 * v) / high);
  return h("div", { class: "bullet" },
    h("span", { class: "track", "aria-hidden": true }, h("i", { class: alert.severity, style: { width: `${at(measured)}%` } }), h("b", { style: { left: `${at(limit)}%` } })),
    h("span", { class: "why" }, words + (log ? ", log" : "")));
}
