/** The page: its state, the numbers that it asks for, and what it shows. */

import { Toolbar } from "./toolbar.js";
import { h } from "./dom.js";
import { empty, trouble } from "./notices.js";
import { Overview } from "./overview.js";
import { Panel } from "./panel.js";
import { scaleOf } from "./scale.js";
import { HEIGHT } from "./strip.js";
import { fromWords, toWords } from "./view_state.js";

/** @typedef {import("./types.js").Run} Run */
/** @typedef {import("./types.js").Slice} Slice */
/** @typedef {import("./types.js").Range} Range */
/** @typedef {import("./view_state.js").State} State */

const POLL = 10_000;
const PAUSE = 120;

export class App {
  /**
   * @param {import("./types.js").Source} source
   * @param {{words: Record<string, string>, changed?: (words: Record<string, string>) => void, live?: boolean, least?: number}} options
   */
  constructor(source, options) {
    this.source = source;
    this.changed = options.changed;
    this.least = options.least ?? 160;
    /** @type {State} */
    this.state = fromWords(options.words);
    /** @type {import("./types.js").Index|null} */
    this.index = null;
    /** @type {Map<string, Run>} */
    this.runs = new Map();
    /** @type {Map<string, Slice>} */
    this.slices = new Map();
    /** @type {Map<string, Slice|null>} */
    this.courses = new Map();
    this.toolbar = new Toolbar({ change: (part) => this.change(part) });
    const on = {
      zoom: (/** @type {Range|null} */ view) => this.change({ from: view?.from ?? null, to: view?.to ?? null }),
      incident: (/** @type {import("./types.js").Incident} */ i, /** @type {string} */ run) =>
        this.change({ incident: String(i.index), layer: i.layer ?? "", step: i.first_step, channel: null, box: "", focus: run }),
    };
    const overview = (/** @type {number} */ names, /** @type {() => string} */ run) =>
      new Overview(names, {
        zoom: on.zoom,
        incident: (i) => on.incident(i, run()),
        select: (layer, step) => this.change({ layer, step, focus: run(), ...(layer === this.state.layer ? {} : { incident: "", channel: null, box: "" }) }),
      });
    this.maps = [overview(window.innerWidth > 1800 ? 280 : 190, () => this.state.run), overview(0, () => this.state.compare)];
    this.panel = new Panel(source, { change: (part) => this.change(part), zoom: on.zoom, incident: (i) => on.incident(i, this.focused) });
    this.notice = h("div", { class: "notice-place" });
    this.room = h("section", { class: "maps" }, ...this.maps.map((m) => m.el));
    this.main = h("main", { class: "split", hidden: true }, this.room, this.panel.el);
    this.el = h("div", { class: "bn" }, this.toolbar.el, this.notice, this.main);
    new ResizeObserver(() => this.resized()).observe(this.room);
    document.addEventListener("keydown", (e) => this.key(e));
    if (options.live) setInterval(() => this.poll(), POLL);
  }

  /** The run that the panel shows. */
  get focused() {
    return this.state.focus && this.state.focus === this.state.compare ? this.state.compare : this.state.run;
  }

  /** Change a part of the view. @param {Partial<State>} part */
  change(part) {
    Object.assign(this.state, part);
    clearTimeout(this.waiting);
    if (this.shown && "from" in part && Object.keys(part).length === 2) return void this.glide();
    this.changed?.(toWords(this.state));
    this.load();
  }

  /** Draw another range of the numbers at hand at once, and ask for finer ones when the pointer rests. */
  glide() {
    const { runs, slices } = /** @type {NonNullable<App["shown"]>} */ (this.shown);
    this.token = {};
    this.shown = { ...this.shown, runs, slices: runs.map((run, i) => this.slices.get(JSON.stringify([run.name, this.state.statistic])) ?? slices[i]) };
    this.show();
    this.waiting = setTimeout(() => this.change({}), PAUSE);
  }

  /** Read everything again; the view stays. */
  async reload() {
    this.index = null;
    this.runs.clear();
    this.slices.clear();
    this.courses.clear();
    await this.load();
  }

  async poll() {
    if (document.hidden || !this.el.clientWidth) return;
    try {
      const index = await this.source.index();
      const seen = (/** @type {import("./types.js").Index|null} */ i) => JSON.stringify(i?.runs.filter((r) => !i || r.name === this.state.run || r.name === this.state.compare || i.runs.length < 2));
      if (index.runs.length !== this.index?.runs.length || seen(index) !== seen(this.index)) await this.reload();
    } catch {
      // The server does not answer; the next poll or click tries again.
    }
  }

  async load() {
    const token = (this.token = {});
    try {
      this.index ??= await this.source.index();
      if (this.token !== token) return;
      if (!this.index.runs.length) return this.blank();
      this.settle(this.index);
      const names = [this.state.run, this.state.compare].filter(Boolean);
      const [runs, slices, courses] = await Promise.all([Promise.all(names.map((n) => this.run(n))), Promise.all(names.map((n) => this.slice(n))), Promise.all(names.map((n) => this.course(n)))]);
      if (this.token !== token) return;
      this.shown = { runs, slices, courses };
      this.show();
      const run = runs.find((r) => r.name === this.focused) ?? runs[0];
      const now = { slice: slices[runs.indexOf(run)], statistic: this.statistic, scale: this.scale };
      await this.panel.show(run, this.state, this.view, this.full, this.index.channelStatistics, now);
      if (this.token === token) this.ready();
    } catch (error) {
      if (this.token === token) this.notice.replaceChildren(trouble(error, () => this.reload()));
    }
  }

