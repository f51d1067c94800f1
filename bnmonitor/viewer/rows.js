/** Which lines a map has: layers by module path, groups that fold, a filter, and an order. */

/**
 * A line of a map.
 * @typedef {object} Row
 * @property {string} id  The layer's name, or the group's path.
 * @property {"layer"|"folded"|"open"} kind  "open" is the heading of an unfolded group: it has no numbers.
 * @property {string} label  Without what its heading says.
 * @property {number} depth  Of the headings that it stands under.
 * @property {number[]} members  Places of its layers among the names.
 *
 * @typedef {object} Group  A layer has no groups under it.
 * @property {string} path
 * @property {string} label
 * @property {number[]} members
 * @property {Group[]} under
 */

/** Height of a heading. */
export const HEADING = 17;
/** Least height of a row whose name is legible. */
export const LEGIBLE = 11;
/** As many layers of a group are shown without groups of their own. */
const FEW = 20;
/** Longer lists are put into groups of ten. */
const MANY = 24;

/**
 * The layers, grouped by the parts of their paths; a group stands where its first layer runs.
 * @param {string[]} names @param {number[]} places
 * @param {boolean} [plain]  No groups within groups.
 */
function groups(names, places, plain = false) {
  return branch(names.map((name) => name.split(".")), places, 0, 0, plain);
}

/**
 * @param {string[][]} paths @param {number[]} places
 * @param {number} k  How many parts of the path they share.
 * @param {number} said  How many of these a heading says.
 * @param {boolean} plain
 * @returns {Group[]}
 */
function branch(paths, places, k, said, plain) {
  /** @type {Map<string, number[]>} */
  const by = new Map();
  for (const i of places) {
    // A layer is never a group, not even where its name is also the beginning of another's.
    const key = paths[i].length > k + 1 ? `.${paths[i][k]}` : `=${i}`;
    const found = by.get(key);
    if (found) found.push(i);
    else by.set(key, [i]);
  }
  if (by.size === 1 && places.length > 1 && [...by.keys()][0][0] === ".") return branch(paths, places, k + 1, said, plain);
  const list = [...by.values()].map((members) => {
    const [first] = members;
    if (members.length === 1) return { path: paths[first].join("."), label: paths[first].slice(said).join("."), members, under: [] };
    let shared = k + 1;
    while (members.every((i) => paths[i].length > shared + 1 && paths[i][shared] === paths[first][shared])) shared++;
    const layers = () => members.map((i) => ({ path: paths[i].join("."), label: paths[i].slice(shared).join("."), members: [i], under: [] }));
    const under = members.length > FEW && !plain ? branch(paths, members, shared, shared, plain) : layers();
    return { path: paths[first].slice(0, shared).join("."), label: paths[first].slice(said, shared).join("."), members, under };
  });
  return plain ? list : chunks(list);
}

/** A long list in groups of ten, or of a hundred: from the first to the last of each. @param {Group[]} list @returns {Group[]} */
function chunks(list) {
  if (list.length <= MANY) return list;
  const size = 10 ** Math.max(1, Math.ceil(Math.log10(list.length / MANY)));
  const out = [];
  for (let i = 0; i < list.length; i += size) {
    const part = list.slice(i, i + size);
    const [first, last] = [part[0], part[part.length - 1]];
    out.push(part.length < 2 ? first : { path: `${first.path}…${last.path}`, label: `${first.label} … ${last.label}`, members: part.flatMap((one) => one.members), under: chunks(part) });
  }
  return out;
}

/** Height of a list at the least height of its rows. @param {Group[]} list @param {Set<string>} open @returns {number} */
const heightOf = (list, open) => list.reduce((sum, one) => sum + (one.under.length && open.has(one.path) ? HEADING + heightOf(one.under, open) : LEGIBLE), 0);

/**
 * The groups to unfold so that everything fits: those first in which an incident began, then from the top down.
 * @param {Group[]} list @param {number} room @param {Set<number>} wanted  Places of the layers in which incidents began.
 */
