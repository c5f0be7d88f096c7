// One experiment: a small plot of dose and response per series, its conditions, continuations beside each other.
import { ask, byId, make, number, percent, say, signed, svg, visible } from "./ask.js";

const root = byId("experiment");
const WIDE = 220,
  HIGH = 112,
  EDGE = { left: 40, right: 10, top: 10, bottom: 22 };

// "first 4 set 2 x own @everything" is one dose of the series of its combination, mode and place.
const seriesOf = (c) =>
  [c.combination, c.mode, c.unit === "relative" ? "× own" : "", `@${c.place}`].filter(Boolean).join(" ");

function dose(conditions) {
  /** @type {Map<string, any[]>} */
  const series = new Map();
  for (const c of conditions) series.set(seriesOf(c), [...(series.get(seriesOf(c)) ?? []), c]);
  // One scale for all; a condition that is not supported may leave it, since what broke the model dwarfs the rest.
  const counted = conditions.some((c) => c.supported) ? conditions.filter((c) => c.supported) : conditions;
  const ends = counted.flatMap((c) => [c.net, c.low, c.high].filter((v) => typeof v === "number").map((v) => 1.15 * v));
  const low = Math.min(0, ...ends),
    high = Math.max(0, ...ends);
  const most = ([, list]) => Math.max(...list.map((c) => (c.supported ? Math.abs(c.net) : 0)));
  byId("dose").replaceChildren(
    ...[...series]
      .sort((a, b) => most(b) - most(a))
      .map(([name, list]) =>
        make(
          "figure",
          { class: list.some((c) => c.supported) ? "multiple supported" : "multiple" },
          make(
            "figcaption",
            {},
            name,
            make("span", { class: "muted" }, ` ${list.length} ${list.length === 1 ? "dose" : "doses"}`),
          ),
          plot(list, low, high, name),
        ),
      ),
  );
}

