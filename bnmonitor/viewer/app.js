/** The page: its state, the numbers that it asks for, and what it shows. */

import { Toolbar } from "./toolbar.js";
import { difference, differing } from "./difference.js";
import { h, once } from "./dom.js";
import { empty, trouble } from "./notices.js";
import { verdict } from "./incidents.js";
import { pressed } from "./keys.js";
import { remembering } from "./memory.js";
import { Numbers } from "./numbers.js";
import { MOST, Overview } from "./overview.js";
import { linesOf } from "./out.js";
import { Panel } from "./panel.js";
import { RunsView } from "./runs.js";
import { scaleOf } from "./scale.js";
import { Share } from "./share.js";
import { MapBar } from "./mapbar.js";
import { ranks } from "./folded.js";
import { folded, rowsOf } from "./rows.js";
import { axisOf, offered } from "./axis.js";
import { heightOf } from "./strip.js";
import { fromWords, toWords } from "./view_state.js";

/** @typedef {import("./types.js").Run} Run */
/** @typedef {import("./types.js").Slice} Slice */
/** @typedef {import("./types.js").Range} Range */
/** @typedef {import("./view_state.js").State} State */

/** What of a view is a place to come back to; the rest, such as the zoom, is a detail of it. */
const PLACES = /** @type {const} */ (["view", "run", "compare", "diff", "statistic", "layer", "incident", "page", "box", "focus"]);

/** @param {State} state @param {Partial<State>} part */
const isTurn = (state, part) => PLACES.some((name) => part[name] !== undefined && part[name] !== state[name]);

const POLL = 10_000;
const PAUSE = 40;
const MAP_ONLY = new Set(["filter", "fold", "group", "least"]);

export class App {
  /**
   * @param {import("./types.js").Source} source
   * @param {{words: Record<string, string>, changed?: (words: Record<string, string>, turn: boolean) => void, live?: boolean, least?: number}} options
   */
  constructor(source, options) {
    this.source = remembering(source);
    this.changed = options.changed;
    this.least = options.least ?? 160;
    /** @type {State} */
    this.state = fromWords(options.words);
    /** @type {import("./types.js").Index|null} */
    this.index = null;
    this.numbers = new Numbers(this.source);
    /** @type {{runs: Run[], slices: Slice[], courses: (Slice|null)[], sorted: Slice|null}|undefined} */
    this.shown = undefined;
    /** @type {{key: string, rows: import("./rows.js").Row[]}|undefined} */
    this.lines = undefined;
    /** @type {import("./types.js").Statistic|undefined} */
    this.statistic = undefined;
    this.slide = once(() => this.moved());
    this.glided = -Infinity;
    this.toolbar = new Toolbar({ change: (part) => this.change(part) });
    this.bar = new MapBar({ change: (part) => this.change(part) });
    const on = {
      zoom: (/** @type {Range|null} */ view) => this.change({ from: view?.from ?? null, to: view?.to ?? null }),
      incident: (/** @type {import("./types.js").Incident} */ i, /** @type {string} */ run) =>
        this.change({ incident: String(i.index), layer: i.layer ?? "", step: i.first_step, channel: null, box: "", focus: run }),
    };
    const overview = (/** @type {number} */ names, /** @type {() => string} */ run) =>
      new Overview(names, {
        zoom: on.zoom,
        incident: (i) => on.incident(i, run()),
        point: (step) => this.maps.forEach((map) => map.strip.point(step)),
        toggle: (path, open) => this.change({ fold: folded(this.state.fold, path, open), group: path }),
        group: (group, step) => this.change({ group, step }),
        select: (layer, step, unfold) =>
          this.change({
            layer, step, group: "", focus: run(), ...(layer === this.state.layer ? {} : { incident: "", channel: null, box: "" }),
            ...(unfold === undefined ? {} : { fold: folded(this.state.fold, unfold, true) }),
          }),
      });
    this.maps = [overview(window.innerWidth > 1800 ? 280 : 190, () => this.state.run), overview(0, () => this.state.compare)];
    this.panel = new Panel(this.source, { change: (part) => this.change(part), zoom: on.zoom, incident: (i) => on.incident(i, this.focused) });
    this.table = new RunsView(this.source, { change: (part) => this.change(part), trouble: (error) => this.trouble(error) });
    this.share = new Share(() => this.given());
    this.toolbar.el.append(this.share.el);
    this.notice = h("div", { class: "notice-place" });
    this.room = h("section", { class: "maps" }, ...this.maps.map((m) => m.el));
    this.answer = h("div", { class: "answer" });
    this.left = h("div", { class: "left" }, this.answer, this.bar.el, this.room);
    this.main = h("main", { class: "split", hidden: true }, this.left, this.panel.el);
    this.el = h("div", { class: "bn" }, this.toolbar.el, this.notice, this.main, this.table.el);
    new ResizeObserver(() => this.resized()).observe(this.room);
    document.addEventListener("keydown", (e) => pressed(this, e));
    if (options.live) setInterval(() => this.poll(), POLL);
  }

