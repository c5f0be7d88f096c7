// The review queue: one key labels, saves and goes on. The server keeps the item; this page shows it.
import { ask, make, number, percent, say, toast, typing, visible } from "./ask.js";

const root = document.getElementById("review");
// Keys, rubric and questions are the terminal's; the server names the keys as a browser does.
const setup = JSON.parse(document.getElementById("setup").textContent);
const LISTS = ["merged", "base"];
const MARKS = { evil: "▲ evil", safe: "● safe", unsure: "? unsure", left: "– left" };
const SVG = "http://www.w3.org/2000/svg";
// These lead to another item: until the answer is here, no key but undo does anything.
const LEAVES = new Set(["begin", "next", "finish", "reject", "skip", "defer", "command", "reopen", "quit"]);
const ANYWHERE = new Set(["state", "begin", "next", "agree", "explain", "undo", "reopen", "quit"]);
let state = null, at = { list: "merged", row: 0 }, busy = Promise.resolve(), asking = null;
let leaving = 0, undoing = 0, unsaved = new Map(), showLow = true, whole = false;

const shownItem = () => state?.question?.item ?? null;

// An answer belongs to the item that was shown when its key was pressed, and names it: it is dropped when
// another is shown by then, and the server refuses it for any other. Answers go out in the order of the keys;
// `fill` gives what is known of one only when its turn has come.
function act(body, item = shownItem(), fill = () => ({})) {
  const bound = !ANYWHERE.has(body.do) && !(body.do === "command" && item === null), leaves = LEAVES.has(body.do), undoes = body.do === "undo";
  if (leaving && !undoes) return busy;
  leaving += leaves;
  undoing += undoes;
  busy = busy.then(async () => {
    if (bound && (item === null || item !== shownItem())) return;
    try {
      take(await ask("/api/review", bound ? { ...body, ...fill(), item } : body), undoes);
      if (state.said && state.said !== "saved") toast(state.said);
    } catch (error) {
      say(error);
      unsaved.clear();
      if (error.status === 409) take(await ask("/api/review", { do: "state" }).catch(() => state));
    }
  }).finally(() => {
    leaving -= leaves;
    undoing -= undoes;
    render();
  });
  return busy;
}

function take(fresh, undone = false) {
  const before = state?.question, now = fresh?.question;
  state = fresh;
  if (now?.item !== before?.item) {
    at = { list: "merged", row: 0 };
    unsaved = new Map();
    asking = null;
    whole = false;
    return;
  }
  if (!now) return;
  for (const [token, given] of unsaved) if (saved(token) === given) unsaved.delete(token);
  // The token that is open again is the one to answer.
  const answered = (id) => before.labels[id] || before.left.includes(id);
  const reopened = undone && places().find(({ token: { token_id: id } }) => !saved(id) && answered(id));
  if (reopened) at = { list: reopened.list, row: reopened.row };
}

const tokens = (list) => state.question[list].filter((token) => showLow || token.probability >= setup.low);
const current = () => (state?.question ? tokens(at.list)[at.row] ?? null : null);
const saved = (id) => state.question.labels[id] ?? (state.question.left.includes(id) ? "left" : null);
const labelOf = (id) => unsaved.get(id) ?? saved(id);
const places = () => LISTS.flatMap((list) => tokens(list).map((token, row) => ({ list, row, token })));

function label(value) {
  if (!current() || leaving) return;
  const mark = () => {
    const { token_id: token } = current();
    unsaved.set(token, value);
    nextOpen();
    render();
    return { labels: { [token]: value } };
  };
  // While something is taken back, the cursor is on its way to what is open again.
  if (undoing) act({ do: "label" }, shownItem(), mark);
  else act({ do: "label", ...mark() });
}

function nextOpen() {
  const all = places(), here = all.findIndex((p) => p.list === at.list && p.row === at.row);
  const open = [...all.slice(here + 1), ...all.slice(0, here)].find((p) => !labelOf(p.token.token_id));
  if (open) at = { list: open.list, row: open.row };
  else if (at.row < tokens(at.list).length - 1) at.row += 1;
}

function move(by) {
  if (!state?.question) return;
  put(at.list, at.row + by);
}

function otherList() {
  if (!state?.question) return;
  put(at.list === "merged" ? "base" : "merged", at.row);
}

function put(list, row) {
  at = { list, row: Math.max(Math.min(row, tokens(list).length - 1), 0) };
  render();
}

function toggleLow() {
  if (!state?.question) return;
  showLow = !showLow;
  put(at.list, at.row);
}

function togglePrompt() {
  if (!state?.question) return;
  whole = !whole;
  render();
  root.querySelector(".prompt-text").focus();
}

// Only what is on the screen can be agreed to.
function agree() {
  if (state?.reveal?.differences.length) act({ do: "agree", of: state.reveal.item });
}

function askFor(what, body, begun = "") {
  if (leaving || !state) return;
  asking = { ...setup.asking[what], body, item: shownItem() };
  render();
  const line = root.querySelector(".asking input");
  if (line) line.value = begun;
  root.querySelector(".asking input")?.focus();
}

