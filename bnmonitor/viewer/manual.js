/** A page of the manual, as it comes with the package: no network is needed. */

import { h } from "./dom.js";

/** Words with code in double backticks. @param {string} text */
const words = (text) => text.split("``").map((part, i) => (i % 2 ? h("code", {}, part) : part));

/** @param {import("./types.js").Page} page */
export function manual(page) {
  const block = (/** @type {["text"|"code"|"values", any]} */ [kind, content]) =>
    kind === "code" ? h("pre", { tabindex: 0 }, content)
    : kind === "values" ? h("dl", { class: "facts" }, ...Object.entries(content).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))]))
    : h("p", {}, ...words(content));
  return h("article", { class: "manual" },
    h("h2", {}, page.title), h("p", { class: "lead" }, ...words(page.summary)),
    ...page.sections.flatMap((s) => [h("h3", {}, s.title), ...s.blocks.map(block)]),
    h("p", { class: "quiet" }, "This page comes with bnmonitor. ", h("a", { href: page.url, target: "_blank", rel: "noopener noreferrer" }, "The same on the web ↗")));
}
