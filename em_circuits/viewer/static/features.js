// The ranking as a table of twenty: both ends, or what the filters find; where each fires as a sparkline.
import { ask, byId, make, number, say, signBar, signed, svg, targetOf, visible } from "./ask.js";

const root = byId("features");
const { rows, labels } = JSON.parse(byId("data")?.textContent ?? '{"rows": [], "labels": {}}');
const SHOWN = 20;
const COLUMNS = [
  ["rank", "#", "place in the ranking, most positive first"],
  ["name", "feature", "layer / id"],
  ["label", "label", "yours, or what is known of it"],
  ["mean", "contrast", "mean over prompts, in the method's unit"],
  ["bar", "", ""],
  ["low", "95 % interval", "bootstrap over prompts"],
  ["selected", "prompts", "in which it has a score, of those where its effect is known"],
  ["q", "q", "permutation test, adjusted (Benjamini and Hochberg)"],
  ["stable", "stable", "share of the rankings without one prompt that keep it among the furthest towards evil"],
  ["fires", "fires", "share of firing from the first token (left) to the last (right)"],
];
let order = { by: "rank", sign: 1 },
  page = 0,
  /** @type {Record<string, number[]>} */
  firing = {};

const key = (row) => `${row.layer}/${row.feature}`;
const value = (row, by) =>
  by === "name"
    ? row.layer * 1e9 + row.feature
    : by === "bar"
      ? Math.abs(row.mean)
      : by === "label"
        ? (labels[key(row)] ?? "\uffff")
        : (row[by] ?? Infinity);

function spark(bins) {
  if (!bins) return "";
  const most = Math.max(...bins);
  return svg(
    "svg",
    {
      class: "spark",
      viewBox: `0 0 ${4 * bins.length} 14`,
      role: "img",
      "aria-label": `from the first token to the last: ${bins.map((b) => number(b, 2)).join(", ")}`,
    },
    bins.map((b, i) =>
      svg("rect", { x: 4 * i, width: 3, y: 14 - (13 * b) / most, height: Math.max(0.6, (13 * b) / most) }),
    ),
  );
}

const number_ = (row, by, digits) => (row[by] === null ? "–" : number(row[by], digits));

const interval = (r) => (r.low === null ? "–" : `${signed(r.low, 2)} … ${signed(r.high, 2)}`);

function found() {
  const text = byId("search").value.trim().toLowerCase(),
    sign = Number(byId("sign").value),
    layer = byId("layer").value,
    least = Number(byId("least").value) || 1;
  return rows.filter(
    (r) =>
      (!text ||
        key(r).startsWith(text) ||
        String(r.feature) === text ||
        (labels[key(r)] ?? "").toLowerCase().includes(text)) &&
      (!layer || r.layer === Number(layer)) &&
      (!sign || sign * r.mean > 0) &&
      r.selected >= least,
  );
}

function head([by, title, why]) {
  const on = order.by === by;
  return make(
    "th",
    {
      scope: "col",
      class: ["name", "label", "bar", "fires"].includes(by) ? "" : "right",
      title: why,
      ariaSort: on ? (order.sign > 0 ? "ascending" : "descending") : null,
    },
    title && by !== "fires"
      ? make(
          "button",
          {
            type: "button",
            class: "sort",
            onclick: () => {
              order = { by, sign: on ? -order.sign : by === "rank" || by === "name" || by === "label" ? 1 : -1 };
              page = 0;
              table();
            },
          },
          `${title}${on ? (order.sign > 0 ? " ↑" : " ↓") : ""}`,
        )
      : title,
  );
}

function table() {
  const all = found();
  all.sort((a, b) => {
    const [p, q] = [value(a, order.by), value(b, order.by)];
    return order.sign * (p < q ? -1 : p > q ? 1 : 0);
  });
  // In the ranking's own order the first page has both ends, since the middle does little.
  const ends = order.by === "rank" && order.sign > 0 && page === 0 && all.length > SHOWN;
  const shown = ends
    ? [...all.slice(0, SHOWN / 2), ...all.slice(-SHOWN / 2)]
    : all.slice(page * SHOWN, (page + 1) * SHOWN);
  const largest = Math.max(...rows.map((r) => Math.abs(r.mean)));
  const { model } = root.dataset;
  byId("table").tHead.replaceChildren(make("tr", {}, COLUMNS.map(head)));
  byId("table").tBodies[0].replaceChildren(
    ...shown.map((r, i) =>
      make(
        "tr",
        { class: ends && i === SHOWN / 2 ? "gap-above" : "" },
        make("td", { class: "right num muted" }, String(r.rank)),
        make(
          "td",
          {},
          make(
            "a",
            { class: "mono nowrap", href: `/feature/${key(r)}?model=${model}` },
            `L${r.layer} · ${r.feature}${r.offset === null || r.offset === undefined ? "" : ` @${r.offset}`}`,
          ),
        ),
        make("td", { class: "clip" }, visible(labels[key(r)] ?? "", false)),
        make("td", { class: `right num ${r.mean >= 0 ? "up" : "down"}` }, signed(r.mean)),
        make("td", { class: "bar" }, signBar(r.mean, largest)),
        make("td", { class: "right num nowrap" }, interval(r)),
        make("td", { class: "right num" }, `${r.selected}/${r.n}`),
        make("td", { class: "right num" }, number_(r, "q", 3)),
        make("td", { class: "right num" }, r.mean > 0 ? number_(r, "stable", 2) : "–"),
        make("td", {}, spark(firing[key(r)])),
      ),
    ),
  );
  const pages = Math.ceil(all.length / SHOWN);
  byId("more").replaceChildren(
    !all.length
      ? "No feature fits these filters."
      : ends
        ? `The ten furthest towards evil and the ten furthest towards safe of ${all.length}. `
        : `${page * SHOWN + 1} to ${Math.min(all.length, (page + 1) * SHOWN)} of ${all.length}. `,
    page > 0 ? turn(-1, "← before") : "",
    page + 1 < pages ? turn(1, "more →") : "",
  );
}

const turn = (by, title) =>
  make(
    "button",
    {
      type: "button",
      class: "inline",
      onclick: () => {
        page += by;
        table();
      },
    },
    title,
  );

if (rows.length) {
  for (const id of ["search", "sign", "layer", "least"])
    byId(id).addEventListener("input", () => {
      page = 0;
      table();
    });
  table();
  ask(`/api/features/firing?${new URLSearchParams({ table: root.dataset.table, model: root.dataset.model })}`)
    .then((sent) => {
      firing = sent.firing;
      table();
    })
    .catch(say);
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
