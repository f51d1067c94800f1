/** The numbers of the maps: what was asked for is kept, and a part of it is not asked for again. */

/** @typedef {import("./types.js").Slice} Slice */
/** @typedef {import("./types.js").Run} Run */

const key = (/** @type {string} */ run, /** @type {string} */ statistic) => JSON.stringify([run, statistic]);

export class Numbers {
  /** @param {import("./types.js").Source} source */
  constructor(source) {
    this.source = source;
    /** @type {Map<string, Run>} */
    this.runs = new Map();
    /** Of all steps. @type {Map<string, Slice>} */
    this.slices = new Map();
    /** @type {Map<string, Slice|null>} */
    this.courses = new Map();
  }

  forget() {
    this.runs.clear();
    this.slices.clear();
    this.courses.clear();
  }

  /** Take what came with the first answer; null if there is none. @param {string} statistic  What it shows, if there is one of that name. */
  async first(statistic) {
    const first = await this.source.first?.();
    if (first?.run && first.slice) {
      const { name } = first.run;
      this.runs.set(name, first.run);
      this.slices.set(key(name, first.index.statistics.find((s) => s.name === statistic)?.name ?? "health"), first.slice);
      this.courses.set(name, first.course);
    }
    return first?.index ?? null;
  }

  /** @param {string} name */
  async run(name) {
    const found = this.runs.get(name) ?? (await this.source.run(name));
    this.runs.set(name, found);
    return found;
  }

  /** @param {string} name @param {number} bins */
  async course(name, bins) {
    const found = this.courses.has(name) ? (this.courses.get(name) ?? null) : await this.source.course(name, bins);
    this.courses.set(name, found);
    return found;
  }

  /** What is there of all steps. @param {string} name @param {string} statistic */
  known(name, statistic) {
    return this.slices.get(key(name, statistic));
  }

  /** @param {string} name @param {string} statistic @param {import("./types.js").Range|null} range  null: all steps. @param {number} bins */
  async slice(name, statistic, range, bins) {
    const known = this.known(name, statistic);
    // Where nothing was thinned away, a part of it is in what is there already.
    if (range && !(known && known.frames === known.columns)) return this.source.slice(name, statistic, range, bins);
    const found = known ?? (await this.source.slice(name, statistic, null, bins));
    this.slices.set(key(name, statistic), found);
    return found;
  }
}
