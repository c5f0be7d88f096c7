// Sliders for features of one prompt; each change runs the loaded model un-steered and steered.
import { ask, byId, make, number, percent, say, signed, targetOf, visible } from "./ask.js";

const root = byId("playground");
let features = [],
  running = false,
  again = false;

async function load() {
  const box = byId("pg-features"),
    prompt = byId("pg-prompt").value,
    model = byId("pg-model").value;
  box.replaceChildren(make("p", { class: "loading" }, "Reading the graph …"));
  try {
    const found = await ask(`/api/prompt/${prompt}/features?${new URLSearchParams({ model, n: "10" })}`);
    features = found.top.map((f) => ({ ...f, value: 1 }));
    byId("pg-hidden").textContent = found.hidden ?? "";
    byId("pg-hidden").hidden = !found.hidden;
    byId("pg-ablate").disabled = Boolean(found.hidden);
    for (const place of root.dataset.features.split(",").filter(Boolean)) add(place);
    root.dataset.features = "";
  } catch (error) {
    features = [];
    say(error);
  }
  list();
  byId("pg-result").replaceChildren(
    make("p", { class: "empty" }, "Move a slider and run, or ablate top:10. The first run loads the models."),
  );
}

// Ablates a feature; one that is not offered yet is added. What was offered already once stayed at ×1,
// so that "Steer it here" on a strong node steered nothing.
function add(place) {
  const [layer, position, feature] = place.split("/").map(Number);
  const offered = features.find((f) => f.layer === layer && f.position === position && f.feature === feature);
  if (offered) offered.value = 0;
  else features.push({ layer, position, feature, contrast: null, value: 0 });
}

function list() {
  byId("pg-features").replaceChildren(
    features.length ? "" : make("p", { class: "empty" }, "No feature to offer; add one by its place."),
    ...features.map((f) => {
      const out = make("output", {}, `×${f.value}`),
        name = `layer ${f.layer}, position ${f.position}, feature ${f.feature}`;
      const slider = make("input", {
        type: "range",
        min: -2,
        max: 4,
        step: 0.25,
        value: f.value,
        ariaLabel: `Strength of ${name}`,
      });
      slider.addEventListener("input", () => {
        f.value = Number(slider.value);
        out.textContent = `×${slider.value}`;
        out.className = f.value === 1 ? "muted" : "";
      });
      slider.addEventListener("change", () => run());
      return make(
        "label",
        { class: "strength" },
        make(
          "a",
          { class: "mono place", title: name, href: `/feature/${f.layer}/${f.feature}` },
          `L${f.layer}·${f.position}·${f.feature}`,
        ),
        make(
          "span",
          { class: `num ${f.contrast > 0 ? "up" : "down"}`, title: "contrast by gradient" },
          signed(f.contrast, 2),
        ),
        slider,
        out,
      );
    }),
  );
}

// Runs the model: with the sliders as they are, or with top:N ablated.
async function run(top = null) {
  if (running) {
    again = true;
    return;
  }
  running = true;
  root.dataset.state = "running";
  byId("pg-run").disabled = byId("pg-ablate").disabled = true;
  const note = make("p", { class: "loading", role: "status" }, "Running the model …"),
    since = Date.now();
  const ticking = setInterval(() => {
    note.textContent = `Running the model, ${Math.round((Date.now() - since) / 1000)} s; the first run loads it.`;
  }, 1000);
  byId("pg-result").prepend(note);
  const everywhere = byId("pg-where").value === "all";
  const changed = top ? [] : features.filter((f) => f.value !== 1);
  const unique = everywhere ? [...new Map(changed.map((f) => [`${f.layer}/${f.feature}`, f])).values()] : changed;
  try {
    const result = await ask("/api/playground", {
      prompt: byId("pg-prompt").value,
      model: byId("pg-model").value,
      length: Number(byId("pg-length").value) || 16,
      seed: Number(byId("pg-seed").value) || 0,
      ...(top ? { top } : {}),
      features: unique.map((f) => ({
        layer: f.layer,
        position: everywhere ? null : f.position,
        feature: f.feature,
        mode: "scale",
        value: f.value,
      })),
    });
    if (top) {
      for (const f of features) f.value = 1;
      for (const f of result.changed) add(`${f.layer}/${f.position}/${f.feature}`);
      list();
    }
    show(result, result.changed.length);
  } catch (error) {
    say(error);
  }
  clearInterval(ticking);
  note.remove();
  running = false;
  root.dataset.state = "done";
  root.dataset.runs = String(1 + Number(root.dataset.runs ?? 0));
  byId("pg-run").disabled = byId("pg-ablate").disabled = false;
  if (again) {
    again = false;
    run();
  }
}

