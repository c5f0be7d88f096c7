// The graph page: asks for both views, draws them, and answers pointer, keys and controls.
import { all, ask, byId, say, targetOf, toast, typing } from "../ask.js";
import { png } from "./export.js";
import { layOut } from "./layout.js";
import { Graph } from "./model.js";
import { Panel } from "./panel.js";
import { Scene } from "./scene.js";

const root = byId("graph");
const { prompt, pair, readOnly } = root.dataset;
const asked = new URLSearchParams(location.search);
const note = byId("stage-note");
const started = performance.now();

class Page {
  constructor() {
    this.view = root.dataset.show;
    this.cut = {
      node: share("node", 0.8),
      edge: share("edge", 0.98),
      by: asked.get("by") === "contrast" ? "contrast" : "p",
      colour: asked.get("colour") ?? "",
    };
    this.pins = { pinned: [], groups: [], places: {} };
    this.labels = {}; // feature -> what this person calls it
    this.linked = (asked.get("keep") ?? "").split(",").filter(Boolean); // nodes that an address names
    this.only = asked.get("only") === "kept";
    this.selected = null;
    this.turn = 0;
    this.readOnly = Boolean(readOnly);
    Object.assign(this, { prompt, pair });
    this.panel = new Panel(byId("panel"), this);
    this.scene = new Scene(
      byId("canvas"),
      () => this.#pictured(),
      () => this.#resized(),
    );
    this.scene.labelOf = (node) =>
      this.labels[this.graph.featureOf(node.name)] ?? (this.only ? this.graph.label(node) : "");
  }

  url(what = "", parameters = {}) {
    return `/api/graph/${prompt}${what ? `/${what}` : ""}?${new URLSearchParams({ pair, ...parameters })}`;
  }

  // What of the graph is asked for.
  request() {
    const keep = [...this.linked, ...(this.selected ? [this.selected] : [])];
    if (readOnly) keep.push(...this.pins.pinned);
    return { ...this.cut, keep: [...new Set(keep)].join(","), ...(this.only ? { only: "kept" } : {}) };
  }

  // The view that a picture is of.
  pictured() {
    return this.view === "both" ? this.model() : this.view;
  }

  // Which model details are of.
  model() {
    return this.view === "base" ? "base" : this.graph.present.at(-1);
  }

  async load() {
    this.turn += 1;
    const { turn } = this;
    note.textContent = "Reading the graph …";
    try {
      const record = await ask(this.url("", this.request()));
      // Of many edges each of reading, typing and laying out takes a while: three short waits, not a long one.
      await new Promise((go) => setTimeout(go));
      const graph = new Graph(record);
      await new Promise((go) => setTimeout(go));
      if (turn !== this.turn) return;
      this.graph = graph;
    } catch (error) {
      note.textContent = "";
      byId("panel").textContent = error.message;
      return;
    }
    note.textContent = "";
    const first = !this.place;
    this.scene.resize();
    this.#layOut();
    this.#groups();
    this.#show();
    this.#scores();
    this.scene.fit();
    setTimeout(() => this.#names());
    const wanted = first ? asked.get("select") : this.selected;
    if (wanted) this.select(wanted, false);
    else this.panel.overview();
  }

  #layOut() {
    const panes = this.view === "both" ? this.graph.present.length : 1;
    const aspect = this.scene.width / panes / Math.max(120, this.scene.height - 140);
    this.place = layOut(this.graph, aspect, this.only ? this.pins.places : {});
  }

