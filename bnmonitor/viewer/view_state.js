/** The view, as a few words that fit into a URL. */

/**
 * @typedef {object} State
 * @property {string} run
 * @property {string} compare  Another run, or empty.
 * @property {string} statistic
 * @property {number|null} from  Range of steps; null: all.
 * @property {number|null} to
 * @property {string} layer  The selected layer, or empty.
 * @property {string} incident  Index of the selected incident, or empty.
 * @property {string} focus  The run that the panel shows.
 * @property {number|null} step  The cursor.
 * @property {string} channels  Statistic of the channel map.
 * @property {number|null} channel
 * @property {""|"runs"} view  The map of layers, or the table of runs.
 * @property {string} diff  "1": two runs as a map of their difference.
 * @property {string} chosen  Names of the chosen runs, one a line.
 * @property {string} seek  Filter of runs.
 * @property {string} order  Column that runs are sorted by; with "-" the other way round.
 * @property {string} against  Hyperparameter of the sweep.
 * @property {string} page  Page of the manual that is open, or empty.
 * @property {string} box  File of the black box that is open, or empty.
 * @property {string} filter  What the names of the layers are like.
 * @property {string} fold  Groups that were folded and unfolded; empty: as it fits.
 * @property {string} group  Path of the selected group, or empty.
 * @property {string} sort  Statistic that orders the layers; empty: execution order.
 * @property {string} least  Not empty: the least first.
 * @property {string} axis  `step`, `epoch` or `time`.
 * @property {string} scale  `log`, `linear` or empty: as it fits.
 * @property {number} smooth  Of curves, from 0 to 1.
 * @property {string} rank  What orders the channels; empty: their numbers.
 */

/** @type {State} */
const START = { run: "", compare: "", statistic: "health", from: null, to: null, layer: "", incident: "", focus: "", step: null, channels: "batch_var", channel: null, box: "", filter: "", fold: "", group: "", sort: "", least: "", axis: "step", scale: "", smooth: 0, rank: "", view: "", diff: "", chosen: "", seek: "", order: "", against: "", page: "" };

const NUMBERS = new Set(["from", "to", "step", "channel", "smooth"]);

/** Only what differs from the start. @param {State} state @returns {Record<string, string>} */
export function toWords(state) {
  /** @type {Record<string, string>} */
  const words = {};
  for (const [name, value] of Object.entries(state)) {
    if (value === /** @type {any} */ (START)[name] || value === null) continue;
    words[name] = NUMBERS.has(name) && name !== "smooth" ? String(Math.round(Number(value))) : String(value);
  }
  return words;
}

/** Words that make no sense are ignored. @param {Record<string, string>} words @returns {State} */
export function fromWords(words) {
  const state = /** @type {any} */ ({ ...START });
  for (const name of Object.keys(START)) {
    const word = words[name];
    if (word === undefined) continue;
    if (!NUMBERS.has(name)) state[name] = word;
    else if (word !== "" && Number.isFinite(Number(word))) state[name] = Number(word);
  }
  if (state.view !== "runs") state.view = "";
  if (state.from === null || state.to === null || !(state.to > state.from)) state.from = state.to = null;
  state.smooth = Math.max(0, Math.min(0.98, state.smooth));
  return state;
}