function show(result, n) {
  const { unsteered, steered, random } = result;
  const conditions = [
    ["un-steered", unsteered],
    [`steered, ${n} changed`, steered],
    ...(random ? [["matched random", random]] : []),
  ];
  const ids = [...new Set(conditions.flatMap(([, w]) => w.top.map((t) => t.token_id)))];
  const p = (condition, id) => condition.top.find((t) => t.token_id === id)?.probability ?? null;
  const about = (id) => conditions.flatMap(([, w]) => w.top).find((t) => t.token_id === id);
  const most = Math.max(...conditions.flatMap(([, w]) => w.top).map((t) => t.probability));
  const bar = (value, label) => {
    const b = make("span", { class: `hbar p-${label ?? "none"}` });
    b.style.width = `${(100 * (value ?? 0)) / most}%`;
    return make("span", { class: "hbar-track" }, b);
  };
  const spread = (s, digits) => `${number(s.low, digits)} … ${number(s.high, digits)}`;
  const figures = ([title, w]) =>
    w === random
      ? make(
          "div",
          {},
          make("h3", {}, `${title}, ${w.n} draws`),
          make("span", { class: "big" }, unsteered.evil_mass === null ? "–" : number(w.spread.mean, 3)),
          make("span", { class: "muted" }, " evil mass"),
          make("br"),
          make("span", { class: "muted" }, unsteered.evil_mass === null ? "" : `middle 95 %: ${spread(w.spread, 3)}`),
        )
      : make(
          "div",
          {},
          make("h3", {}, title),
          make("span", { class: "big" }, w.evil_mass === null ? "–" : number(w.evil_mass, 3)),
          make("span", { class: "muted" }, " evil mass"),
          make("br"),
          make("span", { class: "muted" }, `contrast ${signed(w.contrast, 2)}`),
        );
  byId("pg-result").replaceChildren(
    make("div", { class: "three" }, ...conditions.map(figures)),
    random ? "" : make("p", { class: "muted" }, result.why_no_random ?? ""),
    make(
      "div",
      { class: "scroll", tabIndex: 0, role: "region", ariaLabel: "Next tokens" },
      make(
        "table",
        { class: "list tight" },
        make(
          "thead",
          {},
          make(
            "tr",
            {},
            make("th", { scope: "col" }, "next token"),
            ...conditions.map(([title]) => make("th", { scope: "col", colSpan: 2 }, title)),
          ),
        ),
        make(
          "tbody",
          {},
          ids
            .sort((a, b) => (p(steered, b) ?? 0) - (p(steered, a) ?? 0))
            .slice(0, 12)
            .map((id) =>
              make(
                "tr",
                {},
                make(
                  "td",
                  { class: "nowrap" },
                  make("span", { class: "token unpleasant" }, visible(about(id).text)),
                  " ",
                  make(
                    "span",
                    { class: `label-mark ${about(id).label ?? ""}` },
                    { evil: "▲", safe: "●", unsure: "?" }[about(id).label] ?? "",
                  ),
                ),
                ...conditions.flatMap(([, w]) => [
                  make("td", { class: "bar-cell" }, bar(p(w, id), about(id).label)),
                  make("td", { class: "right num nowrap" }, p(w, id) === null ? "below" : percent(p(w, id))),
                ]),
              ),
            ),
        ),
      ),
    ),
    make("h3", {}, "One continuation each, the same random numbers"),
    make(
      "div",
      { class: "three texts" },
      ...conditions.map(([title, w]) =>
        make(
          "div",
          {},
          make("h3", {}, w === random ? `${title}, its first draw` : title),
          make("p", { class: "mono unpleasant" }, visible(w.continuation, false) || "(ends at once)"),
        ),
      ),
    ),
  );
}

if (byId("pg-prompt")) {
  byId("pg-prompt").addEventListener("change", load);
  byId("pg-model").addEventListener("change", load);
  for (const id of ["pg-where", "pg-length", "pg-seed"]) byId(id).addEventListener("change", () => run());
  byId("pg-run").addEventListener("click", () => run());
  byId("pg-reset").addEventListener("click", () => {
    for (const f of features) f.value = 1;
    list();
    run();
  });
  byId("pg-ablate").addEventListener("click", () => run(10));
  byId("pg-add").addEventListener("submit", (event) => {
    event.preventDefault();
    add(targetOf(event).place.value);
    targetOf(event).reset();
    list();
  });
  load();
}
