/** Channels in an order: by number, those of an incident first, or by a statistic at a step. */

import { severity } from "./text.js";

/** @typedef {import("./types.js").Slice} Slice */
/** @typedef {import("./rows.js").Row} Row */

/** A statistic of all channels at a step. @param {Slice|null} at @param {string} name */
export function column(at, name) {
  const k = at?.statistics?.indexOf(name) ?? -1;
  const count = at?.channels ?? 0;
  return at && k >= 0 ? at.values.subarray(k * count, (k + 1) * count) : null;
}

/**
 * The severity of each channel that an incident names, in a layer.
 * @param {import("./types.js").Run} run @param {string} layer @param {string} chosen  Index of an incident; empty: all of them.
 */
export function flagged(run, layer, chosen) {
  /** @type {Map<number, string>} */
  const found = new Map();
  for (const i of run.incidents) {
    if (chosen && String(i.index) !== chosen) continue;
    for (const a of i.evidence) {
      if (a.layer !== layer) continue;
      const of = i.state === "open" ? i.severity : "info";
      for (const c of a.channels) if (severity(of).rank >= severity(found.get(c) ?? "info").rank) found.set(c, of);
    }
  }
  return found;
}

/**
 * @param {number} count
 * @param {string} rank  Empty: by number; `incident`: those of incidents first; a statistic: the largest first, with `-` the smallest.
 * @param {Slice|null} at @param {Map<number, string>} flags
 * @returns {Row[]}
 */
export function ordered(count, rank, at, flags) {
  const numbers = Array.from({ length: count }, (_, i) => i);
  const least = rank.startsWith("-");
  const values = column(at, least ? rank.slice(1) : rank);
  if (rank === "incident") numbers.sort((a, b) => Number(flags.has(b)) - Number(flags.has(a)) || a - b);
  else if (values) {
    const key = (/** @type {number} */ i) => (Number.isNaN(values[i] ?? NaN) ? -Infinity : least ? -values[i] : values[i]);
    numbers.sort((a, b) => (key(a) === key(b) ? a - b : key(b) - key(a)));
  }
  return numbers.map((i) => ({ id: String(i), kind: "layer", label: String(i), depth: 0, members: [i] }));
}