  // A window of another shape: bands move closer or apart.
  #resized() {
    if (!this.place) return;
    this.#layOut();
    this.#groups();
    this.scene.place = this.place;
    this.scene.fit();
  }

  #show() {
    for (const button of all("[data-show][role=radio]")) button.ariaChecked = String(button.dataset.show === this.view);
    this.scene.show(this.graph, this.place, this.view === "both" ? this.graph.present : [this.view]);
    this.#remember();
  }

  // What nodes can be coloured by.
  #scores() {
    const view = this.pictured(),
      choice = byId("colour");
    choice.replaceChildren(...this.graph.scores(view).map((by) => new Option(this.graph.scoreName(by, view), by)));
    choice.disabled = !choice.options.length;
    if (choice.disabled) choice.add(new Option(this.graph.hidden ? "hidden" : "nothing", ""));
    choice.value = this.graph.views[view].by ?? "";
    byId("legend-by").textContent = this.graph.contrast
      ? `${this.graph.scoreName(this.graph.views[view].by, view)}, ${this.graph.unit}`
      : this.graph.hidden
        ? "hidden until you answer"
        : "no contrast";
    byId("only").setAttribute("aria-pressed", String(this.only));
    if (!byId("table-twin").hidden) this.panel.table(byId("table-twin"));
  }

  // Pinned nodes alone, to be arranged by hand.
  setOnly(on) {
    if (on && !this.pins.pinned.length && !this.pins.groups.length && !this.linked.length) {
      toast("Pin nodes first (k): they and their edges are what is shown then.", true);
      return;
    }
    this.only = on;
    this.load();
  }

  move(node, x, y) {
    const place = [Math.round(x), Math.round(y)];
    const group = this.scene.folded.get(node.name);
    for (const one of group ? this.pins.groups.find((g) => g.name === group.name).members : [node.name]) {
      const own = this.graph.nodes[this.graph.index.get(one)];
      if (own) [own.x, own.y] = this.pins.places[one] = place;
    }
    this.#groups();
    this.scene.restart();
  }

  // The label of a feature, kept under this person's name.
  async name(feature, text) {
    try {
      this.labels = await ask(`/api/node-labels?${new URLSearchParams({ pair })}`, { feature, text }, "PUT");
    } catch (error) {
      say(error);
    }
    this.#names();
    this.#refresh();
  }

  setView(view) {
    const button = all(`[role=radio][data-show="${view}"]`)[0];
    if (button.disabled || !this.graph) return;
    const wide = (view === "both") !== (this.view === "both");
    this.view = view;
    if (wide) {
      this.#layOut();
      this.#groups();
    }
    this.#show();
    this.#scores();
    if (wide) this.scene.fit();
    if (this.selected) this.panel.node(this.selected);
    else this.panel.overview();
  }

  select(name, reveal = true) {
    const node = name === null ? null : (this.graph.nodes[this.graph.index.get(name)] ?? null);
    this.selected = name;
    this.scene.selected = node;
    this.scene.path = null;
    if (node && reveal) this.scene.reveal(node);
    this.scene.request();
    if (name === null) this.panel.overview();
    else this.panel.node(name);
    this.#remember();
  }

  showPath(names) {
    this.scene.path = names;
    this.scene.request();
  }

  // The address of what is seen.
  #remember() {
    const state = new URLSearchParams({ show: this.view, node: this.cut.node, edge: this.cut.edge });
    if (this.cut.by === "contrast") state.set("by", "contrast");
    if (this.cut.colour) state.set("colour", this.cut.colour);
    if (this.only) {
      state.set("only", "kept"); // a colleague's pins are others: the address names these
      state.set("keep", [...new Set([...this.linked, ...this.names()])].join(","));
    }
    if (this.selected) state.set("select", this.selected);
    if (asked.get("pair")) state.set("pair", asked.get("pair"));
    history.replaceState(null, "", `?${state}`);
  }

  // Every node that is pinned or in a group.
  names() {
    return [...new Set([...this.pins.pinned, ...this.pins.groups.flatMap((g) => g.members)])];
  }

  #pictured() {
    if (!this.firstPicture) {
      this.firstPicture = performance.now() - started;
      root.dataset.firstPicture = String(Math.round(this.firstPicture));
    }
    root.dataset.pictures = String(1 + Number(root.dataset.pictures ?? 0));
  }

  #names() {
    byId("found-nodes").replaceChildren(
      ...this.graph.nodes.slice(0, 1500).map((node) => {
        const option = document.createElement("option");
        option.value = node.name;
        option.label = this.panel.title(node.name);
        return option;
      }),
    );
  }

  find(text) {
    const wanted = text.trim().toLowerCase();
    if (!wanted) return;
    const hit = this.graph.index.has(wanted)
      ? wanted
      : this.graph.nodes.find((n) => this.panel.title(n.name).toLowerCase().includes(wanted) || n.name.includes(wanted))
          ?.name;
    const group = this.pins.groups.find((g) => g.name.toLowerCase().includes(wanted));
    if (hit) this.select(hit);
    else if (group) this.select(group.members[0]);
    else if (/^\d+\/\d+\/\d+$/.test(wanted)) this.draw(wanted);
    else toast("No node of this view goes by that; lower thresholds hide nodes.", true);
  }

  // A node that the thresholds hide, drawn all the same.
  draw(name) {
    this.selected = name;
    if (this.graph.index.has(name)) this.select(name);
    else this.load();
  }

  // Pins, groups and labels, kept under the person's name.
  async loadPins() {
    try {
      [this.pins, this.labels] = await Promise.all([
        ask(`/api/pins/${prompt}`),
        ask(`/api/node-labels?${new URLSearchParams({ pair })}`),
      ]);
    } catch (error) {
      say(error);
    }
    await this.load();
  }

  async keep() {
    this.#groups();
    this.#refresh();
    if (readOnly) {
      toast("Read-only: pins last until the page is closed.");
      return;
    }
    try {
      await ask(`/api/pins/${prompt}`, this.pins, "PUT");
    } catch (error) {
      say(error);
    }
    const outside = this.names().some((name) => !this.graph.index.has(name));
    if (this.only || outside) this.load();
  }

  #refresh() {
    this.scene.restart();
    if (this.selected) this.panel.node(this.selected);
    else this.panel.overview();
  }

  #groups() {
    const at = (name) => this.graph.nodes[this.graph.index.get(name)];
    this.scene.pinned = new Set(this.pins.pinned);
    this.scene.groups = [];
    this.scene.folded = new Map();
    for (const group of this.pins.groups) {
      const members = group.members.map(at).filter(Boolean);
      if (!members.length) continue;
      const mean = (key) => members.reduce((sum, n) => sum + n[key], 0) / members.length;
      const centre = { name: group.name, x: mean("x"), y: mean("y") - 12 };
      this.scene.groups.push({ ...group, at: centre });
      if (group.folded) for (const node of members) this.scene.folded.set(node.name, centre);
    }
  }

  pin(name) {
    const { pinned } = this.pins;
    if (pinned.includes(name)) pinned.splice(pinned.indexOf(name), 1);
    else pinned.push(name);
    this.keep();
  }

  newGroup(members) {
    const name = window.prompt("Name of the group");
    if (!name?.trim()) return;
    if (this.pins.groups.some((g) => g.name === name.trim())) {
      toast("There is a group of that name.", true);
      return;
    }
    const taken = new Set(this.pins.groups.flatMap((g) => g.members));
    this.pins.groups.push({
      name: name.trim().slice(0, 60),
      members: members.filter((m) => !taken.has(m)),
      folded: false,
    });
    this.keep();
  }

  group(name, member) {
    this.pins.groups.find((g) => g.name === name).members.push(member);
    this.keep();
  }

  ungroup(member) {
    for (const g of this.pins.groups) g.members = g.members.filter((m) => m !== member);
    this.pins.groups = this.pins.groups.filter((g) => g.members.length);
    this.keep();
  }

  fold(name) {
    const g = this.pins.groups.find((each) => each.name === name);
    g.folded = !g.folded;
    this.keep();
  }

  removeGroup(name) {
    this.pins.groups = this.pins.groups.filter((g) => g.name !== name);
    this.keep();
  }

  sum(members) {
    const model = this.model();
    return members.reduce(
      (total, name) => total + (this.graph.nodes[this.graph.index.get(name)]?.at[model]?.value ?? 0),
      0,
    );
  }

  // The next node from the selected one: beside it, or along its strongest edge up or down.
  step(key) {
    const { graph } = this,
      pane = this.scene.panes[0];
    const nodes = graph.nodes.filter((n) => this.scene.isShown(n, pane.view));
    const own = graph.nodes[graph.index.get(this.selected)];
    if (!own) {
      const first = nodes
        .filter((n) => n.kind === "feature")
        .sort((a, b) => Math.abs(graph.tone(b, pane.view)) - Math.abs(graph.tone(a, pane.view)))[0];
      if (first) this.select(first.name);
      return;
    }
    if (key === "ArrowLeft" || key === "ArrowRight") {
      const row = nodes.filter((n) => n.layer === own.layer).sort((a, b) => a.x - b.x || a.y - b.y);
      const next = row[row.indexOf(own) + (key === "ArrowLeft" ? -1 : 1)];
      if (next) this.select(next.name);
      return;
    }
    const out = key === "ArrowUp";
    const best = pane.around(own.i).find((e) => (out ? pane.edges.source : pane.edges.target)[e] === own.i);
    if (best !== undefined) this.select(graph.nodes[(out ? pane.edges.target : pane.edges.source)[best]].name);
  }
}