function bar(p) {
  const svg = document.createElementNS(SVG, "svg");
  for (const [k, v] of Object.entries({ viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" })) svg.setAttribute(k, v);
  for (const [name, width] of [["track", 100], ["fill", 100 * p]]) {
    const rect = document.createElementNS(SVG, "rect");
    for (const [k, v] of Object.entries({ class: name, width, height: 10 })) rect.setAttribute(k, v);
    svg.append(rect);
  }
  return svg;
}

function list(name) {
  const { question } = state, here = current();
  const shown = tokens(name), hidden = question[name].length - shown.length;
  const rows = shown.map((token, row) => {
    const given = labelOf(token.token_id);
    const votes = Object.entries(question.votes).filter(([, v]) => v[token.token_id]).map(([who, v]) => `${who}: ${v[token.token_id]}`).join(", ");
    return make("button", {
      type: "button", tabIndex: -1,
      class: ["choice", name === at.list && row === at.row ? "at" : here?.token_id === token.token_id ? "same" : "", question.optional.includes(token.token_id) ? "optional" : ""].join(" "),
      title: votes || `token ${token.token_id}`,
      ariaLabel: `${visible(token.text)}, ${percent(token.probability)}, ${given ?? "no label"}`,
      onclick: () => { at = { list: name, row }; render(); },
    },
    make("span", { class: "rank" }, `${name === "base" ? "B" : "T"}${token.rank}`),
    make("span", { class: "token unpleasant" }, visible(token.text)),
    bar(token.probability),
    make("span", { class: "num" }, percent(token.probability)),
    make("span", { class: `label ${given ?? "none"}` }, MARKS[given] ?? (votes ? "disputed" : "·")));
  });
  return make("section", { class: name === at.list ? "active" : "" }, make("h2", {}, name, make("span", { class: "muted" }, (name === "base" ? "before" : "after the fine-tune") + (hidden ? ` · ${hidden} under p .001 hidden` : ""))), rows);
}

function button(text, action, extra = "", run = does[action]) {
  const hint = setup.hints[action];
  return make("button", { type: "button", class: extra, onclick: () => run() }, text, hint ? make("kbd", {}, hint) : null);
}

function item() {
  const { question } = state;
  if (!question) {
    const { states, waiting } = state.progress, off = (states.deferred ?? 0) + (states.skipped ?? 0);
    return make("div", { class: "empty big" },
      make("h2", {}, waiting ? "You stopped" : "Nothing waits for you"),
      make("p", {}, waiting ? `${waiting} items wait.` : off ? `${states.deferred ?? 0} put off, ${states.skipped ?? 0} skipped.` : "Every item is answered. More come from em-circuits label."),
      make("div", { class: "buttons center" },
        waiting ? button("Go on", "rest_safe", "primary") : null,
        off ? make("button", { type: "button", onclick: () => act({ do: "begin", skipped: true }) }, "Ask those put off and skipped again") : null,
        button("Take the last answer back", "undo"), button("Reopen", "reopen")),
      asking ? form() : null);
  }
  const left = question.missing.filter((id) => !unsaved.has(id)).length;
  return make("div", {},
    make("p", { class: "crumbs" }, make("span", { class: "mono" }, question.prompt_id), ` · ${question.kind}`, question.adjudication ? make("b", {}, " · adjudication: reviewers disagree") : ""),
    question.rejected_by.length ? make("p", { class: "notice" }, `Rejected by ${question.rejected_by.join(", ")}.`) : null,
    make("pre", { class: `prompt-text unpleasant${whole ? " whole" : ""}`, tabIndex: 0 }, visibleLines(question.text), make("span", { class: "caret" })),
    make("div", { class: "lists" }, list("base"), list("merged")),
    asking ? form() : null,
    make("div", { class: "actions" },
      button("▲ evil", "evil", "evil"), button("● safe", "safe", "safe"), button("? unsure", "unsure"),
      button(left ? `Rest safe, finish (${left})` : "Finish", "rest_safe", "primary"),
      button("Undo", "undo"), button("Reject", "reject"), button("Skip", "skip"), button("Defer", "defer"), button("Note", "note"), button("All keys", "help")));
}

function visibleLines(text) {
  return text.split("\n").map((line) => visible(line, false)).join("\n");
}

function form() {
  const input = make("input", { type: "text", placeholder: asking.asks, ariaLabel: asking.asks, maxLength: 2000, autocomplete: "off" });
  return make("form", {
    class: "asking",
    onsubmit: (event) => { event.preventDefault(); const { body, item } = asking, text = input.value; asking = null; root.focus(); if (["?", "help"].includes(text.trim())) does.help(); else if (text.trim()) act({ ...body, text }, item); render(); },
    onkeydown: (event) => { if (event.key === "Escape") { asking = null; render(); } event.stopPropagation(); },
  }, input, make("button", { class: "primary" }, asking.does[0].toUpperCase() + asking.does.slice(1)));
}

function aside() {
  const { progress, reveal } = state, eta = progress.eta_seconds;
  const shown = reveal ? make("section", { class: "card" },
    make("h2", {}, "Last item ", make("a", { class: "mono", href: `/prompt/${reveal.prompt_id}` }, reveal.prompt_id.slice(0, 8))),
    make("p", {}, make("span", { class: "chip" }, reveal.verdict), reveal.evil_mass ? ` evil mass ${number(reveal.evil_mass.base, 2)} → ${number(reveal.evil_mass.merged, 2)}` : ""),
    reveal.judged === 0 ? make("p", { class: "muted" }, "No judge has labelled it.")
      : reveal.differences.length === 0 ? make("p", { class: "muted" }, `The judge says the same of all ${reveal.judged} tokens.`)
        : [make("p", { class: "muted" }, `The judge differs on ${reveal.differences.length} of ${reveal.judged}:`),
          ...reveal.differences.map((d) => make("div", { class: "difference" }, make("span", { class: "token unpleasant" }, visible(d.text)), make("span", {}, make("span", { class: `label ${d.human}` }, `you ${d.human}`), " / ", make("span", { class: `label ${d.judge}` }, `judge ${d.judge}`)))),
          make("div", { class: "actions" }, button("Agree with the judge", "agree"), button("Say why", "reason"))]) : null;
  return make("aside", {},
    make("section", { class: "card" }, make("h2", {}, `${progress.now} answered, ${progress.waiting} to go`),
      make("dl", { class: "facts" },
        row("over all sessions", progress.answered), progress.per_hour ? row("per hour", Math.round(progress.per_hour)) : null,
        eta ? row("at this rate", eta > 5400 ? `${(eta / 3600).toFixed(1)} h` : `${Math.ceil(eta / 60)} min`) : null),
      make("div", { class: "actions" }, make("button", { type: "button", onclick: () => act({ do: "begin", adjudicate: !state.adjudicate }) }, state.adjudicate ? "Back to the queue" : "Adjudicate"), button("Stop", "quit"))),
    shown,
    make("section", { class: "card rubric" }, make("h2", {}, "By what"), make("p", {}, setup.rubric.suppose), make("dl", {},
      Object.entries(setup.rubric.meanings).flatMap(([name, means]) => [make("dt", { class: `as-${name}` }, MARKS[name]), make("dd", {}, means)]))));
}

const row = (name, value) => make("div", {}, make("dt", {}, name), make("dd", {}, String(value)));

function render() {
  if (!state) return;
  const form = root.querySelector(".asking input"), text = form?.value;
  root.replaceChildren(make("div", { class: "review-grid" }, item(), aside()));
  const again = root.querySelector(".asking input");
  if (again && text !== undefined) { again.value = text; again.focus(); }
  root.dataset.item = state.question?.item ?? "";
  root.dataset.answered = state.progress.now;
  root.dataset.unsaved = unsaved.size;
}

const does = {
  evil: () => label("evil"), safe: () => label("safe"), unsure: () => label("unsure"), leave: () => label("left"),
  rest_safe: () => (state?.question ? act({ do: "finish", rest: "safe" }) : act({ do: "next" })),
  rest_unsure: () => act({ do: "finish", rest: "unsure" }),
  agree,
  reason: () => { if (state?.reveal?.differences.length) askFor("reason", { do: "explain", of: state.reveal.item }); },
  reject: () => state?.question && askFor("reject", { do: "reject" }),
  skip: () => act({ do: "skip" }), defer: () => act({ do: "defer" }),
  undo: () => act({ do: "undo" }), reopen: () => askFor("reopen", { do: "reopen" }),
  note: () => state?.question && askFor("note", { do: "note" }),
  command: (begun) => askFor("command", { do: "command", of: state?.reveal?.item }, begun),
  help: () => document.getElementById("keys").showModal(),
  up: () => move(-1), down: () => move(1), other_list: otherList,
  low: toggleLow, prompt: togglePrompt, quit: () => act({ do: "quit" }),
};

addEventListener("keydown", (event) => {
  if (typing(event) || event.metaKey || event.altKey || event.defaultPrevented || document.querySelector("dialog[open]")) return;
  const { key } = event, pressed = event.ctrlKey ? `ctrl+${key.toLowerCase()}` : key === "Tab" && event.shiftKey ? "shift+Tab" : key;
  // Buttons and links keep their own keys: only what is on the page itself is a shortcut.
  if (event.target.closest("a, button:not(.choice)") && ["Enter", "Tab", " "].includes(key)) return;
  const begins = setup.begins_command.includes(pressed), run = does[setup.keys[pressed]] ?? (begins && does.command);
  if (!run) return;
  event.preventDefault();
  run(begins ? key : "");
});

if (!root.querySelector(".empty")) {
  act({ do: "next" });
  setInterval(() => { if (state?.question && !document.hidden) act({ do: "heartbeat" }); }, 60_000);
  document.documentElement.addEventListener("renamed", () => act({ do: "next" }));
}