  /** The run that the panel shows. */
  get focused() {
    return this.state.focus && this.state.focus === this.state.compare ? this.state.compare : this.state.run;
  }

  /** Change a part of the view. @param {Partial<State>} part */
  change(part) {
    const turn = isTurn(this.state, part);
    Object.assign(this.state, part);
    const moving = this.waiting !== undefined;
    clearTimeout(this.waiting);
    this.waiting = undefined;
    if (this.shown && "from" in part && Object.keys(part).length === 2) return void this.glide();
    this.changed?.(toWords(this.state), turn);
    // What concerns the map alone is drawn at once, and the panel stays.
    if (this.shown && !moving && Object.keys(part).every((word) => MAP_ONLY.has(word))) {
      this.show();
      return this.ready();
    }
    this.load();
  }

  /** Go to a view that the address names, such as the one before. @param {Record<string, string>} words */
  visit(words) {
    const { run } = this.state;
    const next = fromWords(words);
    next.run ||= run;
    if (JSON.stringify(toWords(next)) === JSON.stringify(toWords(this.state))) return;
    this.state = next;
    this.load();
  }

  /** What is shown, to be given out. @returns {import("./share.js").Shown|null} */
  given() {
    const { state, shown, statistic } = this;
    if (!this.index || !statistic) return null;
    if (state.view === "runs") return { root: this.table.el, name: "runs", lines: () => this.table.table() };
    if (!shown) return null;
    const { all } = this.panel.layer;
    const name = [state.run, state.compare, state.layer || statistic.name].filter(Boolean).join("-");
    const map = this.map ?? { slice: shown.slices[0], rows: shown.runs[0].layers.map((l) => l.name) };
    return { root: this.main, name, lines: () => (state.layer && all ? linesOf(all, all.statistics ?? [], "statistic") : linesOf(map.slice, map.rows, "layer")) };
  }

  /** Draw another range of the numbers at hand at once, and ask for finer ones when the pointer rests. */
  glide() {
    if (!this.shown) return;
    const { runs, slices } = this.shown;
    this.token = {};
    this.shown = { ...this.shown, runs, slices: runs.map((run, i) => this.numbers.known(run.name, this.state.statistic) ?? slices[i]) };
    // What moves it next goes on from here, drawn or not.
    for (const { map } of this.maps) if (map.shown) map.shown = { ...map.shown, view: this.view };
    this.slide();
    // A single zoom asks at once, and a range that keeps moving when it rests.
    const now = performance.now();
    this.waiting = setTimeout(() => this.rested(), now - this.glided > 3 * PAUSE ? 0 : PAUSE);
    this.glided = now;
  }

  /** Ask for the numbers of the range that is left in sight. */
  rested() {
    this.waiting = undefined;
    this.changed?.(toWords(this.state), false);
    this.load();
  }

  /** Draw the maps in another range; all that stands around them is as it was. */
  moved() {
    const { shown, state, view, maps } = this;
    if (!shown || state.view === "runs") return;
    // The order of the layers, and what two runs differ by, depend on the range.
    if (state.diff || state.sort || maps[0].seen?.statistic !== this.statistic) return this.show();
    this.toolbar.steps(state, view);
    shown.runs.forEach((_, i) => {
      const { seen } = maps[i];
      if (seen) maps[i].set({ ...seen, slice: shown.slices[i], state, view });
    });
  }