function share(name, otherwise) {
  const value = Number(asked.get(name) ?? otherwise);
  return value >= 0 && value <= 1 ? value : otherwise;
}

const page = new Page();
const canvas = byId("canvas");
let drag = null;

canvas.addEventListener("pointerdown", (event) => {
  const box = canvas.getBoundingClientRect();
  const held = page.only ? page.scene.at(event.clientX - box.left, event.clientY - box.top) : null;
  drag = { x: event.clientX, y: event.clientY, far: 0, node: held?.kind === "logit" ? null : held };
  canvas.setPointerCapture(event.pointerId);
});
canvas.addEventListener("pointermove", (event) => {
  if (!page.graph) return;
  if (drag) {
    const dx = event.clientX - drag.x,
      dy = event.clientY - drag.y;
    drag.far += Math.abs(dx) + Math.abs(dy);
    if (drag.far > 4) {
      canvas.classList.add("dragging");
      const box = canvas.getBoundingClientRect();
      if (drag.node) page.move(drag.node, ...page.scene.world(event.clientX - box.left, event.clientY - box.top));
      else page.scene.pan(dx, dy);
    }
    Object.assign(drag, { x: event.clientX, y: event.clientY });
    return;
  }
  const box = canvas.getBoundingClientRect(),
    node = page.scene.at(event.clientX - box.left, event.clientY - box.top);
  if (node !== page.scene.hover) {
    page.scene.hover = node;
    canvas.classList.toggle("over", Boolean(node));
    canvas.title = node ? page.panel.title(node.name) : "";
    page.scene.request();
  }
});
canvas.addEventListener("pointerup", (event) => {
  const clicked = drag && drag.far <= 4,
    moved = drag?.node && !clicked;
  drag = null;
  if (moved) page.keep();
  canvas.classList.remove("dragging");
  if (!clicked || !page.graph) return;
  const box = canvas.getBoundingClientRect(),
    node = page.scene.at(event.clientX - box.left, event.clientY - box.top);
  if (node && event.shiftKey) page.pin(node.name);
  else page.select(node?.name ?? null, false);
});
canvas.addEventListener("pointerleave", () => {
  page.scene.hover = null;
  page.scene.request();
});
canvas.addEventListener(
  "wheel",
  (event) => {
    event.preventDefault();
    const box = canvas.getBoundingClientRect();
    page.scene.zoom(
      Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0016)),
      event.clientX - box.left,
      event.clientY - box.top,
    );
  },
  { passive: false },
);

