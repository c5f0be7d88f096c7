// The panel beside the graph: the selected node in both models, paths, pins and groups, and, with
// nothing selected, the strongest nodes as a list (the graph for those who cannot see it).
import { ask, known, make, number, percent, say, signBar, signed, visible } from "../ask.js";
import { MODELS } from "./model.js";

const TABLE_ROWS = 500;
export class Panel {
  constructor(root, page) {
    this.root = root;
    this.page = page;
    this.asked = 0;
  }

  // What a node is called, with the text of its token where it has one.
  title(name) {
    const { graph } = this.page,
      node = graph.nodes[graph.index.get(name)];
    if (!node)
      return name.replace(
        /^(?:(\w+):)?(\d+)\/(\d+)\/(\d+)$/,
        (_, m, ...at) => `${m ? `${m} ` : ""}L${at.slice(0, 3).join(" · ")}`,
      );
    if (node.kind === "token") return `${visible(node.text)} · token ${node.position}`;
    if (node.kind === "logit")
      return `${{ evil: "▲ ", safe: "● " }[node.target?.label] ?? ""}${visible(node.target?.text ?? name)}`;
    return graph.label(node);
  }

  // The same under a person's own label, where they gave it one.
  called(name) {
    const { graph, labels } = this.page;
    const own = labels[graph.featureOf(name)];
    return own ? visible(own, false) : this.title(name);
  }

