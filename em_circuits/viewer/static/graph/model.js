// What is drawn: the server's drawing as objects. Every number in it was computed there.
//
// A node: { i, name, kind, layer, position, feature, module, token, x, y, target, at: { base, merged } } with
// activation, value (of the score that colours) and share per model; 0 where a feature is inactive, null where
// unknown. Every score of a node is in views[view].scores[by][node.i].

import { number, percent, visible } from "../ask.js";

export const MODELS = ["base", "merged"];

// What a score is called; the graph's own says of which edges it is.
const TITLES = {
  total_effect: "total effect",
  signed_influence: "signed influence",
  direct: "direct effect",
  gradient: "gradient",
  measured: "measured",
  frozen: "frozen total effect",
};

export class Graph {
  constructor(record) {
    this.text = record.text;
    this.views = record.views;
    this.place = record.place;
    this.present = MODELS.filter((m) => m in record.views);
    this.tokens = record.tokens;
    this.layers = record.layers;
    this.contrast = record.contrast;
    this.hidden = record.hidden; // why judges' labels are: "in hand", "waiting" or null
    this.target = record.target; // { name, unit } of graphs that were built for a target of their own
    this.targets = new Map(record.targets.map((target) => [target.token_id, target]));
    this.nodes = record.nodes.name.map((name, i) => this.#node(record, name, i));
    this.index = new Map(this.nodes.map((node) => [node.name, node.i]));
    this.edges = Object.fromEntries(Object.entries(record.views).map(([view, { edges }]) => [view, typed(edges)]));
  }

  #node(record, name, i) {
    const { kind, layer, position, feature, module, token } = record.nodes;
    const node = {
      i,
      name,
      kind: kind[i],
      layer: layer[i],
      position: position[i],
      feature: feature[i],
      module: module[i],
      token: token[i],
      text: kind[i] === "token" ? this.tokens[position[i]] : undefined,
      target: this.targets.get(token[i]),
      x: record.place.x[i],
      y: 0,
      room: record.place.room,
      at: {},
    };
    for (const model of this.present) {
      const { shown, activation, value, share } = record.views[model];
      const known = shown[i] || activation[i] !== null;
      const own = { activation: activation[i], value: value[i], share: share[i], shown: shown[i] };
      node.at[model] = known ? own : null;
    }
    return node;
  }

  // What the contrast is called.
  get contrastName() {
    return this.target ? visible(this.target.name) : "evil − safe";
  }

  get unit() {
    return this.target?.unit ?? "logits";
  }

  // A logit's probability in a model, or the value of a term of the graphs' own target.
  reading(node, model) {
    const { p = {}, value = {} } = node.target ?? {};
    if (this.target) return model in value ? `${number(value[model], 2)} ${this.unit}` : "–";
    return model in p ? percent(p[model]) : "–";
  }

  shown(node, model) {
    return node.at[model]?.shown ?? false;
  }

  // Merged minus base; null where either is unknown.
  change(node) {
    return this.views.difference?.value[node.i] ?? null;
  }

  // The scores that colour a view, the graph's own first.
  scores(view) {
    return Object.keys(this.views[view]?.scores ?? {});
  }

  score(node, view, by) {
    return this.views[view]?.scores[by]?.[node.i] ?? null;
  }

  scoreName(by, view) {
    const own = this.views[view] ?? {};
    const kind = this.views[view === "difference" ? "merged" : view]?.edge_kind;
    return by === (own.method ?? this.views[this.present.at(-1)].method) && kind
      ? `${kind} ${TITLES[by] ?? by}`
      : (TITLES[by] ?? by);
  }

  // Whether what colours a node has another sign than what was measured.
  conflicts(node, view) {
    const [value, real] = [this.views[view]?.value[node.i], this.score(node, view, "measured")];
    return Boolean(value && real && Math.sign(value) !== Math.sign(real));
  }

  // The feature of a node wherever it fires, as labels name it.
  featureOf(name) {
    const found = /^(\w+:)?(\d+)\/\d+\/(\d+)$/.exec(name);
    return found && `${found[1] ?? ""}${found[2]}/${found[3]}`;
  }

  // The value a node is coloured by, -1 to 1, in a view.
  tone(node, view) {
    return this.views[view].tone[node.i];
  }

  label(node) {
    const place = `L${node.layer} · ${node.position} · ${node.feature}`;
    if (node.kind === "feature") return node.module ? `${node.module} ${place}` : place;
    if (node.kind === "error") return `error L${node.layer} · ${node.position}`;
    return node.kind === "token" ? `token ${node.position}` : "logit";
  }
}

// The strongest edges come first: the rest is drawn beneath them.
function typed({ source, target, weight }) {
  return {
    n: weight.length,
    source: Int32Array.from(source),
    target: Int32Array.from(target),
    weight: Float32Array.from(weight),
  };
}
