/** Incidents on the axis of steps. */

import { when } from "./alerts.js";
import { h, theme } from "./dom.js";
import { where } from "./incidents.js";
import { severity } from "./text.js";

/** @typedef {import("./types.js").Incident} Incident */

const LANE = 20;
const MOST = 6;
/** Least width of a bar: that of its glyph. */
const BAR = 16;

/** @type {CanvasRenderingContext2D|undefined} */
let ruler;

/** The width of a text beside a glyph. @param {string} text */
function wide(text) {
  ruler ??= /** @type {CanvasRenderingContext2D} */ (h("canvas").getContext("2d"));
  ruler.font = theme().small;
  return ruler.measureText(text).width + 8;
}

/**
 * What a bar says, and where: in it, else to its right, else to its left, else nowhere; never a part of a word.
 * @param {Incident} i @param {number} from @param {number} to  Where the bar lies, in pixels. @param {number} width  Of all. @param {(left: number, right: number) => boolean} free
 */
function label(i, from, to, width, free) {
  const words = i.title.split(" ");
  const short = i.cause.replaceAll("-", " ");
  for (const text of [i.title, short]) {
    const room = wide(text) + 16;
    if (room <= to - from) return { text, at: "in", left: from, right: to };
    if (to + room - 16 <= width && free(from, to + room - 16)) return { text, at: "right", left: from, right: to + room - 16 };
    if (from - room + 16 >= 0 && free(from - room + 16, to)) return { text, at: "left", left: from - room + 16, right: to };
  }
  // A sentence may end early, at a word, where enough of it is left to be one.
  for (let n = words.length - 1; n >= 3; n--) {
    const text = `${words.slice(0, n).join(" ")}…`;
    if (wide(text) + 16 <= to - from) return { text, at: "in", left: from, right: to };
  }
  return { text: "", at: "in", left: from, right: to };
}

/**
 * Bars in lanes, so that none hides another.
 * @param {Incident[]} incidents @param {import("./types.js").Range} view @param {number} last  The run's last step. @param {import("./axis.js").Axis} axis @param {number} left  Width of the names. @param {number} width  Of the axis.
 * @param {string} selected @param {(incident: Incident) => void} select
 */
export function timeline(incidents, view, last, axis, left, width, selected, select) {
  const place = (/** @type {number} */ step) => (width * (axis.of(step) - axis.of(view.from))) / (axis.of(view.to) - axis.of(view.from));
  /** @type {{left: number, right: number}[][]} */
  const lanes = [];
  const bars = [];
  const inSight = incidents.filter((i) => i.first_step <= view.to && (i.state === "open" ? last : i.last_step) >= view.from);
  for (const i of [...inSight].sort((x, y) => x.first_step - y.first_step)) {
    const from = Math.min(Math.max(0, place(i.first_step)), width - BAR);
    const to = Math.max(from + BAR, Math.min(width, place(i.state === "open" ? last : i.last_step)));
    const taken = (/** @type {number} */ lane) => (lanes[lane] ??= []);
    const free = (/** @type {number} */ lane) => (/** @type {number} */ a, /** @type {number} */ b) => taken(lane).every((one) => one.right + 4 <= a || one.left >= b + 4);
    let lane = 0;
    while (!free(lane)(from, to)) lane++;
    const said = label(i, from, to, width, free(lane));
    taken(lane).push(said);
    bars.push({ i, from, to, lane, said });
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
      ...bars.filter((b) => b.lane < most).flatMap(({ i, from, to, lane, said }) => [
        h(
          "button",
          {
            class: `bar-incident ${i.severity} ${i.state}`, type: "button", "aria-pressed": String(i.index) === selected,
            title: `${i.title} · ${where(i)} · ${when(i)}`, "aria-label": `${i.severity}: ${i.title}, ${when(i)}`,
            style: { left: `${from}px`, top: `${lane * LANE}px`, width: `${to - from}px` },
            onclick: () => select(i),
          },
          h("span", { class: "glyph" }, severity(i.severity).glyph), said.at === "in" && said.text ? ` ${said.text}` : "",
        ),
        said.at === "in" ? null : h("span", { class: `bar-label ${i.severity} ${i.state}`, "aria-hidden": true, style: { left: `${said.at === "right" ? to + 4 : said.left}px`, top: `${lane * LANE}px` } }, said.text),
      ]),
      hidden ? h("span", { class: "quiet hidden-more" }, `and ${hidden} more`) : null,
    ),
  );
}
