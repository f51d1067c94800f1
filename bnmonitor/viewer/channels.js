/** The channels of a layer: over the steps, as percentiles, at one step, and gamma against beta. */

import { Chart } from "./chart.js";
import { choose, h } from "./dom.js";
import { HeatMap } from "./heatmap.js";
import { legend } from "./legend.js";
import { column, flagged, ordered } from "./order.js";
import { scaleOf } from "./scale.js";
import { Histogram, Plane } from "./scatter.js";
import { count, grouped, measured, severity } from "./text.js";

/** @typedef {import("./types.js").Slice} Slice */
/** @typedef {import("./types.js").Range} Range */

/**
 * @typedef {object} Numbers
 * @property {Slice|null} map  A statistic of all channels over the steps.
 * @property {Slice|null} bands  Its percentiles.
 * @property {Slice|null} at  All statistics of all channels at the cursor.
 *
 * @typedef {object} Where
 * @property {import("./types.js").Run} run
 * @property {import("./types.js").Layer} layer
 * @property {import("./view_state.js").State} state
 * @property {Range} view
 * @property {Range} full
 * @property {import("./axis.js").Axis} axis
 * @property {import("./types.js").Statistic[]} statistics
 * @property {number|null} channel  The selected one.
 */

export class ChannelView {
  /** @param {{zoom: (view: Range|null) => void, cursor: (step: number|null) => void, hover: (step: number|null) => void, change: (part: object) => void}} on */
  constructor(on) {
    this.on = on;
    this.statistic = h("select", { id: "bn-channels", "aria-label": "statistic of the channels", onchange: () => on.change({ channels: this.statistic.value }) });
    this.rank = h("select", { id: "bn-rank", "aria-label": "order of the channels", onchange: () => on.change({ rank: this.rank.value }) });
    this.turn = h("button", { type: "button", title: "Turn the order around", "aria-label": "smallest first", onclick: () => on.change({ rank: this.least ? this.rank.value : `-${this.rank.value}` }) });
    /** @type {import("./rows.js").Row[]} */
    this.rows = [];
    this.map = new HeatMap({
      label: "channels by steps; arrow keys move, plus and minus zoom", names: 36, least: 1, most: 14, sparse: true, zoom: on.zoom,
      select: (row, step) => on.change({ channel: Number(this.rows[row]?.id ?? 0), step }),
      hover: (step) => on.hover(step),
    });
    this.bands = new Chart({ label: "Percentiles of the channels", height: 110, hover: on.hover, select: on.cursor });
    this.histogram = new Histogram("Channels at the cursor");
    this.plane = new Plane("Gamma and beta of each channel", (channel) => on.change({ channel }));
    this.legend = h("div", { class: "scale" });
    this.nothing = h("p", { class: "quiet" });
    this.one = h("p", { class: "quiet" });
    this.pictures = h("div", { class: "pair" }, this.histogram.el, this.plane.el);
    this.el = h("section", { class: "channels" }, h("div", { class: "row" }, h("h4", {}, "Channels"), this.statistic, this.rank, this.turn), this.legend, this.map.el, this.nothing, this.one, this.bands.el, this.pictures);
  }

  /** @param {number|null} step */
  point(step) {
    this.bands.at(step);
    this.map.point(step);
  }

