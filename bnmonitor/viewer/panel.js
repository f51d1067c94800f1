/** What is selected: all alerts, one alert, a layer, or a black box. */

import { card, list, ranked } from "./alerts.js";
import { BoxView } from "./boxview.js";
import { h } from "./dom.js";
import { LayerView } from "./layerview.js";
import { keyOf } from "./view_state.js";
import { css } from "./scale.js";
import { cut, measured } from "./text.js";

export class Panel {
  /**
   * @param {import("./types.js").Source} source
   * @param {{change: (part: Partial<import("./view_state.js").State>) => void, zoom: (view: import("./types.js").Range|null) => void, alert: (alert: import("./types.js").Alert) => void}} on
   */
  constructor(source, on) {
    this.on = on;
    this.layer = new LayerView(source, { zoom: on.zoom, cursor: (step) => on.change({ step }), change: on.change });
    this.box = new BoxView(source, { close: () => on.change({ box: "" }) });
    this.head = h("div", { class: "panel-head" });
    this.top = h("div");
    this.el = h("aside", { class: "panel", "aria-label": "what is selected" }, this.head, this.top, this.layer.el, this.box.el);
  }

  /**
   * @param {import("./types.js").Run} run
   * @param {import("./view_state.js").State} state
   * @param {import("./types.js").Range} view
   * @param {import("./types.js").Range} full
   * @param {import("./types.js").Statistic[]} statistics  Of channels.
   * @param {{slice: import("./types.js").Slice, statistic: import("./types.js").Statistic, scale: import("./scale.js").Scale}} now
   *   What the map shows of the run.
   */
  async show(run, state, view, full, statistics, now) {
    const { on } = this;
    const alert = run.alerts.find((a) => keyOf(a) === state.alert) ?? null;
    const layer = run.layers.find((l) => l.name === state.layer) ?? null;
    const box = run.boxes.find((b) => b.file === state.box) ?? null;
    this.layer.el.hidden = !layer || !!box;
    this.box.el.hidden = !box;
    const cards = (/** @type {import("./types.js").Alert[]} */ alerts) =>
      alerts.map((a) => {
        const its = run.boxes.find((b) => b.code === a.code && b.layer === a.layer && b.first_step === a.first_step);
        return card(a, { layer: (name) => on.change({ layer: name, channel: null }), box: its ? () => on.change({ box: its.file }) : null });
      });
    const back = h("button", { class: "link", type: "button", onclick: () => on.change({ layer: "", alert: "", channel: null, box: "" }) }, "‹ All alerts");
    if (box) {
      this.head.replaceChildren(back);
      this.top.replaceChildren();
      await this.box.open(run, box, statistics);
    } else if (layer || alert) {
      this.head.replaceChildren(back, h("h2", { title: layer?.name }, cut(layer?.name ?? "the whole model", 48)));
      // The selected alert in full, or else the worst; the others as a list, so that the pictures stay in sight.
      const own = ranked(run.alerts.filter((a) => a.layers.includes(layer?.name ?? "") && a.state === "open"));
      const main = alert ?? own.find((a) => a.severity !== "info");
      const others = own.filter((a) => a !== main);
      this.top.replaceChildren(...cards(main ? [main] : []), others.length ? list(others, "", on.alert) : "", main || own.length || !layer ? "" : h("p", { class: "verdict healthy" }, h("b", {}, "✓"), " no open alert in this layer"));
    } else {
      this.head.replaceChildren(h("h2", {}, "Alerts"));
      this.top.replaceChildren(list(run.alerts, state.alert, on.alert), ...foremost(run, now, (layer) => on.change({ layer })), h("p", { class: "quiet hint" }, "Click a layer for its channels, drag over steps to zoom, double click to see all. Arrow keys, + and − do the same."));
    }
    if (layer && !box) await this.layer.load(run, layer, state, view, full, statistics);
  }
}

/**
 * The layers whose last value stands out most.
 * @param {import("./types.js").Run} run
 * @param {{slice: import("./types.js").Slice, statistic: import("./types.js").Statistic, scale: import("./scale.js").Scale}} now
 * @param {(layer: string) => void} select
 */
function foremost(run, { slice, statistic, scale }, select) {
  const last = run.layers.map((layer, i) => ({ name: layer.name, value: i < slice.rows ? slice.values[(i + 1) * slice.columns - 1] : NaN })).filter((l) => !Number.isNaN(l.value));
  if (!last.length) return [];
  const health = statistic.scale === "health";
  const far = (/** @type {number} */ v) => (health ? -v : Math.abs(v));
  last.sort((a, b) => far(b.value) - far(a.value));
  const meter = (/** @type {number} */ v) => Math.max(0, Math.min(1, scale.place(v)));
  const rows = last.slice(0, 8).map(({ name, value }) =>
    h(
      "li",
      {},
      h(
        "button",
        { type: "button", title: name, onclick: () => select(name) },
        h("span", { class: "name" }, cut(name, 36)),
        h("span", { class: "meter" }, h("i", { style: { width: `${Math.max(4, 100 * meter(value))}%`, background: css(scale, meter(value)) } })),
        h("span", { class: "value" }, measured(value, statistic)),
      ),
    ),
  );
  return [h("h4", {}, `${health ? "Lowest" : "Largest"} ${statistic.label} now`), h("ol", { class: "now" }, ...rows)];
}
