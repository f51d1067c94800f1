/** The page in TensorBoard: it calls `render` once, when the tab is first opened. */

/** All modules, which are asked for at once: found one after the other they would take a round trip each. */
const MODULES = "alerts app axis boxview cause channels chart curve difference dom folded gestures heat heatmap incidents layerview layout legend manual mapbar marks memory minimap notices order out overlay overview panel rows runs scale scatter server share strip sweep tensorboard text timeline toolbar view_state";

export async function render() {
  document.documentElement.lang = "en";
  document.title = "BatchNorm";
  const place = (/** @type {string} */ file) => new URL(file, import.meta.url).href;
  const link = (/** @type {object} */ properties) => Object.assign(document.createElement("link"), properties);
  const styles = ["./palette.css", "./style.css"].map((file) => link({ rel: "stylesheet", href: place(file) }));
  const styled = styles.map((style) => new Promise((done) => ["load", "error"].forEach((name) => style.addEventListener(name, done))));
  document.head.append(...styles, ...MODULES.split(" ").map((name) => link({ rel: "modulepreload", href: place(`./${name}.js`) })));
  const { followAddress, followTheme, listen, readAddress, writeAddress } = await import("./tensorboard.js");
  const words = readAddress();
  const bins = Math.max(400, Math.round(window.innerWidth * (window.devicePixelRatio || 1)));
  const asked = new URLSearchParams({ run: words.run ?? "", statistic: words.statistic ?? "", bins: String(bins) });
  const first = fetch(place(`../first?${asked}`));
  const [{ App }, { Server }] = await Promise.all([import("./app.js"), import("./server.js")]);
  const app = new App(new Server(place("../"), first), { words, changed: writeAddress, live: true });
  followTheme(() => app.recolor());
  followAddress((words) => app.visit(words));
  listen(() => app.reload());
  await Promise.all(styled);
  app.toolbar.el.prepend(Object.assign(document.createElement("h1"), { className: "unseen", textContent: "BatchNorm" }));
  document.body.append(app.el);
  await app.load();
}
