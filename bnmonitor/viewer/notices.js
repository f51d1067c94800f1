/** The texts of a page that has nothing to show. */

import { h } from "./dom.js";

const LIGHTNING = ["from bnmonitor import BatchNormMonitor", "", 'Trainer(callbacks=[BatchNormMonitor()], logger=TensorBoardLogger("logs"))'];

const PLAIN = [
  "from bnmonitor import Monitor", "",
  'with Monitor(model, optimizer=optimizer, log_dir="logs") as monitor:',
  "    for batch in loader:",
  "        ...  # forward, backward, optimizer.step()",
  "        monitor.step()",
];

/** No run has a history of bnmonitor. */
export function empty() {
  return h(
    "div",
    { class: "empty" },
    h("h2", {}, "No run here has a history of its BatchNorm layers yet"),
    h("p", {}, "With PyTorch Lightning, add the callback to the Trainer:"),
    h("pre", {}, LIGHTNING.join("\n")),
    h("p", {}, "In a loop of your own:"),
    h("pre", {}, PLAIN.join("\n")),
    h("p", { class: "quiet" }, "The first frame is written after the first training step. This page looks for it by itself."),
  );
}

/** A request failed. @param {unknown} error @param {() => void} again */
export function trouble(error, again) {
  const said = error instanceof Error ? error.message : String(error);
  return h("div", { class: "trouble", role: "alert" }, h("b", {}, "This could not be shown. "), said, " ", h("button", { type: "button", onclick: again }, "Try again"));
}
