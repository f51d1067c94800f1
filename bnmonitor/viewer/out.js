/** What is shown, as a picture, a table, or a link. */

import { drawing } from "./dom.js";

const HIGHEST = 16_000;

/** Put a text into the clipboard; false if the browser forbids it. @param {string} text */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // A page within a page may not, but what is selected can be copied.
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

/** @param {string} name @param {Blob} content */
export function save(name, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name.replace(/[^\p{L}\p{N}._-]+/gu, "_").slice(0, 120);
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Lines of a table as CSV. A name that a spreadsheet would take for a formula is kept a name. @param {(string|number|null)[][]} lines */
export function csv(lines) {
  const cell = (/** @type {string|number|null} */ v) => {
    if (v === null || v === undefined || (typeof v === "number" && Number.isNaN(v))) return "";
    const text = typeof v === "string" && /^[=+\-@\t\r]/.test(v) && Number.isNaN(Number(v)) ? `'${v}` : String(v);
    return /[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
  };
  return lines.map((line) => line.map(cell).join(",")).join("\r\n") + "\r\n";
}

/** A slice as lines: a row each, a column for each step. @param {import("./types.js").Slice} slice @param {string[]} rows @param {string} head */
export const linesOf = (slice, rows, head) => [
  [head, ...slice.ends.map((end) => `step ${end}`)],
  ...rows.map((name, r) => [name, ...Array.from(slice.values.subarray(r * slice.columns, (r + 1) * slice.columns), (v) => (Number.isFinite(v) ? Number(v.toPrecision(7)) : v))]),
];

/** What an element shows, as a drawing: its words, its boxes, its drawings, and its canvases as pictures. @param {HTMLElement} root */
export function picture(root) {
  // What is scrolled out of sight belongs to it; a map alone stays as it is cut.
  const scrolled = [root, ...root.querySelectorAll(".panel, .side, .runs-scroll")].map((el) => ({ el, top: el.scrollTop }));
  for (const { el } of scrolled) el.scrollTop = 0;
  const frame = root.getBoundingClientRect();
  let bottom = frame.height;
  const surface = getComputedStyle(document.body).backgroundColor;
  const ground = drawing("rect", { width: frame.width, fill: surface });
  /** @param {Element} el @param {any[]} shapes */
  const walk = (el, shapes) => {
    const style = getComputedStyle(el);
    if (style.display === "none" || style.visibility === "hidden" || el.matches(".unseen, .over + .tip, .tip, input, select, textarea, dialog")) return;
    const box = el.getBoundingClientRect();
    const at = { x: (box.left - frame.left).toFixed(1), y: (box.top - frame.top).toFixed(1), width: box.width.toFixed(1), height: box.height.toFixed(1) };
    bottom = Math.max(bottom, box.bottom - frame.top);
    if (el instanceof HTMLCanvasElement) {
      if (el.width > 1) shapes.push(drawing("image", { ...at, href: el.toDataURL(), preserveAspectRatio: "none" }));
      return;
    }
    if (el instanceof SVGSVGElement) {
      const inner = /** @type {SVGSVGElement} */ (el.cloneNode(true));
      // The rules of the page are not in the picture: what they set is written out.
      const [own, all] = [[...el.querySelectorAll("*")], inner.querySelectorAll("*")];
      own.forEach((one, i) => {
        const s = getComputedStyle(one);
        for (const name of ["fill", "fill-opacity", "stroke", "stroke-width", "font-size", "font-family"]) all[i].setAttribute(name, s.getPropertyValue(name));
      });
      for (const [name, value] of Object.entries(at)) inner.setAttribute(name, value);
      shapes.push(inner);
      return;
    }
    if (!/^rgba\(.*, 0\)$/.test(style.backgroundColor)) shapes.push(drawing("rect", { ...at, fill: style.backgroundColor, rx: Math.min(4, parseFloat(style.borderRadius) || 0) }));
    const left = parseFloat(style.borderLeftWidth);
    if (left >= 3) shapes.push(drawing("rect", { ...at, width: left, fill: style.borderLeftColor }));
    if (el.matches(".map-scroll")) {
      /** @type {any[]} */
      const inside = [];
      const seen = bottom;
      const [x, y] = [box.left - frame.left, box.top - frame.top];
      for (const child of el.children) walk(child, inside);
      shapes.push(drawing("svg", { ...at, viewBox: `${x} ${y} ${box.width} ${box.height}` }, ...inside));
      bottom = seen;
      return;
    }
    for (const child of el.childNodes) {
      if (child instanceof Element) walk(child, shapes);
      else if (child instanceof Text && child.data.trim()) shapes.push(...textOf(child, style, frame));
    }
  };
  /** @type {any[]} */
  const shapes = [];
  walk(root, shapes);
  for (const { el, top } of scrolled) el.scrollTop = top;
  ground.setAttribute("height", String(bottom));
  return drawing("svg", { xmlns: "http://www.w3.org/2000/svg", width: frame.width, height: bottom, viewBox: `0 0 ${frame.width} ${bottom}` }, ground, ...shapes);
}

/** The lines of a text as they were broken. @param {Text} node @param {CSSStyleDeclaration} style @param {DOMRect} frame */
function textOf(node, style, frame) {
  /** @type {{left: number, bottom: number, words: string}[]} */
  const lines = [];
  const range = document.createRange();
  for (const match of node.data.matchAll(/\S+\s*/g)) {
    range.setStart(node, match.index);
    range.setEnd(node, match.index + match[0].trimEnd().length);
    const box = range.getBoundingClientRect();
    if (!box.width) continue;
    const last = lines[lines.length - 1];
    if (last && Math.abs(last.bottom - box.bottom) < 2) last.words += match[0];
    else lines.push({ left: box.left, bottom: box.bottom, words: match[0] });
  }
  const size = parseFloat(style.fontSize);
  return lines.map((l) => drawing("text", { x: (l.left - frame.left).toFixed(1), y: (l.bottom - frame.top - 0.3 * size).toFixed(1), fill: style.color, "font-size": size, "font-weight": style.fontWeight, "font-family": style.fontFamily, "xml:space": "preserve" }, l.words.trimEnd()));
}

/** A drawing as a PNG at twice its size, if a browser can draw one as high. @param {SVGSVGElement} svg @returns {Promise<Blob>} */
export async function png(svg) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(new XMLSerializer().serializeToString(svg))}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  const [width, height] = ["width", "height"].map((name) => Number(svg.getAttribute(name)));
  const scale = Math.min(2, HIGHEST / height);
  canvas.width = Math.round(scale * width);
  canvas.height = Math.round(scale * height);
  canvas.getContext("2d")?.drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((done, failed) => canvas.toBlob((blob) => (blob ? done(blob) : failed(new Error("this browser makes no PNG of it")))));
}
