/** Alerts as a list, as a time line, and one of them in full. */

import { h } from "./dom.js";
import { keyOf } from "./view_state.js";
import { count, cut, grouped, number, severity } from "./text.js";

/** @typedef {import("./types.js").Alert} Alert */
/** @typedef {import("./types.js").Range} Range */

const HOUR = (/** @type {Alert} */ a) => (a.state === "open" ? `since step ${grouped(a.first_step)}` : `step ${grouped(a.first_step)} to ${grouped(a.last_step)}`);

/** The worst first, open before cleared, then by when they began. @param {Alert[]} alerts */
export const ranked = (alerts) =>
  [...alerts].sort((a, b) => Number(b.state === "open") - Number(a.state === "open") || severity(b.severity).rank - severity(a.severity).rank || a.first_step - b.first_step);

/** Is it healthy, in one line. @param {import("./types.js").Run} run */
export function verdict(run) {
  const open = run.alerts.filter((a) => a.state === "open");
  const of = (/** @type {string} */ s) => open.filter((a) => a.severity === s).length;
  const found = [of("error") && count(of("error"), "error"), of("warning") && count(of("warning"), "warning")].filter(Boolean);
  const worst = of("error") ? "error" : of("warning") ? "warning" : "healthy";
  const where = `${count(run.layers.length, "layer")} · step ${grouped(run.steps[1])}`;
  const notes = of("info") ? ` · ${count(of("info"), "note")}` : "";
  return h("div", { class: `verdict ${worst}` }, h("b", {}, worst === "healthy" ? "✓" : severity(worst).glyph), " ", worst === "healthy" ? `healthy, ${where}${notes}` : `${found.join(", ")} in ${where}`);
}

/** @param {Alert[]} alerts @param {string} selected @param {(alert: Alert) => void} select */
export function list(alerts, selected, select) {
  if (!alerts.length) return h("p", { class: "quiet" }, "No alert so far.");
  return h("ol", { class: "alerts" }, ...ranked(alerts).map((a) => h("li", {}, row(a, keyOf(a) === selected, select))));
}

/** @param {Alert} a @param {boolean} selected @param {(alert: Alert) => void} select */
function row(a, selected, select) {
  const more = a.layers.length > 1 ? ` and ${count(a.layers.length - 1, "more layer")}` : "";
  return h(
    "button",
    { class: `alert ${a.severity} ${a.state}`, type: "button", "aria-pressed": selected, title: a.layer ?? "", onclick: () => select(a) },
    h("span", { class: "glyph", "aria-hidden": true }, severity(a.severity).glyph),
    h("span", { class: "what" }, h("b", {}, a.rule)),
    h("span", { class: "when" }, HOUR(a)),
    h("span", { class: "where" }, cut(a.layer ?? "the whole model", 44) + more),
    h("span", { class: "kind" }, `${a.code} · ${a.severity}${a.state === "open" ? "" : ", cleared"}`),
    h("span", { class: "why" }, a.message),
  );
}

/**
 * One alert in full: cause, fix, where, and where to read more.
 * @param {Alert} a
 * @param {{layer: (name: string) => void, box: (() => void)|null}} on
 */
export function card(a, on) {
  const safe = /^https?:\/\//.test(a.url);
  const others = a.layers.filter((name) => name !== a.layer);
  return h(
    "article",
    { class: `card ${a.severity} ${a.state}` },
    h("h3", {}, h("span", { class: "glyph", "aria-hidden": true }, severity(a.severity).glyph), ` ${a.rule} `, h("small", {}, `${a.code} · ${a.severity} · ${a.state}`)),
    h("p", {}, a.message),
    h("p", { class: "fix" }, h("b", {}, "Fix"), " ", a.advice),
    h(
      "dl",
      { class: "facts" },
      ...fact("when", `${HOUR(a)}${a.state === "open" ? `, last seen at ${grouped(a.last_step)}` : ""}`),
      ...fact("measured", `${number(a.value)}, limit ${number(a.threshold)}`),
      ...(a.channels.length ? fact("channels", a.channels.slice(0, 16).join(", ") + (a.channels.length > 16 ? ` (+${a.channels.length - 16})` : "")) : []),
      ...(others.length ? [h("dt", {}, "also in"), h("dd", {}, ...others.slice(0, 6).map((name) => link(name, on.layer)), others.length > 6 ? ` and ${others.length - 6} more` : "")] : []),
    ),
    h("p", { class: "more" }, on.box && h("button", { type: "button", onclick: on.box }, "Open the black box"), safe && h("a", { href: a.url, target: "_blank", rel: "noopener noreferrer" }, `About ${a.code} ↗`)),
  );
}

/** @param {string} name @param {string} text */
export const fact = (name, text) => [h("dt", {}, name), h("dd", {}, text)];

/** @param {string} name @param {(name: string) => void} go */
const link = (name, go) => h("button", { class: "link", type: "button", title: name, onclick: () => go(name) }, cut(name, 34));

/**
 * Alerts on the axis of steps, in lanes so that none hides another.
 * @param {Alert[]} alerts @param {Range} view @param {number} last  The run's last step. @param {number} left  Width of the names.
 * @param {string} selected @param {(alert: Alert) => void} select
 */
export function timeline(alerts, view, last, left, selected, select) {
  const place = (/** @type {number} */ step) => (100 * (step - view.from)) / (view.to - view.from);
  /** @type {number[]} */
  const lanes = [];
  const bars = [];
  const inSight = alerts.filter((a) => a.first_step <= view.to && (a.state === "open" ? last : a.last_step) >= view.from);
  for (const a of [...inSight].sort((x, y) => x.first_step - y.first_step)) {
    const from = Math.max(0, place(a.first_step));
    const to = Math.min(100, place(a.state === "open" ? last : a.last_step));
    let lane = lanes.findIndex((end) => end <= from);
    if (lane < 0) lane = lanes.length;
    lanes[lane] = Math.max(to, from + 12) + 0.5;
    bars.push({ a, from, to, lane });
  }
  const most = Math.min(6, lanes.length);
  const hidden = bars.filter((b) => b.lane >= most).length;
  return h(
    "div",
    { class: "timeline", style: { paddingLeft: `${left}px` } },
    h("div", { class: "timeline-name", style: { width: `${left}px` } }, alerts.length ? "alerts" : ""),
    h(
      "div",
      { class: "lanes", style: { height: `${Math.max(1, most) * 20}px` } },
      ...bars.filter((b) => b.lane < most).map(({ a, from, to, lane }) =>
        h(
          "button",
          {
            class: `bar-alert ${a.severity} ${a.state}`, type: "button", "aria-pressed": keyOf(a) === selected,
            title: `${a.code} ${a.rule} · ${a.layer ?? "the whole model"} · ${HOUR(a)}`,
            style: { left: `${from}%`, top: `${lane * 20}px`, width: `max(${to - from}%, 14px)` },
            onclick: () => select(a),
          },
          h("span", { class: "glyph" }, severity(a.severity).glyph), ` ${a.rule}`,
        ),
      ),
      hidden ? h("span", { class: "quiet hidden-more" }, `and ${hidden} more`) : null,
    ),
  );
}
