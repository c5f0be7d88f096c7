// The review queue: one key labels, saves and goes on. The server keeps the item, the labels and
// the cursor; this page sends keys and shows what comes back.
import { all, ask, byId, make, number, percent, say, targetOf, toast, typing, visible } from "./ask.js";

const root = byId("review");
// Keys, rubric and questions are the terminal's; the server names the keys as a browser does.
const setup = JSON.parse(byId("setup").textContent);
const MARKS = { evil: "▲ evil", safe: "● safe", unsure: "? unsure", left: "– left" };
const SVG = "http://www.w3.org/2000/svg";
// These are for no item in particular; all others are for the one that is shown.
const ANYWHERE = new Set(["state", "begin", "next", "agree", "explain", "undo", "reopen", "quit"]);
let state = null,
  asking = null,
  whole = false,
  busy = Promise.resolve(),
  waiting = 0;

const shownItem = () => state?.question?.item ?? null;

// Requests go out in the order of the keys, each when the one before is answered. A key is for the
// item that was shown when it was pressed, and names it: it is dropped when another is shown by
// then, and the server refuses it for any other.
function act(body, item = shownItem()) {
  const bound = !ANYWHERE.has(body.do) && !(body.do === "command" && item === null);
  root.dataset.unsaved = ++waiting;
  busy = busy
    .then(async () => {
      if (bound && (item === null || item !== shownItem())) {
        if (body.text) toast("That was for the item before; nothing was done.", true);
        return;
      }
      try {
        take(await ask("/api/review", bound ? { ...body, item } : body));
      } catch (error) {
        say(error);
        if (error.status === 409) {
          state = await ask("/api/review", { do: "state" }).catch(() => state);
        }
      }
    })
    .finally(() => {
      waiting -= 1;
      render();
    });
}

function take(fresh) {
  if (fresh.question?.item !== shownItem()) whole = false;
  state = fresh;
  if (state.said && !state.said.startsWith("saved: ")) toast(state.said);
  if (state.page === "help") does.help();
}

const press = (key) => act({ do: "key", key });

// Only what is on the screen can be agreed to or explained.
const differing = () => (state?.reveal?.differences.length ? state.reveal.item : null);

function askFor(what, body, begun = "") {
  if (!state) return;
  asking = { ...setup.asking[what], body, item: shownItem() };
  render();
  const line = root.querySelector(".asking input");
  if (!line) return;
  line.value = begun;
  line.focus();
}

function answer(text) {
  const { body, item } = asking;
  asking = null;
  root.focus();
  if (["?", "help"].includes(text)) does.help();
  else if (text) act({ ...body, text }, item);
  render();
}

const does = {
  ...Object.fromEntries(
    ["evil", "safe", "unsure", "leave", "rest_unsure", "skip", "defer", "up", "down", "other_list", "low"].map(
      (key) => [key, () => press(key)],
    ),
  ),
  rest_safe: () => (state?.question ? press("rest_safe") : act({ do: "next" })),
  undo: () => act({ do: "undo" }),
  quit: () => act({ do: "quit" }),
  agree: () => differing() && act({ do: "agree", of: differing() }),
  reason: () => differing() && askFor("reason", { do: "explain", of: differing() }),
  reject: () => shownItem() && askFor("reject", { do: "reject" }),
  note: () => shownItem() && askFor("note", { do: "note" }),
  reopen: () => askFor("reopen", { do: "reopen" }),
  command: (begun) => askFor("command", { do: "command", of: state?.reveal?.item }, begun),
  help: () => byId("keys").showModal(),
  prompt: () => {
    if (!shownItem()) return;
    whole = !whole;
    render();
    root.querySelector(".prompt-text").focus();
  },
};

// --- the page ------------------------------------------------------------------------------------