for (const button of all("[role=radio][data-show]"))
  button.addEventListener("click", () => page.setView(button.dataset.show));
for (const which of ["node", "edge"]) {
  const slider = byId(`${which}-cut`),
    out = byId(`${which}-cut-out`);
  const show = () => {
    out.textContent = Number(slider.value).toFixed(which === "edge" ? 3 : 2);
  };
  slider.value = page.cut[which];
  show();
  let waiting;
  slider.addEventListener("input", () => {
    show();
    page.cut[which] = Number(slider.value);
    clearTimeout(waiting);
    waiting = setTimeout(() => page.load(), 120);
  });
}
byId("by").value = page.cut.by;
byId("by").addEventListener("change", (event) => {
  page.cut.by = targetOf(event).value;
  page.load();
});
byId("colour").addEventListener("change", (event) => {
  page.cut.colour = targetOf(event).value;
  page.load();
});
byId("drawn").addEventListener("change", (event) => {
  page.scene.drawn = targetOf(event).value;
  page.scene.restart();
});
byId("only").addEventListener("click", () => page.setOnly(!page.only));
byId("as-table").addEventListener("click", () => {
  const twin = byId("table-twin");
  twin.hidden = !twin.hidden;
  byId("as-table").setAttribute("aria-pressed", String(!twin.hidden));
  if (!twin.hidden && page.graph) page.panel.table(twin);
});
byId("fit").addEventListener("click", () => page.scene.fit());
byId("search").addEventListener("change", (event) => page.find(targetOf(event).value));
for (const button of all("[data-export]")) {
  button.addEventListener("click", () => {
    button.closest("details").open = false;
    const name = `graph-${prompt}-${page.view}`;
    if (button.dataset.export === "png") png(page.scene, name);
    else if (button.dataset.export === "svg")
      location.assign(page.url("picture", { ...page.cut, view: page.pictured() }));
    else if (button.dataset.export === "json")
      location.assign(page.url("export", { model: page.model(), node: page.cut.node, edge: page.cut.edge }));
    else
      navigator.clipboard.writeText(location.href).then(
        () => toast("Link copied"),
        () => toast("The address bar has the link."),
      );
  });
}
addEventListener("click", (event) => {
  for (const menu of all(".menu[open]")) if (!menu.contains(targetOf(event))) menu.open = false;
});

