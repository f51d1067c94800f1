/** All runs as a table: sort, filter, choose some, and compare what was chosen. */

import { drawing, h } from "./dom.js";
import { Overlay } from "./overlay.js";
import { glob } from "./rows.js";
import { css, scaleOf } from "./scale.js";
import { settingsOf, Sweep } from "./sweep.js";
import { count, cut, grouped, number, severity } from "./text.js";

/** @typedef {import("./types.js").Row} Row */
/** @typedef {import("./view_state.js").State} State */

const PART = 100;

/**
 * The columns: its word in the address, its head, what it sorts by, and whether the largest comes first unless asked otherwise.
 * @type {[string, string, (row: Row) => number|string|null, boolean][]}
 */
const COLUMNS = [
  ["run", "run", (r) => r.name, false],
  ["verdict", "verdict", (r) => (r.severity ? 1000 * severity(r.severity).rank + r.open : 0), true],
  ["first", "first incident, step", (r) => r.first?.step ?? null, false],
  ["health", "health", (r) => r.lowest, false],
  ["loss", "last loss", (r) => (r.loss === null ? null : Number(r.loss)), false],
  ["steps", "steps", (r) => r.steps?.[1] ?? null, true],
  ["date", "date", (r) => (r.wall ? Number(r.wall) : null), true],
];
const DATE = COLUMNS.length - 1;

/** The column that runs are sorted by, and whether the largest comes first. @param {string} order */
function sorting(order) {
  const column = COLUMNS.find(([id]) => id === order.replace("-", "")) ?? COLUMNS[DATE];
  return { id: column[0], by: column[2], down: column[3] !== order.startsWith("-") };
}

/** Names of runs in the address. */
const namesOf = (/** @type {string} */ words) => words.split("\n").filter(Boolean);

export class RunsView {
  /** @param {import("./types.js").Source} source @param {{change: (part: Partial<State>) => void, trouble: (error: unknown) => void}} on */
  constructor(source, on) {
    this.source = source;
    this.on = on;
    /** @type {Row[]} */
    this.rows = [];
    /** @type {{against: string, dark: boolean, rows: Map<Row, any>}|null} */
    this.kept = null;
    this.of = 0;
    /** @type {string|undefined} */
    this.seen = undefined;
    this.filter = h("input", { type: "search", id: "bn-runs", placeholder: "filter by name, verdict or setting", "aria-label": "filter runs", oninput: () => this.on.change({ seek: this.filter.value }) });
    this.said = h("span", { class: "quiet", role: "status" });
    this.actions = h("span", { class: "row" });
    this.head = h("tr");
    this.body = h("tbody");
    this.overlay = new Overlay(source, on);
    this.sweep = new Sweep({ change: on.change, open: (run) => this.open({ run }) });
    this.hint = h("p", { class: "quiet hint" }, "Choose runs to lay one layer of all of them over each other; choose two for a map of their difference. Click a name to open the run.");
    const table = h("table", { class: "runs-table" }, h("thead", {}, this.head), this.body);
    this.el = h("main", { class: "split runs", hidden: true },
      h("section", { class: "runs-list", "aria-label": "runs" }, h("div", { class: "row" }, this.filter, this.said, this.actions), this.hint, h("div", { class: "runs-scroll", tabindex: 0, "aria-label": "table of runs" }, table)),
      h("aside", { class: "side", "aria-label": "comparison" }, this.overlay.el, this.sweep.el));
  }

  /** @param {import("./types.js").Index} index @param {State} state @param {import("./types.js").Statistic} statistic */
  async show(index, state, statistic) {
    this.state = state;
    this.health = index.statistics.find((s) => s.name === "health");
    const seen = JSON.stringify(index.runs);
    if (seen !== this.seen) {
      this.seen = seen;
      this.begun = this.read();
    }
    if (!this.rows.length) await this.begun;
    this.draw(this.rows);
    await this.overlay.show(this.chosen(), state, statistic);
  }

  /**
   * Read the rows, a part at a time, as hundreds take a while; whatever is sorted, filtered and chosen meanwhile is done
   * with what has come. @returns {Promise<void>}  Resolved when the first part is there.
   */
  async read() {
    const token = (this.token = {});
    const fresh = !this.rows.length;
    /** @type {Row[]} */
    const rows = [];
    const next = async () => {
      const part = await this.source.table(rows.length, PART);
      if (this.token !== token) return true;
      rows.push(...part.runs);
      this.of = part.of;
      const last = !part.runs.length || rows.length >= part.of;
      // Rows that are there already stay until all are read again.
      if (fresh || last) this.draw((this.rows = rows.slice()));
      return last;
    };
    const failed = (/** @type {unknown} */ error) => {
      // The next view asks again.
      if (this.token === token) this.seen = undefined;
      throw error;
    };
    const rest = async () => {
      while (!(await next()));
    };
    if (!(await next().catch(failed))) rest().catch(failed).catch(this.on.trouble);
  }