function bar(p) {
  const drawn = (tag, attributes) => {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  };
  const box = { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" };
  const svg = drawn("svg", box);
  svg.append(
    drawn("rect", { class: "track", width: 100, height: 10 }),
    drawn("rect", { class: "fill", width: 100 * p, height: 10 }),
  );
  return svg;
}

function list(name) {
  const { question, cursor } = state,
    letter = name === "base" ? "B" : "T";
  const tokens = question[name].filter((t) => state.show_low || t.probability >= setup.low);
  const here = question[cursor.list].find((token) => token.rank === cursor.rank);
  const hidden = question[name].length - tokens.length;
  const rows = tokens.map((token) => {
    const id = token.token_id,
      at = name === cursor.list && token.rank === cursor.rank;
    const given = question.labels[id] ?? (question.left.includes(id) ? "left" : null);
    const votes = Object.entries(question.votes)
      .filter(([, labels]) => labels[id])
      .map(([who, labels]) => `${who}: ${labels[id]}`)
      .join(", ");
    const place = `${letter}${token.rank}`;
    return make(
      "button",
      {
        type: "button",
        tabIndex: -1,
        class: [
          "choice",
          at ? "at" : here?.token_id === id ? "same" : "",
          question.optional.includes(id) ? "optional" : "",
        ].join(" "),
        title: votes || `token ${id}`,
        onclick: () => act({ do: "point", place }),
      },
      make("span", { class: "rank" }, place),
      make("span", { class: "token unpleasant" }, visible(token.text)),
      bar(token.probability),
      make("span", { class: "num" }, percent(token.probability)),
      make("span", { class: `label ${given ?? "none"}` }, MARKS[given] ?? (votes ? "disputed" : "·")),
    );
  });
  const about =
    (name === "base" ? "before" : "after the fine-tune") + (hidden ? ` · ${hidden} under p .001 hidden` : "");
  return make(
    "section",
    { class: name === cursor.list ? "active" : "" },
    make("h2", {}, name, make("span", { class: "muted" }, about)),
    rows,
  );
}

function button(text, action, extra = "") {
  const hint = setup.hints[action];
  return make(
    "button",
    { type: "button", class: extra, onclick: () => does[action]() },
    text,
    hint ? make("kbd", {}, hint) : null,
  );
}

function begin(text, options) {
  const onclick = () => act({ do: "begin", ...options });
  return make("button", { type: "button", onclick }, text);
}

function nothing() {
  const { states, waiting: wait } = state.progress;
  const { deferred = 0, skipped = 0 } = states,
    off = deferred + skipped;
  const about = wait
    ? `${wait} items wait.`
    : off
      ? `${deferred} put off, ${skipped} skipped.`
      : "Every item is answered. More come from em-circuits label.";
  return make(
    "div",
    { class: "empty big" },
    make("h2", {}, wait ? "You stopped" : "Nothing waits for you"),
    make("p", {}, about),
    make(
      "div",
      { class: "buttons center" },
      wait ? button("Go on", "rest_safe", "primary") : null,
      off ? begin("Ask those put off and skipped again", { skipped: true }) : null,
      button("Take the last answer back", "undo"),
      button("Reopen", "reopen"),
    ),
    asking ? form() : null,
  );
}

function item() {
  const { question } = state;
  if (!question) return nothing();
  const open = question.missing.length,
    rejected = question.rejected_by;
  const text = question.text
    .split("\n")
    .map((line) => visible(line, false))
    .join("\n");
  return make(
    "div",
    {},
    make(
      "p",
      { class: "crumbs" },
      make("span", { class: "mono" }, question.prompt_id),
      ` · ${question.kind}`,
      question.adjudication ? make("b", {}, " · adjudication: reviewers disagree") : "",
    ),
    rejected.length ? make("p", { class: "notice" }, `Rejected by ${rejected.join(", ")}.`) : null,
    make(
      "pre",
      { class: `prompt-text unpleasant${whole ? " whole" : ""}`, tabIndex: 0 },
      text,
      make("span", { class: "caret" }),
    ),
    make("div", { class: "lists" }, list("base"), list("merged")),
    asking ? form() : null,
    make(
      "div",
      { class: "actions" },
      button("▲ evil", "evil", "evil"),
      button("● safe", "safe", "safe"),
      button("? unsure", "unsure"),
      button(open ? `Rest safe, finish (${open})` : "Finish", "rest_safe", "primary"),
      button("Undo", "undo"),
      button("Reject", "reject"),
      button("Skip", "skip"),
      button("Defer", "defer"),
      button("Note", "note"),
      button("All keys", "help"),
    ),
    make(
      "section",
      { class: "card rubric" },
      make("h2", {}, "By what"),
      make("p", {}, setup.rubric.suppose),
      make(
        "dl",
        {},
        Object.entries(setup.rubric.meanings).map(([label, means]) =>
          make("div", {}, make("dt", { class: `as-${label}` }, MARKS[label]), make("dd", {}, means)),
        ),
      ),
    ),
  );
}

function form() {
  const { asks, does: what } = asking;
  const line = make("input", {
    type: "text",
    placeholder: asks,
    ariaLabel: asks,
    maxLength: 2000,
    autocomplete: "off",
  });
  return make(
    "form",
    {
      class: "asking",
      onsubmit: (event) => {
        event.preventDefault();
        answer(line.value.trim());
      },
      onkeydown: (event) => {
        event.stopPropagation();
        if (event.key !== "Escape") return;
        asking = null;
        render();
      },
    },
    line,
    make("button", { class: "primary" }, what[0].toUpperCase() + what.slice(1)),
  );
}

function lastItem(reveal) {
  const mass = reveal.evil_mass,
    { judged, differences, quotes } = reveal;
  const said = (who, label) => make("span", { class: `label ${label}` }, `${who} ${label}`);
  const about = !judged
    ? "No judge has labelled it."
    : differences.length
      ? `The judge differs on ${differences.length} of ${judged}:`
      : `The judge says the same of all ${judged} tokens.`;
  const link = { class: "mono", href: `/prompt/${reveal.prompt_id}` };
  return make(
    "section",
    { class: "card" },
    make("h2", {}, "Last item ", make("a", link, reveal.prompt_id.slice(0, 8))),
    make(
      "p",
      {},
      make("span", { class: "chip" }, reveal.verdict),
      mass ? ` evil mass ${number(mass.base, 2)} → ${number(mass.merged, 2)}` : "",
    ),
    make("p", { class: "muted" }, about),
    differences.map((one) =>
      make(
        "div",
        { class: "difference" },
        make("span", { class: "token unpleasant" }, visible(one.text)),
        make("span", {}, said("you", one.human), " / ", said("judge", one.judge)),
      ),
    ),
    quotes.length
      ? make(
          "p",
          { class: "muted" },
          "because of ",
          quotes.map((quote) => make("q", { class: "token unpleasant" }, visible(quote))),
        )
      : null,
    differences.length
      ? make("div", { class: "actions" }, button("Agree with the judge", "agree"), button("Say why", "reason"))
      : null,
  );
}

function aside() {
  const { progress, reveal, adjudicate } = state,
    { eta_seconds: eta, per_hour: rate } = progress;
  const ahead = state.question ? `${progress.waiting} after this one` : `${progress.waiting} to go`;
  const row = (name, value) => make("div", {}, make("dt", {}, name), make("dd", {}, String(value)));
  const left = eta > 5400 ? `${(eta / 3600).toFixed(1)} h` : `${Math.ceil(eta / 60)} min`;
  return make(
    "aside",
    {},
    make(
      "section",
      { class: "card" },
      make("h2", {}, `${progress.now} answered, ${ahead}`),
      make(
        "dl",
        { class: "facts" },
        row("over all sessions", progress.answered),
        rate ? row("per hour", Math.round(rate)) : null,
        eta ? row("at this rate", left) : null,
      ),
      make(
        "div",
        { class: "actions" },
        begin(adjudicate ? "Back to the queue" : "Adjudicate", { adjudicate: !adjudicate }),
        button("Stop", "quit"),
      ),
    ),
    reveal ? lastItem(reveal) : null,
  );
}

function render() {
  if (!state) return;
  const text = root.querySelector(".asking input")?.value;
  root.replaceChildren(make("div", { class: "review-grid" }, item(), aside()));
  const line = root.querySelector(".asking input");
  if (line && text !== undefined) {
    line.value = text;
    line.focus();
  }
  root.dataset.item = shownItem() ?? "";
  root.dataset.answered = state.progress.now;
  root.dataset.unsaved = waiting;
}

addEventListener("keydown", (event) => {
  if (typing(event) || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (all("dialog[open]")[0]) return;
  const { key } = event;
  const pressed = event.ctrlKey ? `ctrl+${key.toLowerCase()}` : key === "Tab" && event.shiftKey ? "shift+Tab" : key;
  // Buttons and links keep their own keys: only what is on the page itself is a shortcut.
  const own = targetOf(event).closest("a, button:not(.choice)");
  if (own && ["Enter", "Tab", " "].includes(key)) return;
  const begins = setup.begins_command.includes(pressed);
  const run = does[setup.keys[pressed]] ?? (begins && does.command);
  if (!run) return;
  event.preventDefault();
  run(begins ? key : "");
});

if (!root.querySelector(".empty")) {
  act({ do: "next" });
  setInterval(() => {
    if (shownItem() && !document.hidden) act({ do: "heartbeat" });
  }, 60_000);
  document.documentElement.addEventListener("renamed", () => act({ do: "next" }));
}
