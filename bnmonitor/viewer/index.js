/** The page in TensorBoard: it calls `render` once, when the tab is first opened. */

import { App } from "./app.js";
import { h } from "./dom.js";
import { Server } from "./source.js";
import { followTheme, listen, readAddress, writeAddress } from "./tensorboard.js";

export async function render() {
  const style = h("link", { rel: "stylesheet", href: new URL("./style.css", import.meta.url).href });
  const styled = new Promise((done) => ["load", "error"].forEach((name) => style.addEventListener(name, done)));
  document.head.append(style);
  const app = new App(new Server(new URL("./", import.meta.url).href), { words: readAddress(), changed: writeAddress, live: true });
  followTheme(() => app.show());
  listen(() => app.reload());
  await styled;
  document.body.append(app.el);
  await app.load();
}
