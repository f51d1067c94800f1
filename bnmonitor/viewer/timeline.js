/** Incidents on the axis of steps. */

import { when } from "./alerts.js";
import { h } from "./dom.js";
import { where } from "./incidents.js";
import { severity } from "./text.js";

/** @typedef {import("./types.js").Incident} Incident */

const LANE = 20;
const MOST = 6;

/**
 * Bars in lanes, so that none hides another.
 * @param {Incident[]} incidents @param {import("./types.js").Range} view @param {number} last  The run's last step. @param {number} left  Width of the names.
 * @param {string} selected @param {(incident: Incident) => void} select
 */
export function timeline(incidents, view, last, left, selected, select) {
  const place = (/** @type {number} */ step) => (100 * (step - view.from)) / (view.to - view.from);
  /** @type {number[]} */
  const lanes = [];
  const bars = [];
  const inSight = incidents.filter((i) => i.first_step <= view.to && (i.state === "open" ? last : i.last_step) >= view.from);
  for (const i of [...inSight].sort((x, y) => x.first_step - y.first_step)) {
    const from = Math.max(0, place(i.first_step));
    const to = Math.min(100, place(i.state === "open" ? last : i.last_step));
    let lane = lanes.findIndex((end) => end <= from);
    if (lane < 0) lane = lanes.length;
    lanes[lane] = Math.max(to, from + 12) + 0.5;
    bars.push({ i, from, to, lane });
  }
  const most = Math.min(MOST, lanes.length);
  const hidden = bars.filter((b) => b.lane >= most).length;
  return h(
    "div",
    { class: "timeline", style: { paddingLeft: `${left}px` } },
    h("div", { class: "timeline-name", style: { width: `${left}px` } }, incidents.length ? "incidents" : ""),
    h(
      "div",
      { class: "lanes", style: { height: `${Math.max(1, most) * LANE}px` } },
      ...bars.filter((b) => b.lane < most).map(({ i, from, to, lane }) =>
        h(
          "button",
          {
            class: `bar-incident ${i.severity} ${i.state}`, type: "button", "aria-pressed": String(i.index) === selected,
            title: `${i.title} · ${where(i)} · ${when(i)}`,
            style: { left: `${from}%`, top: `${lane * LANE}px`, width: `max(${to - from}%, 14px)` },
            onclick: () => select(i),
          },
          h("span", { class: "glyph" }, severity(i.severity).glyph), ` ${i.title}`,
        ),
      ),
      hidden ? h("span", { class: "quiet hidden-more" }, `and ${hidden} more`) : null,
    ),
  );
}
