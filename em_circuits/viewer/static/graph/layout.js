// Where does a node stand? Tokens from left to right, layers from bottom to top; the nodes of one
// layer and position form a small block. Both models' nodes have places, so toggling moves nothing.

const STEP = 15;          // between nodes of a block
const COLUMN_GAP = 16;
const LEAST_COLUMN = 26;
const BAND_GAP = 34;

export function layOut(graph, aspect) {
  const bands = graph.layers + 2;        // tokens, layers, logits
  const columns = graph.tokens.length;
  const band = (node) => (node.kind === "token" ? 0 : node.kind === "logit" ? bands - 1 : node.layer + 1);
  const cells = new Map();
  for (const node of graph.nodes) {
    if (node.kind === "logit") continue;
    const key = band(node) * columns + node.position;
    if (!cells.has(key)) cells.set(key, []);
    cells.get(key).push(node);
  }
  const most = new Array(columns).fill(1);
  for (const [key, nodes] of cells) most[key % columns] = Math.max(most[key % columns], nodes.length);
  const across = most.map((n) => Math.max(1, Math.ceil(Math.sqrt(n * 1.7))));
  const width = across.map((k) => Math.max(LEAST_COLUMN, k * STEP + COLUMN_GAP));
  const rows = new Array(bands).fill(1);
  for (const [key, nodes] of cells) {
    const b = Math.floor(key / columns);
    rows[b] = Math.max(rows[b], Math.ceil(nodes.length / across[key % columns]));
  }
  const total = width.reduce((a, b) => a + b, 0);
  const heights = rows.map((r) => r * STEP);
  const natural = heights.reduce((a, b) => a + b, 0) + BAND_GAP * (bands - 1);
  const gap = BAND_GAP + Math.max(0, Math.min(170, (total / aspect - natural) / (bands - 1)));
  const left = [];
  width.reduce((x, w, c) => { left[c] = x; return x + w; }, 0);
  const base = [];
  heights.reduce((y, h, b) => { base[b] = y; return y - h - gap; }, 0);
  for (const [key, nodes] of cells) {
    const b = Math.floor(key / columns), c = key % columns, k = across[c];
    nodes.sort((p, q) => (p.kind === q.kind ? p.feature - q.feature : p.kind === "error" ? 1 : -1));
    nodes.forEach((node, n) => {
      const inRow = Math.min(k, nodes.length - Math.floor(n / k) * k);
      node.x = left[c] + width[c] / 2 + ((n % k) - (inRow - 1) / 2) * STEP;
      node.y = base[b] - Math.floor(n / k) * STEP;
    });
  }
  const height = -base[bands - 1];
  placeLogits(graph.nodes.filter((n) => n.kind === "logit"), total, base[bands - 1]);
  return {
    width: total,
    height,
    columns: left.map((x, c) => ({ x: x + width[c] / 2, width: width[c] })),
    bands: base.map((y, b) => ({ y: y - heights[b] / 2 + STEP / 2, top: y - heights[b] + STEP / 2, bottom: y + STEP / 2 })),
  };
}

// Evil from the right end, then unlabelled, then safe: what pulls apart stands apart.
function placeLogits(logits, total, y) {
  const side = { safe: 0, evil: 2 };
  const p = (n) => Math.max(...Object.values(n.target?.p ?? { _: 0 }));
  logits.sort((a, b) => (side[a.target?.label] ?? 1) - (side[b.target?.label] ?? 1) || p(a) - p(b));
  const step = total / Math.max(logits.length, 1);
  logits.forEach((node, i) => { node.x = step * (i + 0.5); node.y = y; node.room = step; });
}