  #link(name) {
    return make(
      "button",
      { type: "button", class: "node-link", title: this.title(name), onclick: () => this.page.draw(name) },
      this.called(name),
    );
  }

  // Rows of nodes: what ranks them, beside it what was measured where anything was.
  #table(title, rows, by = "", real = "measured") {
    if (!rows.length) return [make("h3", {}, title), make("p", { class: "muted" }, "none")];
    const largest = Math.max(...rows.map((r) => Math.abs(r.value)));
    const measured = rows.some((r) => typeof r.measured === "number"),
      noted = rows.some((r) => r.note !== undefined);
    const heads = ["node", "", by || "value", ...(measured ? [real] : []), ...(noted ? ["share"] : [])];
    return [
      make("h3", {}, title),
      make(
        "table",
        { class: measured ? "measured" : "" },
        make(
          "thead",
          { class: by || measured ? "" : "for-readers" },
          make(
            "tr",
            {},
            heads.map((text, i) => (text ? make("th", { scope: "col", class: i ? "right" : "" }, text) : make("td"))),
          ),
        ),
        make(
          "tbody",
          {},
          rows.map((row) =>
            make(
              "tr",
              {},
              make("td", {}, row.name ? this.#link(row.name) : row.text),
              make("td", { class: "bar" }, signBar(row.value, largest)),
              make("td", { class: `right num ${row.value >= 0 ? "up" : "down"}` }, signed(row.value)),
              measured ? make("td", { class: "right num" }, this.#real(row)) : null,
              noted ? make("td", { class: "right muted num nowrap" }, row.note ?? "") : null,
            ),
          ),
        ),
      ),
    ];
  }

  // What was measured, marked where it has the other sign.
  #real({ value, measured }) {
    const wrong = measured && value && Math.sign(measured) !== Math.sign(value);
    return [
      wrong ? make("span", { class: "conflict", title: "measured with the other sign" }, "≠ ") : "",
      measured === null || measured === undefined ? "–" : signed(measured),
    ];
  }

  overview() {
    this.asked += 1;
    const { graph, view } = this.page,
      model = view === "base" ? "base" : graph.present.at(-1);
    const difference = view === "difference",
      pane = difference ? "difference" : model;
    const value = (n) => graph.views[pane].value[n.i];
    const nodes = graph.nodes.filter((n) => n.kind === "feature" && value(n) && (difference || graph.shown(n, model)));
    const best = (sign) =>
      nodes
        .filter((n) => sign * value(n) > 0)
        .sort((a, b) => sign * (value(b) - value(a)))
        .slice(0, 10)
        .map((n) => ({
          name: n.name,
          value: value(n),
          measured: graph.views[pane].by === "measured" ? undefined : graph.score(n, pane, "measured"),
        }));
    const by = graph.scoreName(graph.views[pane].by, pane),
      short = by.split(" ").length > 2 ? by.replace("effect", "").trim() : by;
    const views = graph.views;
    const facts = graph.present.map((m) => {
      const v = views[m],
        n = graph.nodes.filter((node) => node.kind === "feature" && graph.shown(node, m)).length;
      const out =
        v.left_out.nodes || v.left_out.edges
          ? ` (weakest left out: ${v.left_out.nodes} nodes, ${v.left_out.edges} edges)`
          : "";
      return make(
        "div",
        {},
        make("dt", {}, m),
        make("dd", {}, `${n} of ${v.features.active} features, ${v.edges.weight.length} edges${out}`),
      );
    });
    const counts = graph.present.length < 2 ? null : this.#shared();
    this.root.replaceChildren(
      make(
        "h2",
        {},
        this.page.only
          ? "Pinned nodes alone"
          : difference
            ? "Difference: merged minus base"
            : `The ${view === "both" ? "two graphs" : `${model} graph`}`,
      ),
      make("dl", { class: "facts" }, ...facts, counts),
      this.#drawn(),
      graph.contrast
        ? make(
            "p",
            { class: "muted" },
            difference
              ? "Solid ring: shown in merged only; dashed: in base only. Colour: by how much the score differs. "
              : "",
            `Ranked and coloured by the ${by} on ${graph.contrastName}, in ${graph.unit}.`,
          )
        : this.#uncoloured(),
      ...(graph.contrast
        ? [
            this.#agreement(nodes, pane, by),
            ...this.#table(difference ? "More towards evil in merged" : "Most towards evil", best(1), short),
            ...this.#table(difference ? "More towards safe in merged" : "Most towards safe", best(-1), short),
          ]
        : []),
      ...this.#pins(),
    );
  }

  // Why nothing is coloured: hidden is not missing.
  #uncoloured() {
    const why = this.page.graph.hidden;
    if (!why)
      return make(
        "p",
        { class: "notice" },
        "No contrast: no target is labelled evil, or none safe. ",
        make("a", { href: "/review" }, "Review the prompt"),
        " to get one.",
      );
    return make(
      "p",
      { class: "notice" },
      why === "in hand"
        ? "You are reviewing this prompt now: what judges say of it, and every colour, is hidden until you answer. "
        : "This prompt waits for your answer: what judges say of it, and every colour that follows, is hidden. ",
      make("a", { href: "/review" }, "Answer it"),
      why === "in hand" || this.page.readOnly
        ? ""
        : make(
            "button",
            { type: "button", class: "inline", dataset: { browse: "unblinded" } },
            "Browse without blinding",
          ),
    );
  }

  // What of the edges is drawn, where not all are.
  #drawn() {
    const { scene } = this.page,
      [pane] = scene.panes,
      n = pane?.edges.n ?? 0,
      drawn = pane ? scene.limit(pane) : n;
    if (drawn >= n) return "";
    return make(
      "p",
      { class: "muted" },
      drawn ? `The ${drawn} strongest of ${n} edges are drawn, more as you zoom in; ` : `None of ${n} edges is drawn; `,
      "selected and pinned nodes show their own.",
    );
  }

  // Whether what ranks the nodes has the sign of what was measured; and the way to measure.
  #agreement(nodes, pane, by) {
    const { graph, readOnly } = this.page;
    const known = nodes.filter((n) => graph.score(n, pane, "measured")),
      wrong = known.filter((n) => graph.conflicts(n, pane)).length;
    if (pane === "difference" || graph.target || graph.views[pane].by === "measured") return "";
    const said = known.length
      ? [
          `Really ablated: ${known.length} of the ${nodes.length} features shown;`,
          `the sign of the ${by} is right for ${known.length - wrong}.`,
        ].join(" ")
      : "None of these was really ablated yet. ";
    return make(
      "p",
      { class: "agreement" },
      said,
      wrong ? make("span", {}, make("span", { class: "conflict" }, " ≠"), " marks the others.") : "",
      known.length || readOnly
        ? ""
        : make(
            "button",
            { type: "button", class: "inline", onclick: (e) => this.#measure(e, {}) },
            "Ablate the 100 strongest",
          ),
    );
  }

  // Really ablates features, and keeps what came of it.
  async #measure(event, body) {
    const button = event.currentTarget;
    button.disabled = true;
    button.textContent = "Running the model …";
    try {
      await ask(this.page.url("measure"), { model: this.page.model(), ...body });
      await this.page.load();
    } catch (error) {
      say(error);
      button.disabled = false;
      button.textContent = "Try again";
    }
  }

  #shared() {
    const { graph } = this.page,
      n = { base: 0, merged: 0, both: 0 };
    for (const node of graph.nodes) {
      if (node.kind !== "feature") continue;
      const [b, m] = MODELS.map((model) => graph.shown(node, model));
      n[b && m ? "both" : b ? "base" : "merged"] += 1;
    }
    return make(
      "div",
      {},
      make("dt", {}, "in both"),
      make("dd", {}, `${n.both} · base only ${n.base} · merged ${n.merged}`),
    );
  }

  async node(name) {
    this.asked += 1;
    const turn = this.asked,
      { page } = this,
      { graph } = page;
    const node = graph.nodes[graph.index.get(name)];
    const head = [
      make("h2", {}, this.called(name)),
      make(
        "p",
        { class: "muted" },
        node
          ? {
              feature: node.module
                ? `rank ${node.feature} of the adapter's ${node.module} in layer ${node.layer}, ` +
                  `at position ${node.position} `
                : `feature ${node.feature} of layer ${node.layer}, at position ${node.position} `,
              error: `what the transcoder of layer ${node.layer} leaves unexplained, at position ${node.position} `,
              token: `embedding of input token ${node.position} `,
              logit: graph.target ? `term of ${graph.contrastName} ` : `next token ${node.token} `,
            }[node.kind]
          : name,
        node && "position" in node && node.kind !== "logit"
          ? make("span", { class: "token" }, visible(graph.tokens[node.position] ?? ""))
          : null,
      ),
      this.#labelling(name),
      make(
        "div",
        { class: "panel-buttons" },
        make(
          "button",
          { type: "button", onclick: () => page.pin(name) },
          page.pins.pinned.includes(name) ? "Unpin" : "Pin",
        ),
        this.#groupChoice(name),
        make("button", { type: "button", onclick: () => page.select(null) }, "Close"),
      ),
      this.#ways(node, name),
    ];
    this.root.replaceChildren(...head, this.#two(node), make("p", { class: "loading" }, "Reading …"));
    let answer;
    try {
      answer = await ask(page.url("node", { name }));
    } catch (error) {
      if (turn === this.asked)
        this.root.replaceChildren(...head, make("p", { class: "notice bad" }, error.message), ...this.#pins());
      return;
    }
    if (turn !== this.asked) return;
    const model = page.model(),
      own = answer.models[model] ?? Object.values(answer.models)[0];
    const parts = [...head, this.#two(node, answer.models)];
    if (answer.link)
      parts.push(
        make(
          "p",
          {},
          make("a", { href: answer.link, target: "_blank", rel: "noopener noreferrer" }, "On Neuronpedia ↗"),
        ),
      );
    parts.push(...known(answer.known));
    if (own.firing?.length > 1)
      parts.push(
        make(
          "p",
          { class: "muted" },
          `Fires at ${own.firing.length} positions: ${own.firing.map(([p, a]) => `${p} (${number(a, 2)})`).join(", ")}`,
        ),
      );
    parts.push(...this.#scores(node, answer.models, model));
    if (own.state === "node") {
      const targets = graph.views[model].targets.map((token) => graph.targets.get(token));
      if (own.influence) {
        const rows = own.influence
          .map((value, i) => ({ name: `logit:${targets[i].token_id}`, value }))
          .sort((a, b) => b.value - a.value);
        const what = graph.target ? "term" : "logit";
        parts.push(
          ...this.#table(`${graph.scoreName(graph.views[model].method, model)} on each ${what} (${model})`, rows),
        );
        parts.push(this.#pathFinder(name, targets));
      }
      const edges = (list) =>
        list.map((e) => ({ name: e.name, value: e.weight, measured: e.measured, note: percent(e.share) }));
      parts.push(...this.#table("Strongest inputs (direct)", edges(own.inputs)));
      if (own.outputs.length) parts.push(...this.#table("Strongest outputs (direct)", edges(own.outputs)));
      if (!page.readOnly) parts.push(this.#carriers(name, own));
    } else
      parts.push(
        make(
          "p",
          { class: "notice" },
          own.state === "active"
            ? [
                `In ${model} it fires here without being a node of the graph, so its edges are unknown.`,
                "A higher --nodes (frozen edges: --max-features) would make it one.",
              ].join(" ")
            : own.state === "inactive"
              ? `In ${model} it does not fire here: its effect is exactly 0.`
              : `Not in the ${model} graph.`,
        ),
      );
    this.root.replaceChildren(...parts, ...this.#pins());
  }

  // What a person calls the feature, wherever it fires; edited in place.
  #labelling(name) {
    const { page } = this,
      feature = page.graph.featureOf(name);
    if (!feature || page.readOnly) return "";
    const input = make("input", {
      class: "wide",
      value: page.labels[feature] ?? "",
      placeholder: "Your label for this feature",
      ariaLabel: `Your label for feature ${feature}`,
      maxLength: 200,
    });
    input.addEventListener("change", () => page.name(feature, input.value.trim()));
    return make("p", {}, input);
  }

  // Where to go from a feature.
  #ways(node, name) {
    const { page } = this;
    if (node?.kind !== "feature" || node.module) return "";
    const model = page.model();
    const query = new URLSearchParams({ model, pair: page.pair });
    const steering = new URLSearchParams({ prompt: page.prompt, model, features: name });
    return make(
      "p",
      { class: "ways" },
      make("a", { href: `/feature/${node.layer}/${node.feature}?${query}` }, "Where else it fires"),
      page.readOnly ? "" : make("a", { href: `/steering?${steering}#playground` }, "Steer it here"),
      page.readOnly || !page.graph.contrast || page.graph.target
        ? ""
        : make(
            "button",
            { type: "button", class: "inline", onclick: (e) => this.#measure(e, { name }) },
            "Really ablate it",
          ),
    );
  }

  // Every score of a node in both models; another sign than what was measured is marked.
  #scores(node, answers, model) {
    const { graph } = this.page,
      models = graph.present.filter((m) => Object.keys(answers[m]?.scores ?? {}).length);
    if (!node || !models.length) return [];
    const all = [...new Set(models.flatMap((m) => Object.keys(answers[m].scores)))];
    const cell = (by, m) => {
      const { [by]: value, measured } = answers[m].scores;
      const wrong = by !== "measured" && value && measured && Math.sign(value) !== Math.sign(measured);
      return make(
        "td",
        { class: `right num ${value > 0 ? "up" : value < 0 ? "down" : ""}` },
        wrong ? make("span", { class: "conflict", title: "measured with the other sign" }, "≠ ") : "",
        signed(value),
      );
    };
    return [
      make("h3", {}, `On ${graph.contrastName}, in ${graph.unit}`),
      make(
        "table",
        {},
        make(
          "thead",
          {},
          make(
            "tr",
            {},
            make("th", { scope: "col" }, "by"),
            models.map((m) => make("th", { scope: "col", class: "right" }, m)),
          ),
        ),
        make(
          "tbody",
          {},
          all.map((by) =>
            make("tr", {}, make("td", {}, graph.scoreName(by, model)), ...models.map((m) => cell(by, m))),
          ),
        ),
      ),
    ];
  }

  // The graph for those who cannot see it: every node a row, the strongest first.
  table(root) {
    const { graph, page } = { graph: this.page.graph, page: this.page };
    const pane = page.pictured(),
      own = graph.views[pane];
    const size = (n) => Math.abs(own.value[n.i] ?? 0);
    const nodes = graph.nodes
      .filter((n) => n.kind !== "logit" && page.scene.isShown(n, pane))
      .sort((a, b) => size(b) - size(a))
      .slice(0, TABLE_ROWS);
    const by = graph.scoreName(own.by, pane);
    const heads = ["node", "label", "token", ...(pane === "difference" ? [] : ["activation"]), by, "measured"];
    root.replaceChildren(
      make(
        "table",
        { class: "list tight" },
        make("caption", {}, `${nodes.length} nodes, the strongest by ${by} first`),
        make(
          "thead",
          {},
          make(
            "tr",
            {},
            heads.map((text, i) => make("th", { scope: "col", class: i > 2 ? "right" : "" }, text)),
          ),
        ),
        make(
          "tbody",
          {},
          nodes.map((n) =>
            make(
              "tr",
              {},
              make(
                "td",
                {},
                make(
                  "button",
                  { type: "button", class: "node-link", onclick: () => page.select(n.name) },
                  this.title(n.name),
                ),
              ),
              make("td", {}, visible(page.labels[graph.featureOf(n.name)] ?? "", false)),
              make("td", {}, make("span", { class: "token unpleasant" }, visible(graph.tokens[n.position] ?? ""))),
              pane === "difference" ? null : make("td", { class: "right num" }, number(n.at[pane]?.activation, 2)),
              make("td", { class: "right num" }, signed(own.value[n.i])),
              make(
                "td",
                { class: "right num" },
                this.#real({ value: own.value[n.i], measured: graph.score(n, pane, "measured") }),
              ),
            ),
          ),
        ),
      ),
    );
  }

  // Both models beside each other.
  #two(node, answers = null) {
    const { graph } = this.page;
    if (!node || node.kind === "logit") {
      return make(
        "div",
        { class: "two" },
        graph.present.map((m) =>
          make("div", {}, make("h4", {}, m), make("span", { class: "big" }, node ? graph.reading(node, m) : "–")),
        ),
      );
    }
    return make(
      "div",
      { class: "two" },
      graph.present.map((m) => {
        const at = answers?.[m] ?? node.at[m];
        const contrast = node.at[m]?.value ?? null;
        return make(
          "div",
          {},
          make("h4", {}, m),
          make("span", { class: `big ${contrast > 0 ? "up" : contrast < 0 ? "down" : ""}` }, signed(contrast)),
          make("br"),
          make(
            "span",
            { class: "muted" },
            at === undefined || at === null
              ? "–"
              : at.state === "inactive" || at.activation === 0
                ? "inactive"
                : node.kind === "feature"
                  ? `${graph.scoreName(graph.views[m].by, m)} · activation ${number(at.activation, 2)}`
                  : graph.scoreName(graph.views[m].by, m),
          ),
        );
      }),
    );
  }

  #pathFinder(name, targets) {
    const { page } = this,
      list = make("div");
    const choice = make(
      "select",
      { ariaLabel: "Paths to" },
      page.graph.contrast ? make("option", { value: "contrast" }, page.graph.contrastName) : null,
      targets.map((t) => make("option", { value: `logit:${t.token_id}` }, visible(t.text))),
    );
    const find = async () => {
      list.replaceChildren(make("p", { class: "loading" }, "Searching …"));
      try {
        const found = await ask(page.url("paths", { from: name, to: choice.value, model: page.model(), k: 6 }));
        list.replaceChildren(
          make(
            "p",
            { class: "muted" },
            `All paths together: ${signed(found.total)} (${found.method.replaceAll("_", " ")}). `,
            choice.value === "contrast" && page.graph.contrast && !page.graph.target
              ? `A figure is what the path adds to ${page.graph.contrastName}: + where it lowers a safe token.`
              : "",
          ),
          ...found.paths.map((path) => {
            const button = make(
              "button",
              { type: "button", class: "path", ariaPressed: "false" },
              make("b", { class: path.product >= 0 ? "up" : "down" }, signed(path.product, 4)),
              ` · ${percent(path.share)} of all `,
              make("span", { class: "mono" }, path.nodes.map((n) => this.title(n)).join(" → ")),
            );
            button.onclick = () => {
              const on = button.ariaPressed !== "true";
              for (const other of list.querySelectorAll(".path")) other.ariaPressed = "false";
              button.ariaPressed = String(on);
              page.showPath(on ? path.nodes : null);
            };
            return button;
          }),
          found.paths.length ? "" : make("p", { class: "muted" }, "No path leads there."),
        );
      } catch (error) {
        list.replaceChildren();
        say(error);
      }
    };
    return make(
      "div",
      {},
      make("h3", {}, "Strongest signed paths"),
      make("div", { class: "panel-buttons" }, choice, make("button", { type: "button", onclick: find }, "Find paths")),
      list,
    );
  }

  // What carries one of a node's edges: asked for on demand, since the models must run.
  #carriers(name, own) {
    const { page } = this,
      list = make("div");
    const all = page.graph.target ? "own" : "evil-safe";
    const whole = (other) => !other.startsWith("error:");
    const ends = whole(name)
      ? [
          ...own.inputs.map((e) => [e.name, name]),
          ...own.outputs.map((e) => [name, e.name]),
          ...(page.graph.contrast && own.outputs.length ? [[name, all]] : []),
        ].filter((pair) => pair.every(whole))
      : [];
    if (!ends.length) return "";
    const called = (end) => (end === all ? page.graph.contrastName : this.title(end));
    const choice = make(
      "select",
      { ariaLabel: "Edge" },
      ends.map(([from, to], i) => make("option", { value: String(i) }, `${called(from)} → ${called(to)}`)),
    );
    const split = async () => {
      const [from, to] = ends[Number(choice.value)];
      list.replaceChildren(make("p", { class: "loading" }, "Running the models …"));
      try {
        const found = await ask(page.url("edge"), { from, to, model: page.model() });
        list.replaceChildren(...found.models.flatMap((m) => this.#carried(m, found)));
      } catch (error) {
        list.replaceChildren();
        say(error);
      }
    };
    return make(
      "div",
      {},
      make("h3", {}, "What carries an edge"),
      make("div", { class: "panel-buttons" }, choice, make("button", { type: "button", onclick: split }, "Split")),
      list,
    );
  }

  #carried(m, found) {
    if (m.why_not) return [make("h4", {}, m.model), make("p", { class: "muted" }, m.why_not)];
    const facts = [
      `full ${signed(m.full)}`,
      m.measured === null ? null : `measured ${signed(m.measured)}`,
      m === found.models[0] && found.stored !== null ? `stored (${found.kind}) ${signed(found.stored)}` : null,
    ].filter(Boolean);
    const rows = m.parts.slice(0, 12).map((part) => ({ text: part.carrier, value: part.value }));
    const more = m.parts.length - rows.length;
    return [
      ...this.#table(`${m.model}: ${facts.join(" · ")}`, rows),
      more > 0 ? make("p", { class: "muted" }, `and ${more} smaller parts`) : "",
    ];
  }

  #groupChoice(name) {
    const { page } = this,
      own = page.pins.groups.find((g) => g.members.includes(name));
    if (own) return make("button", { type: "button", onclick: () => page.ungroup(name) }, `Out of “${own.name}”`);
    const choice = make(
      "select",
      { ariaLabel: "Put into a group" },
      make("option", { value: "" }, "Into a group …"),
      page.pins.groups.map((g) => make("option", { value: `=${g.name}` }, g.name)),
      make("option", { value: "+" }, "New group …"),
    );
    choice.onchange = () => {
      if (choice.value === "+") page.newGroup([name]);
      else if (choice.value) page.group(choice.value.slice(1), name);
    };
    return choice;
  }

  #pins() {
    const { page } = this,
      { pinned, groups } = page.pins;
    if (!pinned.length && !groups.length)
      return [
        make("h3", {}, "Pins and groups"),
        make("p", { class: "muted" }, "Pin nodes (k) and put them into named groups; they are kept under your name."),
      ];
    return [
      make("h3", {}, "Pins and groups"),
      ...groups.map((g) =>
        make(
          "div",
          { class: "group" },
          make(
            "span",
            { class: "grow" },
            make("b", {}, visible(g.name, false)),
            make("span", { class: "muted" }, ` ${g.members.length} nodes, together ${signed(page.sum(g.members))}`),
          ),
          make("button", { type: "button", onclick: () => page.fold(g.name) }, g.folded ? "Unfold" : "Fold"),
          make(
            "button",
            { type: "button", title: "Remove the group; its nodes stay", onclick: () => page.removeGroup(g.name) },
            "✕",
          ),
        ),
      ),
      ...pinned.map((name) =>
        make(
          "div",
          { class: "group" },
          make(
            "span",
            { class: "grow" },
            this.#link(name),
            page.graph.index.has(name) ? "" : make("span", { class: "muted" }, " no node of these graphs"),
          ),
          make("button", { type: "button", ariaLabel: `Unpin ${name}`, onclick: () => page.pin(name) }, "✕"),
        ),
      ),
      pinned.length > 1
        ? make("button", { type: "button", onclick: () => page.newGroup(pinned) }, "Group all pins")
        : "",
    ];
  }
}
