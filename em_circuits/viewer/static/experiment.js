// One experiment: dose and response, its conditions, and continuations beside each other.
import { ask, byId, make, number, say, signed, visible } from "./ask.js";
import { draw } from "./plots.js";

const root = byId("experiment");

function dose(conditions) {
  const groups = new Map();
  for (const c of conditions) {
    const name = [c.combination, c.mode, c.place].filter(Boolean).join(" · ");
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(c);
  }
  const symbols = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star"];
  byId("dose").replaceChildren();
  draw(byId("dose"), (c) => {
    const colours = [c.up, c.down, c.accent, c.neutral, c.ink];
    const traces = [],
      names = [...new Set(conditions.map((p) => p.combination))],
      places = [...new Set(conditions.map((p) => p.place))];
    [...groups].slice(0, 12).forEach(([name, list], i) => {
      const sorted = [...list].sort((a, b) => (a.value ?? 0) - (b.value ?? 0)),
        x = sorted.map((p) => p.value ?? p.mode);
      const error = sorted.some((p) => p.low !== null && p.low !== undefined)
        ? {
            type: "data",
            symmetric: false,
            array: sorted.map((p) => Math.max(0, (p.high ?? p.net) - p.net)),
            arrayminus: sorted.map((p) => Math.max(0, p.net - (p.low ?? p.net))),
            thickness: 1.2,
            width: 3,
          }
        : undefined;
      traces.push({
        type: "scatter",
        mode: "lines+markers",
        name,
        x,
        y: sorted.map((p) => p.net ?? p.change),
        error_y: error,
        marker: { size: 8, symbol: symbols[i % symbols.length] },
        line: {
          color: colours[names.indexOf(sorted[0].combination) % colours.length],
          dash: ["solid", "dot", "dash"][places.indexOf(sorted[0].place) % 3],
        },
        hovertemplate: `${visible(name, false).replace(/[<>&]/g, "")}<br>×%{x}: %{y:.3f}<extra></extra>`,
      });
    });
    return {
      traces,
      layout: {
        height: 340,
        legend: { orientation: "v", x: 1.02, y: 1, font: { color: c.muted } },
        xaxis: { title: { text: "value" } },
        yaxis: { title: { text: "evil mass, net of random" } },
      },
    };
  });
}

function table(conditions) {
  const columns = [
    ["condition", "condition"],
    ["evil_mass_unsteered", "un-steered"],
    ["evil_mass", "steered"],
    ["change", "change"],
    ["net", "net of random"],
    ["low", "low"],
    ["high", "high"],
    ["q", "q"],
  ];
  const have = columns.filter(([key]) => conditions.some((c) => c[key] !== undefined && c[key] !== null));
  byId("conditions").replaceChildren(
    make(
      "table",
      { class: "list tight" },
      make(
        "thead",
        {},
        make(
          "tr",
          {},
          have.map(([key, title]) => make("th", { class: key === "condition" ? "" : "right" }, title)),
        ),
      ),
      make(
        "tbody",
        {},
        conditions.map((c) =>
          make(
            "tr",
            {},
            have.map(([key]) =>
              make(
                "td",
                {
                  class:
                    key === "condition"
                      ? "mono"
                      : `right num ${["change", "net"].includes(key) ? (c[key] < 0 ? "down" : "up") : ""}`,
                },
                typeof c[key] === "number"
                  ? ["change", "net", "low", "high"].includes(key)
                    ? signed(c[key])
                    : number(c[key])
                  : visible(String(c[key] ?? "–"), false),
              ),
            ),
          ),
        ),
      ),
    ),
  );
}

function continuations(rollouts, hidden) {
  const box = byId("rollouts"),
    kept = hidden
      ? make(
          "p",
          { class: "muted" },
          `Continuations of ${hidden} ${hidden === 1 ? "prompt" : "prompts"} that you have yet to answer are left out;`,
          " the list of prompts shows them on request.",
        )
      : "";
  if (!rollouts.length) {
    box.replaceChildren(
      hidden ? kept : make("p", { class: "empty" }, "This plan drew no continuations; give it a rollouts section."),
    );
    return;
  }
  const unique = (key) => [...new Set(rollouts.map((r) => r[key]))];
  const prompt = make(
      "select",
      {},
      unique("prompt_id").map((v) => make("option", {}, v)),
    ),
    condition = make(
      "select",
      {},
      unique("condition").map((v) => make("option", {}, v)),
    );
  const out = make("div");
  const show = () => {
    const mine = rollouts.filter((r) => r.prompt_id === prompt.value),
      of = (control) =>
        mine.filter((r) => r.control === control && (control === "unsteered" || r.condition === condition.value));
    const seen = new Set(),
      before = of("unsteered").filter((r) => !seen.has(r.sample) && seen.add(r.sample));
    out.replaceChildren(
      make(
        "div",
        { class: "two texts" },
        ...[
          ["un-steered", before],
          ["steered", of("steered")],
        ].map(([title, list]) =>
          make(
            "div",
            {},
            make("h4", {}, title),
            list
              .slice(0, 8)
              .map((r) =>
                make(
                  "p",
                  { class: "mono unpleasant" },
                  make(
                    "span",
                    { class: `label-mark ${r.label ?? ""}` },
                    { evil: "▲", safe: "●", unsure: "?" }[r.label] ?? "·",
                  ),
                  ` ${visible(r.text, false)}`,
                ),
              ),
          ),
        ),
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
  const { summary, rollouts, hidden } = await ask(`/api/steering/${encodeURIComponent(root.dataset.name)}`);
  const conditions = summary.conditions ?? [];
  dose(conditions);
  table(conditions);
  continuations(rollouts, hidden);
} catch (error) {
  say(error);
}
