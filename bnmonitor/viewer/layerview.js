/** A layer: batch against running, its channels, gamma and beta, and its facts. */

import { fact } from "./alerts.js";
import { rowOf as known } from "./axis.js";
import { ChannelView } from "./channels.js";
import { Chart } from "./chart.js";
import { h } from "./dom.js";
import { count, grouped, number, weight } from "./text.js";

/** @typedef {import("./types.js").Slice} Slice */
/** @typedef {import("./types.js").Range} Range */
/** @typedef {{view: Range, axis: import("./axis.js").Axis, step: number|null, smooth: number}} Common */

/** The row of a statistic; what is not there is not known. @param {Slice} slice @param {string} name */
export const rowOf = (slice, name) => known(slice, name) ?? new Float32Array(slice.columns).fill(NaN);

const zip = (/** @type {Float32Array} */ a, /** @type {Float32Array} */ b, /** @type {(x: number, y: number) => number} */ f) => a.map((v, i) => f(v, b[i]));

export class LayerView {
  /**
   * @param {import("./types.js").Source} source
   * @param {{zoom: (view: Range|null) => void, cursor: (step: number|null) => void, change: (part: object) => void}} on
   */
  constructor(source, on) {
    this.source = source;
    this.on = on;
    const chart = (/** @type {string} */ label, height = 130) => new Chart({ label, height, hover: (step) => this.cursor(step), select: on.cursor });
    this.mean = chart("Mean: batch against running, in σ");
    this.variance = chart("Variance: batch against running");
    this.affine = chart("Gamma and beta", 110);
    this.output = chart("Channels switched off, and silent outputs", 90);
    this.channels = new ChannelView({ zoom: on.zoom, cursor: on.cursor, change: on.change, hover: (step) => this.cursor(step) });
    this.facts = h("dl", { class: "facts" });
    this.el = h("div", { class: "layer-view" }, this.mean.el, this.variance.el, this.channels.el, this.affine.el, this.output.el, h("h4", {}, "Facts"), this.facts);
  }

  /** @param {number|null} step */
  cursor(step) {
    for (const chart of [this.mean, this.variance, this.affine, this.output, this.channels.bands]) chart.at(step ?? this.step ?? null);
    this.channels.map.point(step);
  }

  /**
   * @param {import("./types.js").Run} run
   * @param {import("./types.js").Layer} layer
   * @param {import("./view_state.js").State} state
   * @param {Range} view @param {Range} full
   * @param {import("./types.js").Statistic[]} statistics  Of channels.
   * @param {import("./axis.js").Axis} axis
   */
  async load(run, layer, state, view, full, statistics, axis) {
    const token = (this.token = {});
    const bins = Math.max(200, Math.min(800, this.el.clientWidth || 400));
    const range = state.from === null ? null : view;
    const channel = state.channel !== null && state.channel < layer.channels ? state.channel : null;
    const { source } = this;
    const some = layer.detailed || null;
    const asked = {
      map: some && source.channels(run.name, layer.name, state.channels, range, bins),
      one: some && channel !== null ? source.channel(run.name, layer.name, channel, range, bins) : null,
      bands: some && source.bands(run.name, layer.name, state.channels, range, bins),
      at: some && source.at(run.name, layer.name, Math.round(state.step ?? view.to)),
    };
    const [all, one] = await Promise.all([source.layer(run.name, layer.name, range, bins), asked.one]);
    if (this.token !== token) return;
    this.all = all;
    this.step = state.step;
    const common = { view, axis, step: state.step, smooth: state.smooth };
    this.linear = state.scale === "linear";
    if (one) this.ofChannel(one, common, /** @type {number} */ (channel));
    else this.ofLayer(all, common);
    this.rest(all, one, common);
    this.facts.replaceChildren(...factsOf(layer, all));
    const [map, bands, at] = await Promise.all([asked.map, asked.bands, asked.at]);
    if (this.token !== token) return;
    this.channels.set({ run, layer, state, view, full, axis, statistics, channel }, { map, bands, at });
  }

