/** A source that asks for nothing twice, until it is told to forget. */

/** @typedef {import("./types.js").Source} Source */

const MOST = 80;

/** @param {Source} source @returns {Source & {forget: () => void}} */
export function remembering(source) {
  /** @type {Map<string, Promise<any>>} */
  const known = new Map();
  /** @template {keyof Source} K @param {K} name @returns {Source[K]} */
  const kept = (name) =>
    /** @type {any} */ (
      (/** @type {any[]} */ ...args) => {
        const key = JSON.stringify([name, ...args]);
        const found = known.get(key) ?? /** @type {any} */ (source)[name](...args);
        // What was used last is the last to go; what failed is asked for again.
        known.delete(key);
        known.set(key, found);
        found.catch(() => known.delete(key));
        if (known.size > MOST) known.delete(/** @type {string} */ (known.keys().next().value));
        return found;
      }
    );
  return {
    first: source.first && (() => /** @type {NonNullable<Source["first"]>} */ (source.first).call(source)),
    index: () => source.index(),
    table: (first, most) => source.table(first, most),
    run: kept("run"), slice: kept("slice"), course: kept("course"), layer: kept("layer"), channels: kept("channels"), bands: kept("bands"),
    at: kept("at"), channel: kept("channel"), box: kept("box"), manual: kept("manual"),
    forget: () => known.clear(),
  };
}