function plot(list, low, high, name) {
  const doses = [...list].sort((a, b) => (a.value ?? 0) - (b.value ?? 0)),
    values = doses.map((c) => c.value ?? 0),
    [least, most] = [Math.min(...values), Math.max(...values)];
  const x = (v) =>
      EDGE.left + ((WIDE - EDGE.left - EDGE.right) * (v - least + (most === least ? 0.5 : 0))) / (most - least || 1),
    y = (v) =>
      EDGE.top + ((HIGH - EDGE.top - EDGE.bottom) * (high - Math.max(low, Math.min(high, v)))) / (high - low || 1);
  const points = doses.map((c) => [x(c.value ?? 0), y(c.net), c]);
  const said = doses.map((c) => `${c.value ?? c.mode}: ${signed(c.net)}`).join(", ");
  const text = (attributes, content) => {
    const node = svg("text", attributes);
    node.textContent = content;
    return node;
  };
  return svg(
    "svg",
    { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": `${name}: net change of evil mass at ${said}` },
    svg("line", { class: "axis", x1: EDGE.left, x2: WIDE - EDGE.right, y1: y(0), y2: y(0) }),
    text({ x: EDGE.left - 5, y: y(0) + 3.5, "text-anchor": "end" }, "0"),
    ...[low, high]
      .filter((v) => Math.abs(v) > 0.12 * (high - low))
      .map((v) => text({ x: EDGE.left - 5, y: y(v) + 3.5, "text-anchor": "end" }, signed(v, 2))),
    svg("polyline", { class: "dose", points: points.map(([px, py]) => `${px},${py}`).join(" ") }),
    ...points.flatMap(([px, py, c]) => [
      typeof c.low === "number" ? svg("line", { class: "whisker", x1: px, x2: px, y1: y(c.low), y2: y(c.high) }) : null,
      svg(
        "circle",
        {
          class: `point ${c.net < 0 ? "down" : "up"}${c.supported ? "" : " open"}`,
          cx: px,
          cy: py,
          r: 3.6,
        },
        svg("title", {}, `${c.condition}: net ${signed(c.net)}`),
      ),
      text(
        { x: px, y: HIGH - 7, "text-anchor": "middle" },
        c.value === null ? c.mode : `${c.unit === "absolute" && c.mode === "scale" ? "×" : ""}${c.value}`,
      ),
    ]),
  );
}

const COLUMNS = [
  ["condition", "condition", "what is changed how, and where"],
  ["features", "features", "by name, with your label"],
  [
    "supported",
    "supported",
    "the interval leaves 0 out, matched random features do less than half of it, the text stays coherent",
  ],
  ["evil_mass_unsteered", "before", "evil mass, un-steered"],
  ["evil_mass", "steered", "evil mass"],
  ["change", "change", "steered minus un-steered"],
  ["control", "random", "the same under matched random features"],
  ["net", "net", "change minus random"],
  ["low", "95 %", "interval of the net change"],
  ["q", "q", "adjusted over all conditions (Benjamini and Hochberg)"],
  ["perplexity", "perplexity", "of the continuations under the un-steered base"],
  ["evil_rate", "said evil", "share of continuations judged evil"],
];
let order = { by: "supported", sign: -1 };

function table(conditions, labels) {
  const have = COLUMNS.filter(([key]) => conditions.some((c) => c[key] !== undefined && c[key] !== null));
  const rank = (c) => {
    if (order.by === "supported") return Number(c.supported) * 1000 + Math.abs(c.net);
    return typeof c[order.by] === "number" ? c[order.by] : null;
  };
  const sorted = [...conditions].sort((a, b) => {
    const [p, q] = [rank(a), rank(b)];
    const text = String(a[order.by]).localeCompare(String(b[order.by]), undefined, { numeric: true });
    return order.sign * (p === null || q === null ? text : p - q);
  });
  const head = have.map(([key, title, why]) =>
    make(
      "th",
      {
        scope: "col",
        title: why,
        class: ["condition", "features"].includes(key) ? "" : "right",
        ariaSort: order.by === key ? (order.sign > 0 ? "ascending" : "descending") : "none",
      },
      make(
        "button",
        {
          type: "button",
          class: "sort",
          onclick: () => {
            order = { by: key, sign: order.by === key ? -order.sign : key === "supported" ? -1 : 1 };
            table(conditions, labels);
          },
        },
        `${title}${order.by === key ? (order.sign > 0 ? " ↑" : " ↓") : ""}`,
      ),
    ),
  );
  byId("conditions").replaceChildren(
    make(
      "table",
      { class: "list tight" },
      make("thead", {}, make("tr", {}, head)),
      make(
        "tbody",
        {},
        sorted.map((c) =>
          make(
            "tr",
            {},
            have.map(([key]) => cell(c, key, labels)),
          ),
        ),
      ),
    ),
  );
}

function cell(c, key, labels) {
  if (key === "condition") return make("td", { class: "mono" }, c.condition);
  if (key === "features") return make("td", {}, named(c.features, labels));
  if (key === "supported") return make("td", { class: "right" }, c.supported ? "yes" : "–");
  if (key === "low")
    return make(
      "td",
      { class: "right num nowrap muted" },
      typeof c.low === "number" ? `${signed(c.low, 2)} … ${signed(c.high, 2)}` : "–",
    );
  const sign = ["change", "control", "net"].includes(key);
  const text =
    typeof c[key] !== "number" ? "–" : sign ? signed(c[key]) : key === "evil_rate" ? percent(c[key]) : number(c[key]);
  return make("td", { class: `right num ${sign && key !== "control" ? (c[key] < 0 ? "down" : "up") : ""}` }, text);
}

// Features of a condition by name, each with its page; of several prompts only how many sets there are.
function named(features, labels) {
  if (!features?.length) return "–";
  if (features.length > 1) return make("span", { class: "muted" }, `another set on each of ${features.length} prompts`);
  return features[0].split(",").flatMap((name, i) => {
    const parts = name.split("/"),
      id = `${parts[0]}/${parts.at(-1)}`;
    return [
      i ? ", " : "",
      make("a", { class: "mono", href: `/feature/${id}` }, name),
      labels[id] ? ` ${visible(labels[id], false)}` : "",
    ];
  });
}

function continuations(rollouts, hidden) {
  const box = byId("rollouts"),
    kept = hidden
      ? make(
          "p",
          { class: "muted" },
          `Continuations of ${hidden} ${hidden === 1 ? "prompt" : "prompts"} that you have yet to answer are hidden;`,
          " browse without blinding to see them.",
        )
      : "";
  if (!rollouts.length) {
    box.replaceChildren(
      hidden ? kept : make("p", { class: "empty" }, "This plan drew no continuations; give it a rollouts section."),
    );
    return;
  }
  const unique = (key) => [...new Set(rollouts.map((r) => r[key]))].filter((v) => v !== null);
  const choice = (key) =>
    make(
      "select",
      {},
      unique(key).map((v) => make("option", {}, v)),
    );
  const prompt = choice("prompt_id"),
    condition = choice("condition"),
    out = make("div");
  const column = (title, list) =>
    make(
      "div",
      {},
      make("h3", {}, `${title}, ${list.length}`),
      list
        .slice(0, 8)
        .map((r) =>
          make(
            "p",
            { class: "mono unpleasant" },
            make(
              "span",
              { class: `label-mark ${r.label ?? ""}`, title: r.label ?? "not labelled" },
              { evil: "▲", safe: "●", unsure: "?" }[r.label] ?? "·",
            ),
            ` ${visible(r.text, false)}`,
          ),
        ),
    );
  const show = () => {
    const mine = rollouts.filter((r) => r.prompt_id === prompt.value);
    const of = (control) =>
      mine.filter((r) => r.control === control && (control === "unsteered" || r.condition === condition.value));
    const seen = new Set(),
      before = of("unsteered").filter((r) => !seen.has(r.sample) && seen.add(r.sample));
    out.replaceChildren(
      make(
        "div",
        { class: "three texts" },
        column("un-steered", before),
        column("steered", of("steered")),
        column("matched random", of("random")),
      ),
    );
  };
  for (const select of [prompt, condition]) select.addEventListener("change", show);
  box.replaceChildren(
    make(
      "div",
      { class: "filters" },
      make("label", {}, "Prompt", prompt),
      make("label", { class: "grow" }, "Condition", condition),
    ),
    out,
    kept,
  );
  show();
}

try {
  const { summary, rollouts, hidden, labels } = await ask(`/api/steering/${encodeURIComponent(root.dataset.name)}`);
  const conditions = summary.conditions ?? [];
  dose(conditions);
  table(conditions, labels);
  continuations(rollouts, hidden);
} catch (error) {
  say(error);
}