  /** Leave the table for one run or two. @param {Partial<State>} part */
  open(part) {
    this.on.change({ view: "", compare: "", diff: "", focus: "", layer: "", incident: "", box: "", channel: null, ...part });
  }

  /** The chosen runs that are there, in the order in which they were chosen: the first is what others are compared with. */
  chosen() {
    const known = new Map(this.rows.map((r) => [r.name, r]));
    return namesOf(this.state?.chosen ?? "").flatMap((name) => known.get(name) ?? []);
  }

  /** The rows that the filter leaves, sorted. */
  listed() {
    const { seek, order } = /** @type {State} */ (this.state);
    const fits = matcher(seek);
    const { by, down } = sorting(order);
    const unknown = (/** @type {any} */ v) => v === null || Number.isNaN(v);
    return this.rows.filter(fits).map((row) => ({ row, key: by(row) })).sort((a, b) => {
      if (unknown(a.key) || unknown(b.key)) return Number(unknown(a.key)) - Number(unknown(b.key));
      const way = typeof a.key === "string" ? a.key.localeCompare(String(b.key), undefined, { numeric: true }) : Number(a.key) - Number(b.key);
      return (down ? -way : way) || a.row.name.localeCompare(b.row.name, undefined, { numeric: true });
    }).map((one) => one.row);
  }

  /** @param {Row[]} rows */
  draw(rows) {
    const { state } = this;
    if (!state) return;
    if (document.activeElement !== this.filter) this.filter.value = state.seek;
    const shown = (this.shown = this.listed());
    const chosen = new Set(namesOf(state.chosen));
    const [against] = settingsOf(rows, state.against);
    const picked = this.chosen();
    this.said.textContent = `${shown.length === rows.length ? count(rows.length, "run") : `${grouped(shown.length)} of ${count(rows.length, "run")}`}${rows.length < this.of ? `, reading ${grouped(this.of)}` : ""}${picked.length ? ` · ${picked.length} chosen` : ""}`;
    const act = (/** @type {string} */ label, /** @type {Partial<State>} */ part, open = "") => h("button", { type: "button", onclick: () => (open ? this.open(part) : this.on.change(part)) }, label);
    const [a, b] = picked.map((r) => r.name);
    this.actions.replaceChildren(
      ...(picked.length === 2 ? [act("Side by side", { run: a, compare: b }, "open"), act("Difference", { run: a, compare: b, diff: "1" }, "open")] : []),
      ...(picked.length ? [act("Choose none", { chosen: "" })] : [act(`Choose ${shown.length === rows.length ? "all" : `these ${shown.length}`}`, { chosen: shown.map((r) => r.name).join("\n") })]),
    );
    const now = sorting(state.order);
    const columns = COLUMNS.map(([id, label]) => {
      const way = id !== now.id ? "none" : now.down ? "descending" : "ascending";
      const turn = () => this.on.change({ order: id === now.id && !state.order.startsWith("-") ? `-${id}` : id });
      return h("th", { scope: "col", class: id, "aria-sort": way }, h("button", { class: "sort", type: "button", onclick: turn }, label, h("i", { "aria-hidden": true }, { ascending: " ▲", descending: " ▼", none: "" }[way])));
    });
    this.head.replaceChildren(h("th", { scope: "col" }, h("span", { class: "unseen" }, "chosen")), ...columns, ...(against ? [h("th", { scope: "col", class: "setting", title: against }, cut(against, 24))] : []));
    const dark = document.documentElement.classList.contains("dark");
    const scale = scaleOf(/** @type {import("./types.js").Statistic} */ (this.health), []);
    // A row that has not changed is moved, and not made again: there may be hundreds.
    const kept = this.kept?.against === against && this.kept.dark === dark ? this.kept.rows : new Map();
    this.kept = { against, dark, rows: kept };
    this.body.replaceChildren(...shown.map((r) => {
      const el = kept.get(r) ?? this.row(r, against, scale);
      kept.set(r, el);
      el.className = chosen.has(r.name) ? "chosen" : "";
      el.querySelector("input").checked = chosen.has(r.name);
      return el;
    }));
    this.hint.hidden = picked.length > 0;
    this.sweep.show(shown, state, chosen);
    this.el.classList.toggle("alone", !picked.length && this.sweep.el.hidden);
  }

