/** The connection to TensorBoard around the page: reloads, dark mode, the address. */

const PREFIX = "p.bnmonitor.";

/** Listen to TensorBoard's messages. @param {() => void} reloaded */
export function listen(reloaded) {
  const channel = new MessageChannel();
  channel.port1.onmessage = (event) => {
    const message = JSON.parse(event.data);
    if (message.isReply) return;
    // TensorBoard waits for an answer to each.
    channel.port1.postMessage(JSON.stringify({ type: message.type, id: message.id, payload: null, error: null, isReply: true }));
    if (message.type === "experimental.DataReloaded") reloaded();
  };
  window.parent.postMessage("experimental.bootstrap", "*", [channel.port2]);
}

/** The page around this one, if this one may read it. @returns {Window|null} */
function outside() {
  try {
    return window.parent !== window && window.parent.document ? window.parent : null;
  } catch {
    return null;
  }
}

/** Follow TensorBoard's dark mode, or the system's outside TensorBoard. @param {() => void} changed */
export function followTheme(changed) {
  const body = outside()?.document.body;
  const media = window.matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    const dark = body ? body.classList.contains("dark-mode") : media.matches;
    if (document.documentElement.classList.toggle("dark", dark) !== apply.dark) changed();
    apply.dark = dark;
  };
  apply.dark = document.documentElement.classList.contains("dark");
  if (body) new MutationObserver(apply).observe(body, { attributes: true, attributeFilter: ["class"] });
  media.addEventListener("change", apply);
  apply();
}

/** The words of this tab in TensorBoard's address. @returns {Record<string, string>} */
export function readAddress() {
  /** @type {Record<string, string>} */
  const words = {};
  for (const part of (outside() ?? window).location.hash.slice(1).split("&")) {
    const [name, value] = part.split("=").map(decode);
    if (name.startsWith(PREFIX) && value !== undefined) words[name.slice(PREFIX.length)] = value;
  }
  return words;
}

/** @param {string} text */
function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return "";
  }
}

/**
 * Put words into TensorBoard's address, as long as it shows this tab.
 * @param {Record<string, string>} words @param {boolean} [turn]  Whether Back shall come back to what was shown before.
 */
export function writeAddress(words, turn = false) {
  const page = outside() ?? window;
  const others = page.location.hash.slice(1).split("&").filter((part) => part && !decode(part).startsWith(PREFIX));
  if (outside() && others[0] !== "bnmonitor") return;
  const ours = Object.entries(words).map(([name, value]) => `${PREFIX}${name}=${encodeURIComponent(value)}`);
  const hash = [...others, ...ours].join("&");
  if (page.location.hash.slice(1) === hash) return;
  if (turn) page.history.pushState(page.history.state, "", `#${hash}`);
  else page.history.replaceState(page.history.state, "", `#${hash}`);
}

/** Follow Back and Forward. @param {(words: Record<string, string>) => void} visit */
export function followAddress(visit) {
  const page = outside();
  (page ?? window).addEventListener("popstate", () => {
    if (!page || page.location.hash.slice(1).split("&")[0] === "bnmonitor") visit(readAddress());
  });
}
