/** What is selected: all incidents, one incident, a layer, or a black box. */

import { notes } from "./alerts.js";
import { BoxView } from "./boxview.js";
import { picture } from "./cause.js";
import { h } from "./dom.js";
import { card, list, ranked } from "./incidents.js";
import { LayerView } from "./layerview.js";
import { manual } from "./manual.js";
import { css } from "./scale.js";
import { aligned, cut, measured, unlike } from "./text.js";

export class Panel {
  /**
   * @param {import("./types.js").Source} source
   * @param {{change: (part: Partial<import("./view_state.js").State>) => void, zoom: (view: import("./types.js").Range|null) => void, incident: (incident: import("./types.js").Incident) => void}} on
   */
  constructor(source, on) {
    this.on = on;
    this.source = source;
    /** As wide as it was before it was filled: to ask later would lay out the page once more. */
    this.width = 0;
    /** @type {{key: string, el: Element|null}|undefined} */
    this.drawn = undefined;
    this.layer = new LayerView(source, { zoom: on.zoom, cursor: (step) => on.change({ step }), change: on.change });
    this.box = new BoxView(source, { close: () => on.change({ box: "" }) });
    this.head = h("div", { class: "panel-head" });
    this.top = h("div");
    this.el = h("aside", { class: "panel", "aria-label": "what is selected" }, this.head, this.top, this.layer.el, this.box.el);
  }

  /** Show a page of the manual. @param {string} name */
  async open(name) {
    const page = await this.source.manual(name);
    this.head.replaceChildren(h("button", { class: "link", type: "button", onclick: () => this.on.change({ page: "" }) }, "‹ Back"));
    this.top.replaceChildren(page ? manual(page) : h("p", { class: "quiet" }, `The manual has no page ${name}.`));
    this.el.scrollTop = 0;
  }

  /** The picture of an incident, made anew only if there is more of it. @param {import("./types.js").Run} run @param {import("./types.js").Incident} i @param {import("./types.js").Statistic[]} statistics */
  pictured(run, i, statistics) {
    const key = JSON.stringify([run.name, i.index, i.last_step, run.frames, document.documentElement.className]);
    if (this.drawn?.key !== key) this.drawn = { key, el: picture(this.source, run, i, statistics) };
    return this.drawn.el;
  }

  /**
   * @param {import("./types.js").Run} run
   * @param {import("./view_state.js").State} state
   * @param {import("./types.js").Range} view
   * @param {import("./types.js").Range} full
   * @param {import("./types.js").Statistic[]} statistics  Of channels.
   * @param {{slice: import("./types.js").Slice, statistic: import("./types.js").Statistic, scale: import("./scale.js").Scale, axis: import("./axis.js").Axis, layers: import("./types.js").Statistic[]}} now
   *   What the map shows of the run, and all statistics of layers.
   */
  async show(run, state, view, full, statistics, now) {
    const { on } = this;
    const incident = run.incidents.find((i) => String(i.index) === state.incident) ?? null;
    const layer = run.layers.find((l) => l.name === state.layer) ?? null;
    const box = run.boxes.find((b) => b.file === state.box) ?? null;
    this.layer.el.hidden = !layer || !!box || !!state.page;
    this.box.el.hidden = !box || !!state.page;
    if (state.page) return this.open(state.page);
    const go = {
      layer: (/** @type {string} */ name, /** @type {number} */ step) => on.change({ layer: name, step, channel: null }),
      box: (/** @type {import("./types.js").Alert} */ a) => {
        const its = run.boxes.find((b) => b.code === a.code && b.layer === a.layer && b.first_step === a.first_step);
        return its ? () => on.change({ box: its.file }) : null;
      },
      page: (/** @type {string} */ name) => on.change({ page: name }),
      picture: (/** @type {import("./types.js").Incident} */ i) => this.pictured(run, i, now.layers),
    };
    const back = h("button", { class: "link", type: "button", onclick: () => on.change({ layer: "", incident: "", channel: null, box: "" }) }, "‹ All incidents");
    if (box) {
      this.head.replaceChildren(back);
      this.top.replaceChildren();
      await this.box.open(run, box, statistics);
    } else if (layer || incident) {
      this.head.replaceChildren(back, h("h2", { title: layer?.name }, cut(layer?.name ?? "the whole model", 48)));
      // The selected incident in full, or else the worst; the others as a list, so that the pictures stay in sight.
      const own = ranked(run.incidents.filter((i) => i.layers.includes(layer?.name ?? "") && i.state === "open"));
      const main = incident ?? own[0];
      const others = own.filter((i) => i !== main);
      this.top.replaceChildren(main ? card(main, go) : "", others.length ? list(others, "", on.incident) : "", own.length || !layer ? "" : h("p", { class: "verdict healthy" }, h("b", {}, "✓"), " no open incident in this layer"), layer ? notes(run, go, layer.name) : "");
    } else {
      this.head.replaceChildren(h("h2", { title: run.name }, state.compare ? `Incidents of ${cut(run.name, 40)}` : "Incidents"));
      this.top.replaceChildren(list(run.incidents, state.incident, on.incident), notes(run, go), ...foremost(run, now, this.width, (layer) => on.change({ layer })), h("p", { class: "quiet hint" }, "Click a layer for its channels, drag over steps to zoom, double click to see all. Press ? for the keys."));
    }
    if (layer && !box) await this.layer.load(run, layer, state, view, full, statistics, now.axis);
  }
}

/**
 * The layers whose last value stands out most.
 * @param {import("./types.js").Run} run
 * @param {{slice: import("./types.js").Slice, statistic: import("./types.js").Statistic, scale: import("./scale.js").Scale}} now
 * @param {number} width  Of the panel.
 * @param {(layer: string) => void} select
 */
function foremost(run, { slice, statistic, scale }, width, select) {
  const last = run.layers.map((layer, i) => ({ name: layer.name, value: i < slice.rows ? slice.values[(i + 1) * slice.columns - 1] : NaN })).filter((l) => !Number.isNaN(l.value));
  if (!last.length) return [];
  const health = statistic.scale === "health";
  const far = (/** @type {number} */ v) => (health ? -v : Math.abs(v));
  last.sort((a, b) => far(b.value) - far(a.value));
  const most = Math.max(20, Math.floor((width - 220) / 7.5));
  const short = last.some((l) => l.name.length > most) ? unlike(last.map((l) => l.name)) : String;
  const meter = (/** @type {number} */ v) => Math.max(0, Math.min(1, scale.place(v)));
  const first = last.slice(0, 8);
  const said = aligned(first.map(({ value }) => measured(value, { ...statistic, unit: "" })));
  const rows = first.map(({ name, value }, i) =>
    h(
      "li",
      {},
      h(
        "button",
        { type: "button", title: name, onclick: () => select(name) },
        h("span", { class: "name" }, cut(short(name), most)),
        h("span", { class: "meter" }, h("i", { style: { width: `${Math.max(4, 100 * meter(value))}%`, background: css(scale, meter(value)) } })),
        h("span", { class: "value" }, said[i]),
      ),
    ),
  );
  return [h("h3", { class: "minor" }, `${health ? "Lowest" : "Largest"} ${statistic.label} now${statistic.unit ? `, ${statistic.unit}` : ""}`), h("ol", { class: "now" }, ...rows)];
}
