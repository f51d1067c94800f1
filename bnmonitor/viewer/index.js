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
  // About as many columns as the map has pixels: beside it are names, and in a wide page the panel, as wide as style.css says.
  const wide = window.innerWidth;
  const panel = wide > 900 ? Math.max(360, Math.min(760, wide * 0.32)) : 0;
  const bins = Math.max(400, Math.round((wide - panel - 160) * (window.devicePixelRatio || 1)));
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