addEventListener("keydown", (event) => {
  if (
    typing(event) ||
    event.ctrlKey ||
    event.metaKey ||
    event.altKey ||
    event.defaultPrevented ||
    !page.graph ||
    targetOf(event).closest("aside, .graph-bar")
  )
    return;
  const middle = [page.scene.width / 2, page.scene.height / 2];
  const act = {
    m: () => page.setView(page.view === "merged" ? "base" : "merged"),
    x: () => page.setView("difference"),
    2: () => page.setView("both"),
    "+": () => page.scene.zoom(1.3, ...middle),
    "=": () => page.scene.zoom(1.3, ...middle),
    "-": () => page.scene.zoom(1 / 1.3, ...middle),
    0: () => page.scene.fit(),
    k: () => page.selected && page.pin(page.selected),
    Escape: () => page.select(null),
    ArrowLeft: () => page.step("ArrowLeft"),
    ArrowRight: () => page.step("ArrowRight"),
    ArrowUp: () => page.step("ArrowUp"),
    ArrowDown: () => page.step("ArrowDown"),
    o: () => page.setOnly(!page.only),
    t: () => byId("as-table").click(),
  }[event.key];
  if (act) {
    event.preventDefault();
    act();
  }
});
document.documentElement.addEventListener("renamed", () => page.loadPins());

Object.assign(window, { graphPage: page }); // for tests and the curious
page.loadPins();