  /** The median channel of the layer. @param {Slice} s @param {Common} common */
  ofLayer(s, common) {
    const [running, noise] = [rowOf(s, "offset"), rowOf(s, "noise")];
    const band = { low: zip(running, noise, (r, n) => Math.max(0, r - n)), high: zip(running, noise, (r, n) => r + n), label: "noise of the batches" };
    this.mean.set({ ...common, steps: s.ends, log: false, unit: "σ", lines: [
      { label: "running", values: running, style: "line", color: "accent", band },
      { label: "batch", values: rowOf(s, "batch_offset"), style: "dots", color: "second" },
      { label: "gap", values: rowOf(s, "mean_lag"), style: "dashed", color: "muted" },
    ] });
    const [var_, spread] = [rowOf(s, "running_var"), rowOf(s, "var_noise")];
    const around = { low: zip(var_, spread, (v, n) => v * Math.exp(-2 * n)), high: zip(var_, spread, (v, n) => v * Math.exp(2 * n)), label: "noise of the batches" };
    this.variance.set({ ...common, steps: s.ends, log: !this.linear, unit: "", lines: [
      { label: "running", values: var_, style: "line", color: "accent", band: around },
      { label: "batch", values: rowOf(s, "batch_var"), style: "dots", color: "second" },
    ] });
  }

  /** One channel, as it is. @param {Slice} s @param {Common} common @param {number} channel */
  ofChannel(s, common, channel) {
    const [mean, variance] = [rowOf(s, "running_mean"), rowOf(s, "running_var")];
    const sigma = variance.map(Math.sqrt);
    this.mean.set({ ...common, steps: s.ends, log: false, unit: "", lines: [
      { label: `running mean of channel ${channel}`, values: mean, style: "line", color: "accent", band: { low: zip(mean, sigma, (m, d) => m - d), high: zip(mean, sigma, (m, d) => m + d), label: "± running deviation" } },
      { label: "batch", values: rowOf(s, "batch_mean"), style: "dots", color: "second" },
    ] });
    this.variance.set({ ...common, steps: s.ends, log: !this.linear, unit: "", lines: [
      { label: `running variance of channel ${channel}`, values: variance, style: "line", color: "accent" },
      { label: "batch", values: rowOf(s, "batch_var"), style: "dots", color: "second" },
    ] });
  }

  /** @param {Slice} all @param {Slice|null} one @param {Common} common */
  rest(all, one, common) {
    const lines = one
      ? [{ label: "gamma", values: rowOf(one, "gamma"), style: "line", color: "accent" }, { label: "beta", values: rowOf(one, "beta"), style: "line", color: "second" }]
      : [
          { label: "size of gamma", values: rowOf(all, "gamma"), style: "line", color: "accent", band: { low: rowOf(all, "gamma_min"), high: rowOf(all, "gamma_max"), label: "smallest to largest" } },
          { label: "beta", values: rowOf(all, "beta"), style: "line", color: "second" },
        ];
    this.affine.set({ ...common, steps: (one ?? all).ends, log: false, unit: "", lines: /** @type {import("./chart.js").Line[]} */ (lines) });
    const percent = (/** @type {Float32Array} */ v) => v.map((x) => 100 * x);
    this.output.set({ ...common, steps: all.ends, log: false, unit: "%", lines: [
      { label: "dead", values: percent(rowOf(all, "dead")), style: "line", color: "accent" },
      { label: "silent", values: percent(rowOf(all, "silent")), style: "line", color: "second" },
    ] });
  }
}

/** @param {import("./types.js").Layer} layer @param {Slice} all */
function factsOf(layer, all) {
  const last = (/** @type {string} */ name) => {
    const row = rowOf(all, name);
    for (let i = row.length - 1; i >= 0; i--) if (!Number.isNaN(row[i])) return row[i];
    return NaN;
  };
  const size = last("size");
  const known = (/** @type {unknown} */ v) => v !== undefined && v !== null;
  return [
    ...fact("layer", layer.name),
    ...fact("kind", `${layer.kind ?? "not known"}, ${count(layer.channels, "channel")}`),
    ...fact("fed by", layer.producer ?? "not known"),
    ...fact("read by", layer.consumers?.length ? layer.consumers.join(", ") : "not known"),
    ...fact("momentum", layer.momentum === null && layer.tracking !== false && layer.kind ? "none: cumulative average" : weight(layer.momentum)),
    ...fact("eps", number(layer.eps)),
    ...fact("mode", known(layer.training) ? (layer.training ? "training" : "evaluation") : "not known"),
    ...fact("gamma and beta", layer.affine === false ? "has none" : known(layer.trains) ? (layer.trains ? "trained" : "not trained") : "not known"),
    ...fact("N", Number.isNaN(size) ? "not sampled" : `${grouped(size)} samples, ${grouped(last("values"))} values per channel`),
  ];
}
