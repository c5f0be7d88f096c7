// The ranking as a table that sorts and filters, a plot of its ends, and where a feature fires.
import { ask, byId, known, make, number, say, signed, targetOf, visible } from "./ask.js";
import { signBar } from "./graph/panel.js";
import { draw } from "./plots.js";

const root = byId("features");
const rows = JSON.parse(byId("data")?.textContent ?? "[]");
const SHOWN = 120;
const COLUMNS = [
  ["rank", "#", "place in the ranking, most positive first"],
  ["name", "layer / feature", ""],
  ["mean", "contrast", "mean over prompts, in the method's unit"],
  ["bar", "", ""],
  ["low", "95 % interval", "bootstrap over prompts"],
  ["selected", "prompts", "in which it has a score, of those where its effect is known"],
  ["q", "q", "permutation test, adjusted (Benjamini and Hochberg)"],
  ["stable", "stable", "share of the rankings without one prompt that keep it in the top"],
];
let order = { by: "rank", sign: 1 },
  chosen = null;

const key = (row) => `${row.layer}/${row.feature}`;
const value = (row, by) =>
  by === "name" ? row.layer * 1e9 + row.feature : by === "bar" ? Math.abs(row.mean) : (row[by] ?? Infinity);

function table() {
  byId("table").tHead.replaceChildren(
    make(
      "tr",
      {},
      COLUMNS.map(([by, title, why]) =>
        make(
          "th",
          {
            class: ["name", "bar"].includes(by) ? "" : "right",
            title: why,
            ariaSort: order.by === by ? (order.sign > 0 ? "ascending" : "descending") : null,
          },
          title
            ? make(
                "button",
                {
                  type: "button",
                  class: "sort",
                  onclick: () => {
                    order = { by, sign: order.by === by ? -order.sign : by === "mean" ? -1 : 1 };
                    table();
                  },
                },
                title,
                order.by === by ? (order.sign > 0 ? " ↑" : " ↓") : "",
              )
            : "",
        ),
      ),
    ),
  );
  const text = byId("search").value.trim(),
    sign = Number(byId("sign").value),
    least = Number(byId("least").value) || 1;
  const found = rows.filter(
    (r) =>
      (!text ||
        key(r) === text ||
        key(r).startsWith(`${text.replace(/\/$/, "")}/`) ||
        (key(r).startsWith(text) && text.includes("/"))) &&
      (!sign || sign * r.mean > 0) &&
      r.selected >= least,
  );
  found.sort((a, b) => order.sign * (value(a, order.by) - value(b, order.by)));
  const largest = Math.max(...rows.map((r) => Math.abs(r.mean)));
  byId("table").tBodies[0].replaceChildren(
    ...found
      .slice(0, SHOWN)
      .map((r) =>
        make(
          "tr",
          { class: chosen === key(r) ? "chosen" : "" },
          make("td", { class: "right num muted" }, String(r.rank)),
          make(
            "td",
            {},
            make(
              "button",
              { type: "button", class: "node-link mono", onclick: () => where(r) },
              `L${r.layer} · ${r.feature}${r.offset === null || r.offset === undefined ? "" : ` @${r.offset}`}`,
            ),
          ),
          make("td", { class: `right num ${r.mean >= 0 ? "up" : "down"}` }, signed(r.mean)),
          make("td", { class: "bar" }, signBar(r.mean, largest)),
          make(
            "td",
            { class: "right num nowrap" },
            r.low === null ? "–" : `${signed(r.low, 2)} … ${signed(r.high, 2)}`,
          ),
          make("td", { class: "right num" }, `${r.selected}/${r.n}`),
          make("td", { class: "right num" }, r.q === null ? "–" : number(r.q, 3)),
          make("td", { class: "right num" }, r.stable === null ? "–" : number(r.stable, 2)),
        ),
      ),
  );
  byId("more").textContent =
    found.length > SHOWN
      ? `${SHOWN} of ${found.length}; the filters find the others.`
      : found.length
        ? ""
        : "No feature fits these filters.";
}

