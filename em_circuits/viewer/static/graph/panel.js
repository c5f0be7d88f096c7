// The panel beside the graph: the selected node in both models, paths, pins and groups, and, with
// nothing selected, the strongest nodes as a list (the graph for those who cannot see it).
import { ask, known, make, number, percent, say, signed, visible } from "../ask.js";
import { MODELS } from "./model.js";

const SVG = "http://www.w3.org/2000/svg";

export function signBar(value, largest) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "signbar");
  svg.setAttribute("viewBox", "-100 0 200 10");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const w = Math.min(100, (100 * Math.abs(value)) / (largest || 1));
  for (const [name, x, width] of [
    ["track", -0.6, 1.2],
    [value >= 0 ? "up" : "down", value >= 0 ? 0 : -w, w],
  ]) {
    const rect = document.createElementNS(SVG, "rect");
    for (const [key, v] of Object.entries({ class: name, x, width, y: 0, height: 10 }))
      rect.setAttribute(key, String(v));
    svg.append(rect);
  }
  return svg;
}

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
    if (!node) return name;
    if (node.kind === "token") return `${visible(node.text)} · token ${node.position}`;
    if (node.kind === "logit")
      return `${{ evil: "▲ ", safe: "● " }[node.target?.label] ?? ""}${visible(node.target?.text ?? name)}`;
    return graph.label(node);
  }

  #link(name) {
    return make(
      "button",
      { type: "button", class: "node-link", title: name, onclick: () => this.page.select(name) },
      this.title(name),
    );
  }

  #table(title, rows) {
    if (!rows.length) return [make("h3", {}, title), make("p", { class: "muted" }, "none")];
    const largest = Math.max(...rows.map((r) => Math.abs(r.value)));
    const measured = rows.some((r) => typeof r.measured === "number");
    const heads = ["", "", "edge", "measured", "share"].map((text) => make("th", { class: "right" }, text));
    return [
      make("h3", {}, title),
      make(
        "table",
        { class: measured ? "measured" : "" },
        measured ? make("thead", {}, make("tr", {}, heads)) : null,
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
              measured ? make("td", { class: "right num" }, signed(row.measured)) : null,
              row.note === undefined ? null : make("td", { class: "right muted num nowrap" }, row.note),
            ),
          ),
        ),
      ),
    ];
  }

  overview() {
    this.asked += 1;
    const { graph, view } = this.page,
      model = view === "base" ? "base" : graph.present.at(-1);
    const difference = view === "difference";
    const value = (n) => (difference ? graph.change(n) : n.at[model]?.contrast);
    const nodes = graph.nodes.filter((n) => n.kind === "feature" && value(n) && (difference || graph.shown(n, model)));
    const best = (sign) =>
      nodes
        .filter((n) => sign * value(n) > 0)
        .sort((a, b) => sign * (value(b) - value(a)))
        .slice(0, 10)
        .map((n) => ({ name: n.name, value: value(n) }));
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
        difference ? "Difference: merged minus base" : `The ${view === "both" ? "two graphs" : `${model} graph`}`,
      ),
      make("dl", { class: "facts" }, ...facts, counts),
      make(
        "p",
        { class: "muted" },
        difference
          ? [
              "Solid ring: shown in merged only. Dashed ring: in base only.",
              "Colour: by how much the influence differs; 0 where a feature is inactive.",
            ].join(" ")
          : graph.contrast
            ? [
                `Colour: influence on ${graph.target ? graph.contrastName : "evil minus safe"}`,
                `(${views[model].method.replaceAll("_", " ")}), in ${graph.unit}.`,
                "Select a node for its inputs, outputs and paths.",
              ].join(" ")
            : "No contrast: no target is labelled evil, or none safe. Review the prompt to get one.",
      ),
      ...(graph.contrast
        ? [
            ...this.#table(difference ? "More towards evil in merged" : "Most towards evil", best(1)),
            ...this.#table(difference ? "More towards safe in merged" : "Most towards safe", best(-1)),
          ]
        : []),
      ...this.#pins(),
    );
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
      make("dt", {}, "features in"),
      make("dd", {}, `both ${n.both} · base only ${n.base} · merged only ${n.merged}`),
    );
  }

  async node(name) {
    this.asked += 1;
    const turn = this.asked,
      { page } = this,
      { graph } = page;
    const node = graph.nodes[graph.index.get(name)];
    const head = [
      make("h2", {}, this.title(name)),
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
    if (own.state === "node") {
      const targets = graph.views[model].targets.map((token) => graph.targets.get(token));
      if (own.influence) {
        const rows = own.influence
          .map((value, i) => ({ name: `logit:${targets[i].token_id}`, value }))
          .sort((a, b) => b.value - a.value);
        parts.push(...this.#table(`Influence on each ${graph.target ? "term" : "logit"} (${model})`, rows));
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
        const contrast = at?.state === "inactive" ? 0 : (at?.contrast ?? null);
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
                  ? `activation ${number(at.activation, 2)}`
                  : "contrast",
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
            `All paths together: ${signed(found.total)} (${found.method.replaceAll("_", " ")})`,
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
            make("span", { class: "muted" }, ` ${g.members.length} nodes, contrast ${signed(page.sum(g.members))}`),
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
          make("span", { class: "grow" }, this.#link(name)),
          make("button", { type: "button", ariaLabel: `Unpin ${name}`, onclick: () => page.pin(name) }, "✕"),
        ),
      ),
      pinned.length > 1
        ? make("button", { type: "button", onclick: () => page.newGroup(pinned) }, "Group all pins")
        : "",
    ];
  }
}
