// Asking the server: JSON in, JSON out, one sentence when it says no.

export class Refused extends Error {
  constructor(status, error, next) {
    super(next ? `${error} — ${next}` : error);
    this.status = status;
  }
}

export async function ask(path, body, method = body === undefined ? "GET" : "POST") {
  let response;
  try {
    response = await fetch(path, {
      method,
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch {
    throw new Refused(0, "The server does not answer", "is em-circuits serve still running?");
  }
  const answer = await response.json().catch(() => ({ error: `The server answered ${response.status}.` }));
  if (!response.ok) throw new Refused(response.status, answer.error, answer.next);
  return answer;
}

export function toast(text, bad = false) {
  const box = document.createElement("div");
  box.className = bad ? "toast bad" : "toast";
  box.textContent = text;
  document.getElementById("toasts").append(box);
  setTimeout(() => box.remove(), bad ? 8000 : 3000);
}

export const say = (error) => toast(error.message, true);

// An element of a picture.
export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  node.append(...children.flat().filter((c) => c !== null));
  return node;
}

// A bar to the left of a middle for what is negative, to the right for what is positive.
export function signBar(value, largest) {
  const w = Math.min(100, (100 * Math.abs(value)) / (largest || 1));
  return svg(
    "svg",
    { class: "signbar", viewBox: "-100 0 200 10", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { class: "track", x: -0.6, width: 1.2, y: 0, height: 10 }),
    svg("rect", { class: value >= 0 ? "up" : "down", x: value >= 0 ? 0 : -w, width: w, y: 0, height: 10 }),
  );
}

export function make(tag, properties = {}, ...children) {
  const { dataset, class: name, ...rest } = properties;
  const node = Object.assign(document.createElement(tag), rest);
  if (name) node.className = name;
  if (dataset) Object.assign(node.dataset, dataset);
  node.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== false));
  return node;
}

// What is written about a feature, and what its decoder pushes; nothing where neither is known.
export function known(about) {
  const tokens = (title, list, mark) =>
    make(
      "p",
      {},
      make("span", { class: mark }, title),
      list.flatMap(([text, value]) => [
        " ",
        make("span", { class: "token unpleasant", title: signed(value) }, visible(text)),
      ]),
    );
  return !about
    ? []
    : [
        about.label
          ? make(
              "blockquote",
              { title: "Neuronpedia's label, as features explain kept it" },
              visible(about.label, false),
            )
          : null,
        about.promoted ? tokens("Promotes", about.promoted, "muted") : make("p", { class: "muted" }, about.why ?? ""),
        about.suppressed ? tokens("Suppresses", about.suppressed, "muted") : null,
      ].filter(Boolean);
}

const MINUS = "−";

export function signed(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  return (value > 0 ? "+" : "") + number(value, digits);
}

export function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  const text = value !== 0 && Math.abs(value) < 10 ** -digits ? value.toExponential(1) : value.toFixed(digits);
  return text.replaceAll("-", MINUS);
}

export const percent = (value) => (value > 0 && value < 0.0005 ? "<0.1 %" : `${(100 * value).toFixed(1)} %`);

// As the server writes texts out: nothing that has no glyph stays invisible.
const NAMED = { "\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\", " ": "␣" };
export function visible(text, spaces = true) {
  return Array.from(text, (c) => {
    if (c === " " && !spaces) return c;
    if (c in NAMED) return NAMED[c];
    return /[\p{C}\p{Zl}\p{Zp}]/u.test(c) ? `\\u{${c.codePointAt(0).toString(16)}}` : c;
  }).join("");
}

/**
 * The element of an id. Typed loosely: a page's script knows what its own elements are.
 * @param {string} id
 * @returns {any}
 */
export const byId = (id) => document.getElementById(id);

/**
 * Every element that a selector finds.
 * @param {string} selector
 * @param {ParentNode} within
 * @returns {any[]}
 */
export const all = (selector, within = document) => [...within.querySelectorAll(selector)];

/**
 * @param {Event} event
 * @returns {any}
 */
export const targetOf = (event) => event.target;

export const typing = (event) =>
  targetOf(event).closest?.("input, select, textarea, [contenteditable], dialog") && targetOf(event).type !== "range";