  /** @param {Row} r @param {string} against @param {import("./scale.js").Scale} scale */
  row(r, against, scale) {
    const toggle = () => {
      const names = namesOf(/** @type {State} */ (this.state).chosen);
      this.on.change({ chosen: (names.includes(r.name) ? names.filter((n) => n !== r.name) : [...names, r.name]).join("\n") });
    };
    const rank = r.severity || "healthy";
    const glyph = r.severity ? severity(r.severity).glyph : r.steps ? "✓" : "·";
    return h("tr", {},
      h("td", {}, h("input", { type: "checkbox", "aria-label": `choose ${r.name}`, onchange: toggle })),
      h("td", { class: "run" }, h("button", { class: "link", type: "button", title: r.name, onclick: () => this.open({ run: r.name }) }, cut(r.name, window.innerWidth > 1500 ? 48 : 32))),
      h("td", { class: `verdict ${rank}`, title: r.verdict }, h("b", {}, glyph), ` ${r.severity ? r.verdict : r.steps ? "healthy" : "nothing recorded"}`),
      h("td", { class: "first", title: r.first?.title }, r.first ? h("div", {}, h("span", {}, r.first.title === r.verdict ? "the same" : r.first.title), h("b", {}, ` ${grouped(r.first.step)}`)) : "–"),
      h("td", { class: "health" }, spark(r, scale)),
      h("td", { class: "num" }, r.loss === null ? "–" : number(r.loss)),
      h("td", { class: "num" }, r.steps ? grouped(r.steps[1]) : "–"),
      h("td", { class: "num date" }, ...(r.wall ? date(Number(r.wall)) : ["–"])),
      against ? h("td", { class: "num setting" }, told(r.settings[against])) : null);
  }

  /** What is shown, as lines of a table. @returns {(string|number|null)[][]} */
  table() {
    const rows = this.shown ?? [];
    const settings = [...new Set(rows.flatMap((r) => Object.keys(r.settings)))];
    return [
      ["run", "verdict", "severity", "open incidents", "first incident", "since step", "lowest health", "last loss", "last step", "written (UTC)", ...settings],
      ...rows.map((r) => [r.name, r.verdict, r.severity, r.open, r.first?.title ?? "", r.first?.step ?? null, r.lowest, r.loss, r.steps?.[1] ?? null, r.wall ? new Date(1000 * Number(r.wall)).toISOString() : "", ...settings.map((s) => r.settings[s] ?? null)]),
    ];
  }
}

/** Whether a run has all words of a filter; with `*` or `?` a glob over its whole name. @param {string} seek @returns {(row: Row) => boolean} */
function matcher(seek) {
  const words = seek.trim().toLowerCase();
  if (/[*?]/.test(words)) {
    const fits = glob(words);
    return (row) => fits(row.name.toLowerCase());
  }
  const parts = words.split(/\s+/).filter(Boolean);
  return (row) => {
    const said = `${row.name} ${row.severity || "healthy"} ${row.verdict} ${row.first?.title ?? ""} ${Object.entries(row.settings).map(([name, value]) => `${name}=${value}`).join(" ")}`.toLowerCase();
    return parts.every((part) => said.includes(part));
  };
}

/** A number or a word of a setting. @param {any} value */
const told = (value) => (value === undefined || value === null ? "–" : typeof value === "number" ? number(value) : cut(String(value), 24));

/** @param {number} seconds */
function date(seconds) {
  // Sweden writes dates as ISO 8601 does.
  const text = new Date(1000 * seconds).toLocaleString("sv", { dateStyle: "short", timeStyle: "short" });
  return [h("span", { class: "year" }, text.slice(0, 5)), text.slice(5)];
}

/** The health of the worst layer over the run, a bar each, in the colors of the map. @param {Row} r @param {import("./scale.js").Scale} scale */
function spark({ health, lowest }, scale) {
  /** @type {Map<string, string>} */
  const paths = new Map();
  health.forEach((v, i) => {
    if (v === null) return;
    const color = css(scale, scale.place(v));
    paths.set(color, `${paths.get(color) ?? ""}M${i} 20V${(20 - Math.max(2, v / 5)).toFixed(1)}h1V20z`);
  });
  return drawing("svg", { viewBox: `0 0 ${Math.max(1, health.length)} 20`, width: 96, height: 18, preserveAspectRatio: "none", role: "img", "aria-label": lowest === null ? "health not known" : `lowest health ${lowest}` },
    ...[...paths].map(([fill, d]) => drawing("path", { d, fill })));
}
