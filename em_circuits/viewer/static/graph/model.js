// What is drawn: the nodes of both models in one list, aligned by name, and each model's edges.
//
// A node: { name, kind, layer, position, feature, at: { base: {...} | null, merged: ... } } with
// activation, contrast, share per model; a feature that is in the other view only has what the
// server knows of it beyond the view (`beyond`): 0 where inactive, null where unknown.

export const MODELS = ["base", "merged"];

export function parse(name, layers, last) {
  const feature = /^(\d+)\/(\d+)\/(\d+)$/.exec(name);
  if (feature) return { kind: "feature", layer: +feature[1], position: +feature[2], feature: +feature[3] };
  const error = /^error:(\d+)\/(\d+)$/.exec(name);
  if (error) return { kind: "error", layer: +error[1], position: +error[2], feature: null };
  const token = /^token:(\d+)$/.exec(name);
  if (token) return { kind: "token", layer: -1, position: +token[1], feature: null };
  return { kind: "logit", layer: layers, position: last, feature: null, token: +name.split(":")[1] };
}

export class Graph {
  constructor(record) {
    this.text = record.text;
    this.views = record.models;
    this.present = MODELS.filter((m) => m in record.models);
    const first = record.models[this.present[0]];
    this.tokens = first.tokens;
    this.layers = Math.max(...this.present.map((m) => record.models[m].layers));
    this.nodes = [];
    this.index = new Map();
    this.edges = {};
    for (const model of this.present) this.#add(model, record.models[model]);
    for (const model of this.present) this.#beyond(model, record.models[model]);
    this.targets = new Map();
    for (const model of this.present) {
      for (const target of record.models[model].targets) {
        const entry = this.targets.get(target.token_id) ?? { ...target, p: {} };
        entry.p[model] = target.probability;
        this.targets.set(target.token_id, entry);
      }
    }
    for (const node of this.nodes) {
      if (node.kind === "logit") node.target = this.targets.get(node.token);
      if (node.kind === "token") node.text = this.tokens[node.position];
    }
    this.contrast = this.present.some((m) => record.models[m].contrast);
    this.#scale();
  }

  #node(name) {
    let i = this.index.get(name);
    if (i === undefined) {
      i = this.nodes.length;
      this.index.set(name, i);
      this.nodes.push({ i, name, ...parse(name, this.layers, this.tokens.length - 1), at: {} });
    }
    return i;
  }

  #add(model, view) {
    const { name, activation, contrast, share } = view.nodes;
    const where = name.map((each) => this.#node(each));
    name.forEach((_, k) => {
      this.nodes[where[k]].at[model] = { activation: activation[k], contrast: contrast?.[k] ?? null, share: share[k], shown: true };
    });
    const { source, target, weight } = view.edges;
    const n = weight.length;
    const edges = { n, source: new Int32Array(n), target: new Int32Array(n), weight: Float32Array.from(weight), strength: new Float32Array(n) };
    const labels = new Map(view.targets.map((t) => [t.token_id, t.label]));
    const sides = { evil: 0, safe: 0 };
    for (const label of labels.values()) if (label in sides) sides[label] += 1;
    for (let k = 0; k < n; k++) {
      edges.source[k] = where[source[k]];
      edges.target[k] = where[target[k]];
      edges.strength[k] = Math.abs(weight[k]) * pull(this.nodes[edges.target[k]], model, labels, sides, contrast !== null);
    }
    // The strongest first: the rest is drawn beneath it.
    edges.order = Uint32Array.from(edges.strength.keys()).sort((a, b) => edges.strength[b] - edges.strength[a]);
    this.edges[model] = edges;
  }

  #beyond(model, view) {
    for (const [name, [activation, contrast]] of Object.entries(view.beyond ?? {})) {
      const node = this.nodes[this.index.get(name)];
      if (node && !node.at[model]) node.at[model] = { activation, contrast, share: null, shown: false };
    }
  }

  #scale() {
    const sizes = { contrast: [], change: [] };
    for (const node of this.nodes) {
      for (const model of this.present) {
        const value = node.at[model]?.contrast;
        if (value && node.kind !== "logit") sizes.contrast.push(Math.abs(value));
      }
      const change = this.change(node);
      if (change) sizes.change.push(Math.abs(change));
    }
    const high = (values) => values.sort((a, b) => a - b)[Math.floor(values.length * 0.985)] || 1;
    this.largest = { contrast: high(sizes.contrast), change: high(sizes.change) };
  }

  shown(node, model) { return node.at[model]?.shown ?? false; }

  // Merged minus base; null where either is unknown.
  change(node) {
    const [a, b] = MODELS.map((m) => node.at[m]?.contrast);
    return a === null || a === undefined || b === null || b === undefined ? null : b - a;
  }

  // The value a node is coloured by, -1 to 1, in a view.
  tone(node, view) {
    if (node.kind === "logit") return { evil: 1, safe: -1 }[node.target?.label] ?? 0;
    const value = view === "difference" ? this.change(node) : node.at[view]?.contrast;
    if (!value) return 0;
    const largest = view === "difference" ? this.largest.change : this.largest.contrast;
    return Math.sign(value) * Math.min(1, Math.sqrt(Math.abs(value) / largest));
  }

  label(node) {
    if (node.kind === "feature") return `L${node.layer} · ${node.position} · ${node.feature}`;
    if (node.kind === "error") return `error L${node.layer} · ${node.position}`;
    return node.kind === "token" ? `token ${node.position}` : "logit";
  }
}

// How much of the contrast hangs on a unit of the target's input: an edge's weight times this is
// what it contributes. Without a contrast, edges are compared by weight alone.
function pull(target, model, labels, sides, hasContrast) {
  if (!hasContrast) return 1;
  if (target.kind === "logit") {
    const label = labels.get(target.token);
    return label in sides ? 1 / sides[label] : 0.02;
  }
  const at = target.at[model];
  return at?.activation ? Math.abs(at.contrast / at.activation) : 0.001;
}
