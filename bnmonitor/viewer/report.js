/** The same page outside TensorBoard: a report with its numbers inside. */

import { App } from "./app.js";
import { followAddress, followTheme, readAddress, writeAddress } from "./tensorboard.js";

/** @typedef {import("./types.js").Slice} Slice */
/** @typedef {import("./types.js").Source} Source */
/** @typedef {import("./types.js").Range} Range */

/**
 * @typedef {object} Block  A stack of numbers in the page: `[sheets, rows, columns]`, from an offset on.
 * @property {number} at  Offset in floats.
 * @property {[number, number, number]} shape
 * @property {string[]} sheets  Name of each sheet.
 * @property {number[]} ends  Last step of each column.
 * @property {number} before  Where the first column begins.
 * @property {number} frames  How many frames the columns were made of.
 * @property {([number, number]|null)[]} extents  Of each sheet.
 *
 * @typedef {object} Content
 * @property {import("./types.js").Index} index
 * @property {import("./types.js").Run} run
 * @property {Block} layers
 * @property {Block|null} course  Loss and learning rates, a sheet each.
 * @property {Record<string, Block>} channels
 * @property {Record<string, import("./types.js").Page>} manual  Pages of the incidents' causes and rules, by name.
 */

/** Undo the planes of bytes that numbers are kept in. @param {Uint8Array} planes @returns {Float32Array} */
function unplane(planes) {
  const count = planes.length / 4;
  const bytes = new Uint8Array(planes.length);
  for (let plane = 0; plane < 4; plane++) for (let i = 0, from = plane * count; i < count; i++) bytes[4 * i + plane] = planes[from + i];
  return new Float32Array(bytes.buffer);
}

/** @param {string} text  Base64 of gzip of planes. */
async function numbers(text) {
  const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return unplane(new Uint8Array(await new Response(stream).arrayBuffer()));
}

/** @implements {Source} */
class Inside {
  /** @param {Content} content @param {Float32Array} values */
  constructor(content, values) {
    this.content = content;
    this.values = values;
  }

  async index() {
    return this.content.index;
  }

  async run() {
    return this.content.run;
  }

  async table() {
    return { runs: [], of: 0 };
  }

  /** @param {string} name */
  async manual(name) {
    return this.content.manual[name] ?? null;
  }

  /** @param {Block} block @param {(sheet: number, row: number) => boolean} wanted @param {Range|null} range @param {object} more @returns {Slice} */
  cut(block, wanted, range, more) {
    const [sheets, rows, columns] = block.shape;
    let lo = 0, hi = columns;
    if (range) {
      while (lo < columns && block.ends[lo] < range.from) lo++;
      while (hi > lo && block.ends[hi - 1] > range.to) hi--;
      // A column more on either side, to draw up to the edge.
      lo = Math.max(0, lo - 1);
      hi = Math.min(columns, hi + 1);
    }
    const parts = [];
    for (let sheet = 0; sheet < sheets; sheet++)
      for (let row = 0; row < rows; row++) {
        const start = block.at + (sheet * rows + row) * columns;
        if (wanted(sheet, row)) parts.push(this.values.subarray(start + lo, start + hi));
      }
    const values = new Float32Array(parts.length * (hi - lo));
    parts.forEach((part, i) => values.set(part, i * (hi - lo)));
    // A finer look has nothing more to show: what was thinned away is not in the page.
    const frames = hi - lo;
    return { rows: parts.length, columns: hi - lo, ends: block.ends.slice(lo, hi), before: lo ? block.ends[lo - 1] : block.before, frames, values, ...more };
  }

  /** @type {import("./types.js").Source["slice"]} */
  async slice(run, statistic, range) {
    const block = this.content.layers;
    const sheet = block.sheets.indexOf(statistic);
    return this.cut(block, (s) => s === sheet, range, { extent: block.extents[sheet] ?? null });
  }

  async course() {
    const block = this.content.course;
    return block && this.cut(block, () => true, null, { statistics: block.sheets });
  }

  /** @type {import("./types.js").Source["layer"]} */
  async layer(run, layer, range) {
    const row = this.content.run.layers.findIndex((l) => l.name === layer);
    return this.cut(this.content.layers, (s, r) => r === row, range, { statistics: this.content.layers.sheets });
  }

  /** @type {import("./types.js").Source["channels"]} */
  async channels(run, layer, statistic, range, bins) {
    const block = this.content.channels[layer];
    if (!block) return null;
    const sheet = block.sheets.indexOf(statistic);
    return this.cut(block, (s) => s === sheet, range, { extent: block.extents[sheet] ?? null });
  }

  /** @type {import("./types.js").Source["bands"]} */
  async bands(run, layer, statistic, range) {
    const slice = await this.channels(run, layer, statistic, range, 0);
    return slice && percentiles(slice);
  }

  /** @type {import("./types.js").Source["at"]} */
  async at(run, layer, step) {
    const block = this.content.channels[layer];
    if (!block || !block.ends.length) return null;
    const found = block.ends.findIndex((end) => end >= step);
    const column = found < 0 ? block.ends.length - 1 : found;
    const [sheets, channels, columns] = block.shape;
    const values = Float32Array.from({ length: sheets * channels }, (_, i) => this.values[block.at + i * columns + column]);
    return { rows: values.length, columns: 1, ends: [block.ends[column]], before: block.ends[column] - 1, frames: 1, values, statistics: block.sheets, channels };
  }

  /** @type {import("./types.js").Source["channel"]} */
  async channel(run, layer, channel, range) {
    const block = this.content.channels[layer];
    return block ? this.cut(block, (s, r) => r === channel, range, { statistics: block.sheets }) : null;
  }

  async box() {
    return null;
  }
}

const PERCENTILES = [5, 25, 50, 75, 95];

/** Percentiles over the rows. @param {Slice} slice @returns {Slice} */
function percentiles(slice) {
  const { rows, columns } = slice;
  const values = new Float32Array(PERCENTILES.length * columns).fill(NaN);
  for (let c = 0; c < columns; c++) {
    const known = Array.from({ length: rows }, (_, r) => slice.values[r * columns + c]).filter(Number.isFinite).sort((a, b) => a - b);
    PERCENTILES.forEach((p, i) => {
      const place = ((known.length - 1) * p) / 100;
      const low = Math.floor(place);
      if (known.length) values[i * columns + c] = known[low] + ((known[low + 1] ?? known[low]) - known[low]) * (place - low);
    });
  }
  return { ...slice, rows: PERCENTILES.length, values, percentiles: PERCENTILES };
}

/** @param {string} id */
const text = (id) => document.getElementById(id)?.textContent ?? "";

const content = JSON.parse(text("content"));
const app = new App(new Inside(content, await numbers(text("numbers"))), { words: readAddress(), changed: writeAddress, least: 420 });
followTheme(() => app.recolor());
followAddress((words) => app.visit(words));
document.getElementById("view")?.replaceChildren(app.el);
await app.load();
