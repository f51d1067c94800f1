/** Elements without markup: no data is ever parsed as HTML. */

import { cut } from "./text.js";

/**
 * @param {string} tag
 * @param {Record<string, any>} [properties]  `class`, `on…` listeners, `data` and `style` objects, ARIA and other attributes.
 * @param {...(Node|string|number|null|undefined|false)} children
 * @returns {any}
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name === "style") Object.assign(element.style, value);
    else if (name === "value") /** @type {any} */ (element).value = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((c) => c !== null && c !== undefined && c !== false).map((c) => (c instanceof Node ? c : String(c))));
  return element;
}

/** An element of a drawing. @param {string} tag @param {Record<string, any>} attributes @param {...(Node|string)} children @returns {any} */
export function drawing(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

/**
 * Replace the options of a `<select>` if they changed, and choose a value.
 * @param {HTMLSelectElement} select
 * @param {{value: string, label: string, title?: string}[]} options
 * @param {string} value
 */
export function choose(select, options, value) {
  const shown = JSON.stringify(options);
  if (select.dataset.shown !== shown) {
    select.replaceChildren(...options.map((o) => h("option", { value: o.value, title: o.title }, o.label)));
    select.dataset.shown = shown;
  }
  select.value = value;
}

/** The options of a `<select>` of names. @param {HTMLSelectElement} select @param {string[]} names @param {string} value */
export const chooseName = (select, names, value) => choose(select, names.map((name) => ({ value: name, label: cut(name, 40), title: name })), value);

/** A canvas's context at the screen's resolution, cleared. @param {HTMLCanvasElement} canvas @param {number} width @param {number} height */
export function surface(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  const w = Math.max(1, Math.round(width * ratio));
  const t = Math.max(1, Math.round(height * ratio));
  if (canvas.width !== w || canvas.height !== t) {
    canvas.width = w;
    canvas.height = t;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

/** Fill a rectangle with a color that lets through what is under it. @param {CanvasRenderingContext2D} context @param {string} color @param {number} alpha @param {number} x @param {number} y @param {number} width @param {number} height */
export function tint(context, color, alpha, x, y, width, height) {
  context.globalAlpha = alpha;
  context.fillStyle = color;
  context.fillRect(x, y, width, height);
  context.globalAlpha = 1;
}

/** @type {{of: string, colors: ReturnType<typeof colorsNow>}|undefined} */
let known;

/** The page's colors, for canvases; the same object as long as the theme is the same. */
export function theme() {
  const of = document.documentElement.className;
  if (known?.of !== of) known = { of, colors: colorsNow() };
  return known.colors;
}

function colorsNow() {
  const style = getComputedStyle(document.documentElement);
  const read = (/** @type {string} */ name) => style.getPropertyValue(`--${name}`).trim();
  return {
    surface: read("surface"), text: read("text"), muted: read("muted"), line: read("line"), accent: read("accent"),
    error: read("error"), warning: read("warning"), info: read("info"), gap: read("gap"), second: read("second"),
    ...Object.fromEntries(Array.from({ length: 8 }, (_, i) => [`run${i}`, read(`run${i}`)])),
    font: "12px " + read("font"), small: "11px " + read("font"),
  };
}

/** The colors of a scale, from low to high. @param {"cividis"|"signed"|"health"} name @returns {string[]} */
export const ramp = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim().split(/\s+/);

/** Call at most once per frame of the screen. @param {() => void} draw */
export function once(draw) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      draw();
    });
  };
}
