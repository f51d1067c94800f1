/** Numbers and names as people read them. */

/** Three significant digits, no noise. @param {number|string|null|undefined} value */
export function number(value) {
  const x = Number(value);
  if (value === null || value === undefined || Number.isNaN(x)) return "not known";
  if (!Number.isFinite(x)) return x > 0 ? "∞" : "−∞";
  if (x === 0) return "0";
  const size = Math.abs(x);
  const text = size >= 1e5 || size < 1e-3 ? x.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e") : size >= 1000 ? grouped(Math.round(x)) : String(Number(x.toPrecision(3)));
  return text.replace("-", "−");
}

/** A weight between 0 and 1, such as a momentum, that shows how near to either it is. @param {any} value */
export function weight(value) {
  const x = Number(value);
  return x > 0.5 && x < 1 ? String(Number((1 - Number((1 - x).toPrecision(3))).toPrecision(9))) : number(value);
}

/** Numbers that stand above each other, their decimal points in one line. @param {string[]} numbers  As `number` writes them. */
export function aligned(numbers) {
  const known = numbers.map((text) => /^−?[\d\u202f]+(\.(\d+))?( %)?$/.exec(text));
  if (!known.every(Boolean)) return numbers;
  const digits = known.map((parts) => parts?.[2]?.length ?? 0);
  const most = Math.max(...digits);
  // Spaces as wide as a digit, and as a point.
  return numbers.map((text, i) => text.replace(/( %)?$/, (sign) => "\u2007".repeat(most - digits[i]) + (most && !digits[i] ? "\u2008" : "") + sign));
}

/** A whole number, thousands apart. @param {number} value */
export function grouped(value) {
  return String(Math.round(value)).replace(/\B(?=(\d{3})+(?!\d))/g, "\u202f");
}

/** A number with its unit. @param {number} value @param {import("./types.js").Statistic} statistic */
export function measured(value, statistic) {
  if (statistic.scale === "share" && Number.isFinite(value)) return `${number(100 * value)} %`;
  return number(value) + (statistic.unit && !Number.isNaN(value) ? ` ${statistic.unit}` : "");
}

/** Whether a health is that of a layer without an incident whose lag nears a limit. @param {number} value @param {import("./types.js").Statistic} statistic */
export function nearLimit(value, statistic) {
  const { warning, near } = statistic.limits;
  return statistic.scale === "health" && value > warning && value <= (near + 100) / 2;
}

/** `1 layer`, `2 layers`. @param {number} amount @param {string} noun */
export const count = (amount, noun) => `${grouped(amount)} ${noun}${amount === 1 ? "" : "s"}`;

/** Cut in the middle, where layer names say least. @param {string} name @param {(text: string) => boolean} fits */
export function shorten(name, fits) {
  // Marks that turn the direction of writing would let a name pass for another.
  name = name.replace(/[\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, "");
  if (fits(name)) return name;
  const letters = [...name];
  let low = 1;
  let high = letters.length - 1;
  const cut = (/** @type {number} */ n) => letters.slice(0, Math.ceil(n / 2)).join("") + "…" + letters.slice(letters.length - Math.floor(n / 2)).join("");
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (fits(cut(middle))) low = middle;
    else high = middle - 1;
  }
  return cut(low);
}

/** Cut to a number of characters. @param {string} name @param {number} most */
export const cut = (name, most) => shorten(name, (text) => [...text].length <= most);

/**
 * How to say names that begin or end alike, in places too narrow for them: without the parts that all of them share.
 * @param {string[]} names @returns {(name: string) => string}
 */
export function unlike(names) {
  const paths = names.map((name) => name.split("."));
  const [first = []] = paths;
  const most = Math.min(...paths.map((p) => p.length)) - 1;
  let [head, tail] = [0, 0];
  if (names.length > 1) {
    while (head < most && paths.every((p) => p[head] === first[head])) head++;
    while (head + tail < most && paths.every((p) => p.at(-1 - tail) === first.at(-1 - tail))) tail++;
  }
  return (name) => `${head ? "…" : ""}${name.split(".").slice(head, tail ? -tail : undefined).join(".")}${tail ? "…" : ""}`;
}

/** The glyph and the word of a severity: no meaning by color alone. */
const SEVERITY = {
  error: { glyph: "✗", rank: 2 },
  warning: { glyph: "!", rank: 1 },
  info: { glyph: "·", rank: 0 },
};

/** @param {string} severity */
export const severity = (severity) => SEVERITY[/** @type {"info"} */ (severity)] ?? SEVERITY.info;