  /** @param {Where} where @param {Numbers} numbers */
  set({ run, layer, state, view, full, axis, statistics, channel }, { map, bands, at }) {
    const statistic = statistics.find((s) => s.name === state.channels) ?? statistics[0];
    const flags = flagged(run, layer.name, run.incidents.some((i) => String(i.index) === state.incident && i.layers.includes(layer.name)) ? state.incident : "");
    this.least = state.rank.startsWith("-");
    const rank = this.least ? state.rank.slice(1) : state.rank;
    choose(this.statistic, statistics.map((s) => ({ value: s.name, label: s.label, title: s.meaning })), statistic.name);
    const orders = [{ value: "", label: "by number" }, ...(flags.size ? [{ value: "incident", label: "of the incident first" }] : []), ...statistics.filter((s) => column(at, s.name)).map((s) => ({ value: s.name, label: `by ${s.label}` }))];
    const known = orders.some((o) => o.value === rank);
    choose(this.rank, orders, known ? rank : "");
    this.turn.hidden = !known || rank === "" || rank === "incident";
    this.turn.textContent = this.least ? "↑" : "↓";
    this.turn.setAttribute("aria-pressed", String(this.least));
    for (const el of [this.map.el, this.rank, this.bands.el, this.pictures]) el.hidden = !map;
    this.nothing.textContent = map ? "" : "No channel of this layer was recorded yet. The flight record has every channel where TensorBoard reads the run's own directory; elsewhere, channels are written in turn, flagged layers first.";
    const scale = scaleOf(statistic, [map?.extent], state.scale);
    this.legend.replaceChildren(...(map ? [legend(scale, statistic, true)] : []));
    if (!map) return this.one.replaceChildren();
    this.rows = ordered(map.rows, known ? state.rank : "", at, flags);
    const values = new Float32Array(map.values.length);
    this.rows.forEach(({ members: [i] }, r) => values.set(map.values.subarray(i * map.columns, (i + 1) * map.columns), r * map.columns));
    const slice = rank && known ? { ...map, values } : map;
    const marked = new Map([...flags].map(([c, of]) => [this.rows.findIndex((row) => row.members[0] === c), of]));
    const words = [`${count(layer.channels, "channel")} at ${count(map.frames, "step")}`, flags.size ? `${flags.size} of an incident` : ""].filter(Boolean).join(", ");
    this.one.textContent = channel === null ? `${words}. Click one to see it above.` : `Channel ${channel} is shown above. `;
    if (channel !== null) this.one.append(h("button", { class: "link", type: "button", onclick: () => this.on.change({ channel: null }) }, "Show the whole layer"));
    this.map.set({
      rows: this.rows, statistic, axis, slice, view, full, scale, marks: [], flagged: marked, selected: channel === null ? -1 : this.rows.findIndex((row) => row.members[0] === channel), step: state.step, room: 224,
      describe: (row, at) => {
        const i = this.rows[row].members[0];
        const flag = flags.get(i);
        return [`channel ${i}`, `${statistic.label} ${measured(slice.values[row * slice.columns + at], statistic)}`, axis.say(slice.ends[at]), ...(flag ? [`${severity(flag).glyph} of an incident`] : [])];
      },
    });
    this.percentiles(bands, statistic, { view, axis, step: state.step }, state);
    this.atCursor(at, statistic, state, flags, channel);
  }

  /** @param {Slice|null} bands @param {import("./types.js").Statistic} statistic @param {{view: Range, axis: import("./axis.js").Axis, step: number|null}} common @param {import("./view_state.js").State} state */
  percentiles(bands, statistic, common, state) {
    this.bands.el.hidden = !bands;
    if (!bands) return;
    const of = (/** @type {number} */ p) => {
      const at = /** @type {number[]} */ (bands.percentiles).indexOf(p);
      return bands.values.subarray(at * bands.columns, (at + 1) * bands.columns);
    };
    const log = state.scale === "log" || (statistic.scale === "log" && state.scale !== "linear");
    this.bands.title(`${statistic.label}: percentiles of the channels`);
    this.bands.set({ ...common, steps: bands.ends, log, unit: statistic.unit, smooth: state.smooth, lines: [
      { label: "median", values: of(50), style: "line", color: "accent", band: { low: of(25), high: of(75), label: "25 to 75 %" }, outer: { low: of(5), high: of(95), label: "5 to 95 %" } },
    ] });
  }

  /** @param {Slice|null} at @param {import("./types.js").Statistic} statistic @param {import("./view_state.js").State} state @param {Map<number, string>} flags @param {number|null} channel */
  atCursor(at, statistic, state, flags, channel) {
    const x = column(at, statistic.name);
    const log = state.scale === "log" || (statistic.scale === "log" && state.scale !== "linear");
    const when = at ? `step ${grouped(at.ends[0])}` : "";
    const common = { statistic, flags, selected: channel ?? -1 };
    this.histogram.title.textContent = `${statistic.label}, ${when}`;
    this.histogram.set(x && { ...common, x, y: null, log });
    const [gamma, beta] = [column(at, "gamma"), column(at, "beta")];
    const known = gamma && beta && gamma.some(Number.isFinite);
    this.plane.title.textContent = `γ and β, ${when}`;
    this.plane.set(known ? { ...common, x: gamma, y: beta, log: false } : null);
  }
}