  /** Fill in missing words of the view, and drop words that name nothing. @param {import("./types.js").Index} index */
  settle(index) {
    const { state } = this;
    const known = new Set(index.runs.map((r) => r.name));
    const newest = [...index.runs].sort((a, b) => b.wall - a.wall || a.name.localeCompare(b.name))[0];
    if (!known.has(state.run)) state.run = newest.name;
    if (!known.has(state.compare) || state.compare === state.run) state.compare = "";
    if (!index.statistics.some((s) => s.name === state.statistic)) state.statistic = "health";
    if (!index.channelStatistics.some((s) => s.name === state.channels)) state.channels = "batch_var";
    this.statistic = /** @type {import("./types.js").Statistic} */ (index.statistics.find((s) => s.name === state.statistic));
  }

  /** @param {string} name */
  async run(name) {
    const found = this.runs.get(name) ?? (await this.source.run(name));
    this.runs.set(name, found);
    return found;
  }

  /** As many columns as there are pixels. */
  get bins() {
    return Math.min(this.index?.columns ?? 400, Math.max(400, Math.round((this.maps[0].map.el.clientWidth || window.innerWidth) * (window.devicePixelRatio || 1))));
  }

  /** @param {string} name */
  async course(name) {
    const found = this.courses.has(name) ? (this.courses.get(name) ?? null) : await this.source.course(name, this.bins);
    this.courses.set(name, found);
    return found;
  }

  /** @param {string} name */
  async slice(name) {
    const { statistic, from, to } = this.state;
    const { bins } = this;
    const whole = JSON.stringify([name, statistic]);
    const known = this.slices.get(whole);
    // Where nothing was thinned away, a part of it is in what is there already.
    if (from === null || to === null || (known && known.frames === known.columns)) {
      const found = known ?? (await this.source.slice(name, statistic, null, bins));
      this.slices.set(whole, found);
      return found;
    }
    return this.source.slice(name, statistic, { from, to }, bins);
  }

  /** All steps of what is shown. @returns {Range} */
  get full() {
    const runs = this.shown?.runs ?? [];
    const gap = (/** @type {Run} */ r) => (r.frames > 1 ? (r.steps[1] - r.steps[0]) / (r.frames - 1) : 1);
    const from = Math.min(...runs.map((r) => Math.max(-1, Math.round(r.steps[0] - gap(r)))));
    return { from, to: Math.max(from + 1, ...runs.map((r) => r.steps[1])) };
  }

  /** The steps in sight. @returns {Range} */
  get view() {
    const { from, to } = this.state;
    return from === null || to === null ? this.full : { from, to };
  }

  show() {
    if (!this.shown || !this.index || !this.statistic) return;
    const { runs, slices, courses } = this.shown;
    const { state, view, full, statistic } = this;
    this.notice.replaceChildren();
    this.main.hidden = false;
    const scale = (this.scale = scaleOf(statistic, slices.map((s) => s.extent)));
    this.toolbar.set(this.index, state, statistic, scale, view, new Set(runs.flatMap((r) => r.incidents.map((i) => i.severity))));
    const rows = [...new Set(runs.flatMap((r) => r.layers.map((l) => l.name)))];
    const room = Math.max(this.least, window.innerHeight - this.room.getBoundingClientRect().top - 84 - (courses.some((c) => c?.rows) ? HEIGHT : 0) - Math.max(...runs.map((r) => Math.min(6, r.incidents.length))) * 20 - (runs.length > 1 ? 20 : 0));
    this.maps[1].el.hidden = runs.length < 2;
    runs.forEach((run, i) => this.maps[i].set({ run, rows, slice: slices[i], course: courses[i], statistic, scale, view, full, state, focused: run.name === this.focused, room, titled: runs.length > 1 }));
  }

  /** Draw everything again, in the colors of another theme. */
  recolor() {
    if (!this.shown) return;
    this.show();
    this.load();
  }

  resized() {
    if (!this.shown) return;
    this.show();
  }

  blank() {
    this.main.hidden = true;
    this.shown = undefined;
    this.toolbar.clear();
    this.notice.replaceChildren(empty());
    this.ready();
  }

  /** Send an event once everything is drawn. */
  ready() {
    document.documentElement.dataset.drawn = String(Math.round(performance.now()));
    document.dispatchEvent(new CustomEvent("bnmonitor-drawn"));
  }

  /** @param {KeyboardEvent} e */
  key(e) {
    if (e.key !== "Escape") return;
    const { state } = this;
    if (state.box) this.change({ box: "" });
    else if (state.from !== null) this.change({ from: null, to: null });
    else if (state.layer || state.incident) this.change({ layer: "", incident: "", channel: null, step: null });
  }
}