  /** Read everything again; the view stays. */
  async reload() {
    this.index = null;
    this.numbers.forget();
    this.source.forget();
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
      const first = this.index ? null : await this.numbers.first(this.state.statistic);
      this.index ??= first ?? (await this.source.index());
      if (this.token !== token) return;
      if (!this.index.runs.length) return this.blank();
      this.settle(this.index);
      if (this.state.view === "runs") return void (await this.list(token));
      const names = [this.state.run, this.state.compare].filter(Boolean);
      const { sort, statistic, from, to } = this.state;
      const { numbers, bins } = this;
      const range = from === null || to === null ? null : { from, to };
      const [runs, slices, courses, sorted] = await Promise.all([
        Promise.all(names.map((n) => numbers.run(n))), Promise.all(names.map((n) => numbers.slice(n, statistic, range, bins))), Promise.all(names.map((n) => numbers.course(n, bins))),
        sort && sort !== statistic ? numbers.slice(names[0], sort, null, bins) : null,
      ]);
      if (this.token !== token) return;
      this.shown = { runs, slices, courses, sorted };
      this.show();
      const run = runs.find((r) => r.name === this.focused) ?? runs[0];
      const now = { slice: slices[runs.indexOf(run)], statistic: /** @type {import("./types.js").Statistic} */ (this.statistic), scale: /** @type {import("./scale.js").Scale} */ (this.scale), axis: /** @type {import("./axis.js").Axis} */ (this.axis), layers: this.index.statistics };
      await this.panel.show(run, this.state, this.view, this.full, this.index.channelStatistics, now);
      if (this.token === token) this.ready();
    } catch (error) {
      if (this.token === token) this.trouble(error);
    }
  }

  /** @param {unknown} error */
  trouble(error) {
    this.notice.replaceChildren(trouble(error, () => this.reload()));
  }

  /** Show the table of runs. @param {object} token */
  async list(token) {
    const { index, state, statistic } = this;
    if (!index || !statistic) return;
    this.notice.replaceChildren();
    this.main.hidden = true;
    this.table.el.hidden = false;
    this.toolbar.set(index, state, statistic, null, this.view, new Set());
    await this.table.show(index, state, statistic);
    if (this.token === token) this.ready();
  }

  /** Fill in missing words of the view, and drop words that name nothing. @param {import("./types.js").Index} index */
  settle(index) {
    const { state } = this;
    const known = new Set(index.runs.map((r) => r.name));
    if (state.view === "runs" && (index.runs.length < 2 || !this.source.table)) state.view = "";
    const newest = [...index.runs].sort((a, b) => b.wall - a.wall || a.name.localeCompare(b.name))[0];
    if (!known.has(state.run)) state.run = newest.name;
    if (!known.has(state.compare) || state.compare === state.run) state.compare = state.diff = "";
    if (!index.statistics.some((s) => s.name === state.statistic)) state.statistic = "health";
    if (!index.channelStatistics.some((s) => s.name === state.channels)) state.channels = "batch_var";
    if (!index.statistics.some((s) => s.name === state.sort)) state.sort = "";
    this.statistic = /** @type {import("./types.js").Statistic} */ (index.statistics.find((s) => s.name === state.statistic));
  }

  /** As many columns as there are pixels. */
  get bins() {
    const { width, el } = this.maps[0].map;
    return Math.min(this.index?.columns ?? 400, Math.max(400, Math.round((width > 1 ? width : el.clientWidth || window.innerWidth) * (window.devicePixelRatio || 1))));
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
    this.table.el.hidden = true;
    const { scale, axis } = this.measures(statistic, slices, courses[0]);
    this.toolbar.set(this.index, state, statistic, scale, view, new Set(runs.flatMap((r) => r.incidents.map((i) => i.severity))));
    const names = [...new Set(runs.flatMap((r) => r.layers.map((l) => l.name)))];
    const about = { all: names.length, shown: names.length, grouped: !state.sort, curves: courses.some((c) => heightOf(c)) };
    // The answer stands over everything; of two runs each has its own.
    this.answer.replaceChildren(...(runs.length > 1 ? [] : [verdict(runs[0])]));
    // The bar may take two lines, so that it is filled in first.
    this.bar.set(this.index, state, offered(courses[0]), axis.name, about);
    // What stands around the rows: the curves, the axis, the incidents, the padding, and the names and verdicts of two runs.
    const lanes = Math.max(...runs.map((r) => Math.min(6, r.incidents.length)));
    const curves = Math.max(...courses.map((c) => heightOf(c)));
    const around = 52 + curves + (lanes && 10 + lanes * 20) + (runs.length > 1 ? 48 : 0);
    const room = Math.max(this.least, window.innerHeight - this.room.getBoundingClientRect().top - window.scrollY - around);
    this.panel.width = this.panel.el.clientWidth;
    const rows = this.rows(names, room);
    about.shown = rows.reduce((sum, row) => sum + (row.kind === "open" ? 0 : row.members.length), 0);
    this.bar.set(this.index, state, offered(courses[0]), axis.name, about);
    this.map = undefined;
    // Room that few layers leave is the loss's.
    const tall = Math.max(0, Math.min(160, (room - MOST * rows.length) / 3));
    this.place = this.placed();
    if (state.diff && runs.length > 1) return this.showDifference(names, rows, room);
    this.maps[1].el.hidden = runs.length < 2;
    runs.forEach((run, i) => this.maps[i].set({ run, names, rows, slice: slices[i], course: courses[i], statistic, scale, axis, view, full, state, focused: run.name === this.focused, room, tall, titled: runs.length > 1 }));
  }

  /** The scale and the axis; those of last time if nothing changed. @param {import("./types.js").Statistic} statistic @param {Slice[]} slices @param {Slice|null} course */
  measures(statistic, slices, course) {
    const { state } = this;
    const of = [JSON.stringify([statistic.name, slices.map((s) => s.extent), state.scale, state.axis, document.documentElement.className]), course];
    if (!this.scale || !this.axis || of.some((part, i) => part !== this.measured?.[i])) {
      this.measured = of;
      this.scale = scaleOf(statistic, slices.map((s) => s.extent), state.scale);
      this.axis = axisOf(state.axis, course);
    }
    return { scale: this.scale, axis: this.axis };
  }

  /** The lines of the maps; those of last time if nothing changed. @param {string[]} names @param {number} room */
  rows(names, room) {
    if (!this.shown) return [];
    const { runs, slices, sorted } = this.shown;
    const { filter, fold, sort, least, step } = this.state;
    const key = JSON.stringify([names, filter, fold, sort, least, sort && (step ?? this.view.to), room, runs.map((r) => [r.name, r.incidents.length])]);
    if (this.lines?.key === key && !sort) return this.lines.rows;
    const open = runs.flatMap((r) => r.incidents).filter((i) => i.state === "open" && i.layer !== null);
    const wanted = new Set(open.map((i) => names.indexOf(String(i.layer))));
    const by = this.index?.statistics.find((s) => s.name === sort);
    const slice = sorted ?? slices[0];
    const at = new Map(runs[0].layers.map((l, i) => [l.name, i]));
    const rank = by && slice ? ranks(slice, Int32Array.from(names, (name) => at.get(name) ?? -1), by, step ?? this.view.to, !!least) : null;
    this.lines = { key, rows: rowsOf(names, { filter, fold, rank, room, wanted }) };
    return this.lines.rows;
  }

  /** Two runs as one map. @param {string[]} names @param {import("./rows.js").Row[]} rows @param {number} room */
  showDifference(names, rows, room) {
    const { runs, slices } = /** @type {NonNullable<App["shown"]>} */ (this.shown);
    const { state, view, full } = this;
    const of = /** @type {import("./types.js").Statistic} */ (this.statistic);
    const [a, b] = runs.map((r) => r.layers.map((l) => l.name));
    const slice = difference(slices[0], slices[1], names, a, b, of);
    const statistic = differing(of);
    const scale = scaleOf(statistic, [slice.extent]);
    this.toolbar.set(/** @type {import("./types.js").Index} */ (this.index), state, statistic, scale, view, new Set());
    this.maps[1].el.hidden = true;
    this.map = { slice, rows: names };
    const run = { ...runs[0], layers: names.map((name) => ({ name, channels: 0, detailed: false })), incidents: [] };
    const axis = /** @type {import("./axis.js").Axis} */ (this.axis);
    this.maps[0].set({ run, names, rows, slice, course: null, statistic, scale, axis, view, full, state, focused: true, room, tall: 0, titled: false, said: `${runs[1].name} less ${runs[0].name}` });
  }

  /** Draw everything again, in the colors of another theme. */
  recolor() {
    if (this.state.view !== "runs") this.show();
    if (this.index) this.load();
  }

  /** What of the window decides how the maps are laid out. */
  placed() {
    return [this.room.clientWidth, this.room.getBoundingClientRect().top + window.scrollY, window.innerHeight].join();
  }

  resized() {
    if (this.state.view !== "runs" && this.place !== this.placed()) this.show();
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
}
