/** The page in TensorBoard: it calls `render` once, when the tab is first opened. */

import { App } from "./app.js";
import { h } from "./dom.js";
import { Server } from "./server.js";
import { followTheme, listen, readAddress, writeAddress } from "./tensorboard.js";

export async function render() {
  const styles = ["./palette.css", "./style.css"].map((file) => h("link", { rel: "stylesheet", href: new URL(file, import.meta.url).href }));
  const styled = styles.map((style) => new Promise((done) => ["load", "error"].forEach((name) => style.addEventListener(name, done))));
  document.head.append(...styles);
  const app = new App(new Server(new URL("./", import.meta.url).href), { words: readAddress(), changed: writeAddress, live: true });
  followTheme(() => app.recolor());
  listen(() => app.reload());
  await Promise.all(styled);
  document.body.append(app.el);
  await app.load();
}
