/** The numbers from TensorBoard's server; its http_api.md describes the routes. */

/** @typedef {import("./types.js").Slice} Slice */
/** @typedef {import("./types.js").Source} Source */
/** @typedef {import("./types.js").Range} Range */

/** An error of the server, in one sentence. */
class Refused extends Error {
  /** @param {string} message @param {number} code */
  constructor(message, code) {
    super(message);
    this.code = code;
  }
}

/** A uint32 length, as many bytes of JSON, then float32, all little endian. @param {ArrayBuffer} buffer @returns {Slice} */
export function decode(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(read(new Uint8Array(buffer, 4, length)));
  const [rows, columns] = header.shape;
  return { ...header, rows, columns, values: new Float32Array(buffer, 4 + length) };
}

const read = (/** @type {BufferSource} */ bytes) => new TextDecoder().decode(bytes);

/** The answers in one: before each a uint32 of its length. @param {ArrayBuffer} buffer */
function partsOf(buffer) {
  const view = new DataView(buffer);
  const parts = [];
  for (let at = 0; at < buffer.byteLength; at += 4 + view.getUint32(at, true)) parts.push(buffer.slice(at + 4, at + 4 + view.getUint32(at, true)));
  return parts;
}

/** @param {URL} url */
async function fetched(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Refused((await answer.text()) || answer.statusText, answer.status);
  return answer;
}

/** Most slices in one answer. */
const MOST = 16;

/** @implements {Source} */
export class Server {
  /**
   * @param {string} base  Address of the plugin's routes.
   * @param {Promise<Response>} [first]  The answer to the first request, which was sent while the modules were on their way.
   */
  constructor(base, first) {
    this.base = base;
    this.early = first;
    /** The most columns that the server sends. */
    this.columns = Infinity;
    /** Slices that were asked for in this turn of the page. @type {{words: string, done: (slice: Slice) => void, failed: (error: unknown) => void}[]} */
    this.waiting = [];
  }

  /** @param {string} route @param {Record<string, string|number|null|undefined>} [query] */
  async ask(route, query = {}) {
    const url = new URL(route, this.base);
    for (const [name, value] of Object.entries(query)) if (value !== null && value !== undefined) url.searchParams.set(name, String(value));
    return fetched(url);
  }

  /** All that is drawn at first, once; null if it did not come: each part can be asked for. @returns {Promise<import("./types.js").First|null>} */
  async first() {
    const answer = await this.early?.catch(() => null);
    this.early = undefined;
    if (!answer?.ok) return null;
    const parts = partsOf(await answer.arrayBuffer());
    const [index, run] = parts.slice(0, 2).map((part) => JSON.parse(read(part)));
    this.columns = index.columns;
    const [slice, course] = parts.slice(2).map(decode);
    return { index, run: run ?? null, slice: slice ?? null, course: course ?? null };
  }

  async index() {
    const index = await (await this.ask("runs")).json();
    this.columns = index.columns;
    return index;
  }

  /** @param {number} first @param {number} most */
  async table(first, most) {
    return (await this.ask("table", { first, most })).json();
  }

  /** @param {string} name @returns {Promise<import("./types.js").Page|null>} */
  async manual(name) {
    return this.maybe((async () => (await this.ask("manual", { name })).json())());
  }

  /** @param {string} run */
  async run(run) {
    return (await this.ask("run", { run })).json();
  }

  /** @param {string} route @param {Record<string, any>} query @param {Range|null} range @param {number} bins */
  numbers(route, query, range, bins) {
    const part = range ? { from: Math.floor(range.from), to: Math.ceil(range.to) } : {};
    return this.together(route, { ...query, ...part, bins: Math.max(1, Math.min(this.columns, Math.round(bins))) });
  }

  /** A slice; all that are asked for in one turn of the page come in one answer. @param {string} route @param {Record<string, any>} query @returns {Promise<Slice>} */
  together(route, query) {
    if (!this.waiting.length) queueMicrotask(() => this.send());
    const words = `${route}?${new URLSearchParams(query)}`;
    return new Promise((done, failed) => this.waiting.push({ words, done, failed }));
  }

  async send() {
    const asked = this.waiting.splice(0, MOST);
    if (this.waiting.length) queueMicrotask(() => this.send());
    try {
      const url = new URL("several", this.base);
      for (const { words } of asked) url.searchParams.append("ask", words);
      const [states, ...parts] = partsOf(await (await fetched(url)).arrayBuffer());
      const codes = JSON.parse(read(states));
      asked.forEach(({ done, failed }, i) => (codes[i] === 200 ? done(decode(parts[i])) : failed(new Refused(read(parts[i]).trim(), codes[i]))));
    } catch (error) {
      for (const { failed } of asked) failed(error);
    }
  }

  /** @type {import("./types.js").Source["slice"]} */
  slice(run, statistic, range, bins) {
    return this.numbers("slice", { run, statistic }, range, bins);
  }

  /** @type {import("./types.js").Source["course"]} */
  course(run, bins) {
    return this.numbers("course", { run }, null, bins);
  }

  /** @type {import("./types.js").Source["layer"]} */
  layer(run, layer, range, bins) {
    return this.numbers("layer", { run, layer }, range, bins);
  }

  /** @type {import("./types.js").Source["channels"]} */
  channels(run, layer, statistic, range, bins) {
    return this.maybe(this.numbers("channels", { run, layer, statistic }, range, bins));
  }

  /** @type {import("./types.js").Source["bands"]} */
  bands(run, layer, statistic, range, bins) {
    return this.maybe(this.numbers("bands", { run, layer, statistic }, range, bins));
  }

  /** @type {import("./types.js").Source["at"]} */
  at(run, layer, step) {
    return this.maybe(this.together("at", { run, layer, step }));
  }

  /** @type {import("./types.js").Source["channel"]} */
  channel(run, layer, channel, range, bins) {
    return this.maybe(this.numbers("channel", { run, layer, channel }, range, bins));
  }

  /** @type {import("./types.js").Source["box"]} */
  box(run, file, layer, statistic) {
    return this.maybe(this.numbers("box", { run, file, layer, statistic }, null, this.columns));
  }

  /** Null for what is not there. @template T @param {Promise<T>} asked @returns {Promise<T|null>} */
  async maybe(asked) {
    try {
      return await asked;
    } catch (error) {
      if (error instanceof Refused && error.code === 404) return null;
      throw error;
    }
  }
}