const feature = (row, place) => `${row.layer}/${place.firing[0][0]}/${row.feature}`;

async function where(row) {
  chosen = key(row);
  table();
  const box = byId("where"),
    title = make("h2", {}, `Layer ${row.layer}, feature ${row.feature}`);
  box.replaceChildren(title, make("p", { class: "loading" }, "Reading the graphs …"));
  try {
    const wanted = new URLSearchParams({ layer: row.layer, feature: row.feature, model: root.dataset.model });
    const found = await ask(`/api/features/where?${wanted}`);
    box.replaceChildren(
      title,
      ...known(found.known),
      make(
        "p",
        { class: "muted" },
        `Fires in ${found.places.length} of ${found.read} graphs of the ${found.model} model`,
        found.read < found.graphs ? ` (of ${found.graphs}).` : ".",
      ),
      ...found.places.map((place) => {
        const at = new Map(place.firing.map(([p, a, c]) => [p, [a, c]])),
          most = Math.max(...place.firing.map((f) => f[1]));
        return make(
          "div",
          { class: "firing" },
          make(
            "a",
            {
              class: "mono id",
              href: `/graph/${place.prompt_id}?show=${found.model}&select=${feature(row, place)}`,
            },
            place.prompt_id.slice(0, 8),
          ),
          make(
            "p",
            { class: "tokens unpleasant" },
            place.tokens.map((t, p) => {
              const hit = at.get(p);
              if (!hit) return make("span", {}, visible(t, false));
              const mark = make(
                "mark",
                { title: `position ${p}: activation ${number(hit[0], 2)}, contrast ${signed(hit[1])}` },
                visible(t, false),
              );
              mark.style.opacity = String(0.45 + 0.55 * (hit[0] / most));
              return mark;
            }),
          ),
          place.hidden ? make("p", { class: "muted" }, "Waits for your answer: no contrast is shown before.") : null,
          make(
            "p",
            { class: "muted" },
            place.firing
              .slice(0, 6)
              .map(([p, a, c]) => `at ${p}: ${number(a, 2)}${place.hidden ? "" : `, contrast ${signed(c)}`}`)
              .join(" · "),
          ),
        );
      }),
    );
  } catch (error) {
    box.replaceChildren(title);
    say(error);
  }
}

if (rows.length) {
  for (const id of ["search", "sign", "least"]) byId(id).addEventListener("input", table);
  table();
  const ends = [...rows]
    .sort((a, b) => Math.abs(b.mean) - Math.abs(a.mean))
    .slice(0, 24)
    .sort((a, b) => b.mean - a.mean);
  draw(byId("plot"), (c) => ({
    traces: [
      {
        type: "bar",
        x: ends.map((r) => `L${r.layer}·${r.feature}`),
        y: ends.map((r) => r.mean),
        marker: { color: ends.map((r) => (r.mean >= 0 ? c.up : c.down)) },
        error_y: {
          type: "data",
          symmetric: false,
          array: ends.map((r) => (r.high === null ? 0 : r.high - r.mean)),
          arrayminus: ends.map((r) => (r.low === null ? 0 : r.mean - r.low)),
          color: c.muted,
          thickness: 1.2,
          width: 2,
        },
        hovertemplate: "%{x}<br>%{y:.3f}<extra></extra>",
      },
    ],
    layout: { height: 260, yaxis: { title: { text: "contrast" } }, xaxis: { tickangle: -50, type: "category" } },
  }));
}

byId("compute")?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = targetOf(event).querySelector("button"),
    form = new FormData(targetOf(event));
  button.disabled = true;
  button.textContent = "Computing …";
  try {
    const { table: made } = await ask("/api/features/aggregate", Object.fromEntries(form));
    location.assign(`/features?table=${made.slice(0, 12)}`);
  } catch (error) {
    say(error);
    button.disabled = false;
    button.textContent = "Compute ranking";
  }
});
