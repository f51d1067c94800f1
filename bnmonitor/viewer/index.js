/** The page in TensorBoard: it calls `render` once, when the tab is first opened. */

const PREFIX = "p.bnmonitor.";

/** A word of this tab in the address of TensorBoard, of which this page may be unable to read anything. @param {string} name */
function word(name) {
  try {
    const part = window.parent.location.hash.slice(1).split("&").find((each) => each.startsWith(`${PREFIX}${name}=`)) ?? "";
    return decodeURIComponent(part.slice(PREFIX.length + name.length + 1));
  } catch {
    return "";
  }
}

export async function render() {
  const place = (/** @type {string} */ file) => new URL(file, import.meta.url).href;
  // About as many columns as the map has pixels, beside which a wide page has the panel.
  const bins = Math.max(400, Math.round(window.innerWidth * (window.innerWidth > 900 ? 0.68 : 1) * (window.devicePixelRatio || 1)));
  // The numbers take longest, and are asked for first.
  const first = word("view") ? undefined : fetch(place(`../first?${new URLSearchParams({ run: word("run"), statistic: word("statistic"), bins: String(bins) })}`));
  const sheet = Object.assign(document.createElement("link"), { rel: "stylesheet", href: place("./tab.css") });
  const styled = new Promise((done) => ["load", "error"].forEach((name) => sheet.addEventListener(name, done)));
  document.head.append(sheet);
  document.documentElement.lang = "en";
  document.title = "BatchNorm";
  const { app: { App }, server: { Server }, tensorboard: around } = await import(place("./tab.js"));
  const app = new App(new Server(place("../"), first), { words: around.readAddress(), changed: around.writeAddress, live: true });
  around.followTheme(() => app.recolor());
  around.followAddress((/** @type {Record<string, string>} */ words) => app.visit(words));
  around.listen(() => app.reload());
  app.toolbar.el.prepend(Object.assign(document.createElement("h1"), { className: "unseen", textContent: "BatchNorm" }));
  await styled;
  document.body.append(app.el);
  await app.load();
}
