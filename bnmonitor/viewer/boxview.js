/** A black box: the last steps of every layer, at full resolution, before an error opened. */

import { choose, chooseName, h } from "./dom.js";
import { HeatMap } from "./heatmap.js";
import { numbered } from "./rows.js";
import { STEPS } from "./axis.js";
import { legend } from "./legend.js";
import { scaleOf } from "./scale.js";
import { grouped, measured } from "./text.js";

export class BoxView {
  /** @param {import("./types.js").Source} source @param {{close: () => void}} on */
  constructor(source, on) {
    this.source = source;
    this.layer = h("select", { "aria-label": "layer", onchange: () => this.load() });
    this.statistic = h("select", { "aria-label": "statistic", onchange: () => this.load() });
    this.legend = h("div", { class: "scale" });
    /** @type {string|undefined} */
    this.run = undefined;
    this.note = h("p", { class: "quiet" });
    this.title = h("h3", {});
    /** @type {import("./types.js").Range|null} */
    this.view = null;
    this.selected = -1;
    /** @type {number|null} */
    this.step = null;
    this.map = new HeatMap({
      label: "black box: channels by steps", names: 0, least: 1, most: 14,
      zoom: (view) => { this.view = view; this.show(); },
      select: (row, step) => { this.selected = row; this.step = step; this.show(); },
    });
    this.el = h("div", { class: "box-view" }, h("div", { class: "row" }, this.title, h("button", { class: "link", type: "button", onclick: on.close }, "Close")), this.note, h("div", { class: "row" }, this.layer, this.statistic, this.legend), this.map.el);
  }

  /** @param {import("./types.js").Run} run @param {import("./types.js").Box} box @param {import("./types.js").Statistic[]} statistics */
  async open(run, box, statistics) {
    if (this.run === run.name && this.file === box.file) return;
    this.run = run.name;
    this.file = box.file;
    this.view = null;
    this.all = statistics.filter((s) => !s.sampled);
    this.title.textContent = `Black box: ${box.code} at step ${grouped(box.first_step)}`;
    choose(this.statistic, this.all.map((s) => ({ value: s.name, label: s.label })), "batch_var");
    chooseName(this.layer, run.layers.map((l) => l.name), box.layer ?? run.layers[0]?.name ?? "");
    await this.load();
  }

  async load() {
    const token = (this.token = {});
    const slice = await this.source.box(String(this.run), String(this.file), this.layer.value, this.statistic.value);
    if (this.token !== token) return;
    this.slice = slice;
    if (slice?.layers) chooseName(this.layer, slice.layers, this.layer.value);
    this.show();
  }

  show() {
    const slice = this.slice;
    const statistic = this.all?.find((s) => s.name === this.statistic.value);
    this.map.el.hidden = !slice;
    if (!slice || !statistic) {
      this.note.textContent = "The black box holds no such layer, or its file is gone.";
      return;
    }
    const full = { from: slice.before, to: slice.ends[slice.columns - 1] };
    const scale = scaleOf(statistic, [slice.extent]);
    this.legend.replaceChildren(legend(scale, statistic, true));
    this.note.textContent = `Every one of the last ${slice.columns} steps, every channel.`;
    this.map.set({
      rows: numbered(slice.rows), statistic, axis: STEPS, slice, view: this.view ?? full, full, scale, marks: [], selected: this.selected, step: this.step, room: 420,
      describe: (row, column) => [`channel ${row}`, `step ${grouped(slice.ends[column])}`, `${statistic.label} ${measured(slice.values[row * slice.columns + column], statistic)}`],
    });
  }
}