function fitting(list, room, wanted) {
  /** @type {Set<string>} */
  const open = new Set();
  let height = heightOf(list, open);
  const pool = list.filter((one) => one.under.length).map((group) => ({ group, depth: 0 }));
  const urgent = (/** @type {Group} */ g) => Number(g.members.some((i) => wanted.has(i)));
  while (pool.length) {
    let best = 0;
    for (let i = 1; i < pool.length; i++) {
      const more = urgent(pool[i].group) - urgent(pool[best].group);
      if (more > 0 || (more === 0 && pool[i].depth < pool[best].depth)) best = i;
    }
    const [{ group, depth }] = pool.splice(best, 1);
    const grown = HEADING - LEGIBLE + heightOf(group.under, open);
    if (height + grown > room) continue;
    height += grown;
    open.add(group.path);
    pool.push(...group.under.filter((one) => one.under.length).map((one) => ({ group: one, depth: depth + 1 })));
  }
  return open;
}

/** Every group under a list. @param {Group[]} list @returns {string[]} */
const every = (list) => list.flatMap((one) => (one.under.length ? [one.path, ...every(one.under)] : []));

/** @param {Group[]} list @param {Set<string>} open @param {number} depth @returns {Row[]} */
function flat(list, open, depth) {
  return list.flatMap((one) => {
    const { path: id, label, members } = one;
    if (!one.under.length) return [/** @type {Row} */ ({ id, kind: "layer", label, depth, members })];
    if (!open.has(id)) return [/** @type {Row} */ ({ id, kind: "folded", label, depth, members })];
    return [/** @type {Row} */ ({ id, kind: "open", label, depth, members }), ...flat(one.under, open, depth + 1)];
  });
}

/** Whether a name, all of it, is like a pattern with `*` and `?`. @param {string} word @returns {(name: string) => boolean} */
export function glob(word) {
  const pattern = new RegExp(`^${word.replace(/[.+^${}()|[\]\\]/g, "\\$&").replace(/\*+/g, ".*").replace(/\?/g, ".")}$`, "su");
  return (name) => pattern.test(name);
}

/**
 * Whether a name fits a filter: a part of it, or a pattern with * and ? for the whole of it; several words: any of them.
 * @param {string} filter @returns {(name: string) => boolean}
 */
function matcher(filter) {
  const words = filter.trim().toLowerCase().split(/\s+/).filter(Boolean);
  const tests = words.map((word) => (/[*?]/.test(word) ? glob(word) : (/** @type {string} */ name) => name.includes(word)));
  return (name) => !tests.length || tests.some((test) => test(name.toLowerCase()));
}

/** What the user folded, from the word in the address: `+path` and `-path`, and `+` or `-` alone for all. @param {string} word */
function folds(word) {
  /** @type {Map<string, boolean>} */
  const said = new Map();
  for (const part of word.split(",")) {
    try {
      if (/^[+-]/.test(part)) said.set(decodeURIComponent(part.slice(1)), part[0] === "+");
    } catch {
      // A path that is not encoded names no group.
    }
  }
  return said;
}

/** The word of the address after one more group was folded or unfolded; of several words for a group the last counts. @param {string} word @param {string} path @param {boolean} open */
export function folded(word, path, open) {
  const said = folds(word);
  said.delete(path);
  said.set(path, open);
  return [...said].map(([name, to]) => (to ? "+" : "-") + encodeURIComponent(name)).join(",");
}

/**
 * The lines of a map.
 * @param {string[]} names  In execution order.
 * @param {object} how
 * @param {string} how.filter
 * @param {string} how.fold
 * @param {Float64Array|null} how.rank  By layer, the largest first; null: execution order, in groups.
 * @param {number} how.room  Height.
 * @param {Set<number>} how.wanted  Layers in which incidents began.
 * @returns {Row[]}
 */
export function rowsOf(names, { filter, fold, rank, room, wanted }) {
  const fits = matcher(filter);
  const places = names.map((_, i) => i).filter((i) => fits(names[i]));
  if (rank) {
    const key = (/** @type {number} */ i) => (Number.isNaN(rank[i]) ? -Infinity : rank[i]);
    places.sort((a, b) => (key(a) === key(b) ? a - b : key(b) - key(a)));
    return places.map((i) => ({ id: names[i], kind: "layer", label: names[i], depth: 0, members: [i] }));
  }
  const said = folds(fold);
  const all = said.get("");
  const list = groups(names, places, all);
  const open = all === undefined ? fitting(list, room, wanted) : new Set(all ? every(list) : []);
  for (const [path, to] of said) to ? open.add(path) : open.delete(path);
  return flat(list, open, 0);
}

/** Rows of channels, by their numbers. @param {number} count @returns {Row[]} */
export const numbered = (count) => Array.from({ length: count }, (_, i) => ({ id: String(i), kind: "layer", label: String(i), depth: 0, members: [i] }));
