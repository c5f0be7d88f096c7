// Draws a graph on a canvas. Edges are many, so they are drawn in slices onto a picture of their
// own; while the view moves that picture is moved along, and drawn anew when the view rests.
import { signed, visible } from "../ask.js";

const SLICE_MS = 9;
const REST_MS = 110;
const LEVELS = 10;
const WALL = 1200; // edges that are still a picture; of more the strongest are drawn, more as one comes nearer
const BACKGROUND = 600;
const GUTTER = { left: 54, bottom: 74, top: 64, right: 14 };
const SLANTED = { below: 46, room: 44, right: 34 }; // a logit's box too narrow for its token has it above, slanted

export class Scene {
  constructor(canvas, onPicture, onResize) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.onPicture = onPicture;
    this.panes = [];
    this.transform = { k: 1, x: 0, y: 0 };
    this.selected = null;
    this.hover = null;
    this.path = null;
    this.pinned = new Set();
    this.groups = [];
    /** @type {Map<string, any>} a folded group's centre stands for its members */
    this.folded = new Map();
    this.frame = 0;
    this.stale = false;
    this.drawn = "auto"; // which edges: "all", or "chosen" for those of what is selected or pinned
    this.fitted = 1;
    /** @type {(node: any) => string} */
    this.labelOf = () => "";
    new ResizeObserver(() => {
      this.resize();
      onResize();
    }).observe(canvas.parentElement);
    document.documentElement.addEventListener("themechange", () => {
      this.colours = palette();
      this.restart();
    });
    this.colours = palette();
  }

  show(graph, place, panes) {
    this.graph = graph;
    this.place = place;
    this.panes = panes.map((view) => ({ view, edges: graph.edges[view], layer: null }));
    this.#around();
    this.restart();
  }

  // Node -> its edges, the strongest first, for highlights: of all nodes one after another in one array.
  #around() {
    for (const pane of this.panes) {
      const { n, source, target } = pane.edges,
        start = new Int32Array(this.graph.nodes.length + 1);
      for (const ends of [source, target]) for (let e = 0; e < n; e++) start[ends[e] + 1]++;
      for (let node = 1; node < start.length; node++) start[node] += start[node - 1];
      const next = start.slice(),
        edges = new Int32Array(2 * n);
      for (let e = 0; e < n; e++) {
        edges[next[source[e]]++] = e;
        edges[next[target[e]]++] = e;
      }
      pane.around = (node) => edges.subarray(start[node], start[node + 1]);
    }
  }

  resize() {
    const box = this.canvas.parentElement.getBoundingClientRect();
    this.ratio = Math.min(devicePixelRatio || 1, 2);
    this.width = box.width;
    this.height = box.height;
    this.canvas.width = Math.round(box.width * this.ratio);
    this.canvas.height = Math.round(box.height * this.ratio);
  }

  get paneWidth() {
    return this.width / Math.max(this.panes.length, 1);
  }

  fit() {
    if (!this.place) return;
    const plain = this.#fitted(GUTTER.top, GUTTER.right),
      slanted = plain.k * this.graph.place.room - 4 < SLANTED.below;
    this.transform = slanted ? this.#fitted(GUTTER.top + SLANTED.room + this.#covered(), SLANTED.right) : plain;
    this.fitted = this.transform.k;
    this.restart();
  }

  // The transform that fits the drawing into what margins at the top and on the right leave.
  #fitted(top, right) {
    const w = this.paneWidth - GUTTER.left - right,
      h = this.height - top - GUTTER.bottom,
      k = Math.min(w / (this.place.width + 10), h / (this.place.height + 24));
    return { k, x: GUTTER.left + (w - k * this.place.width) / 2, y: top + (h + k * this.place.height) / 2 };
  }

  // A place of the window in the drawing's units.
  world(x, y) {
    const t = this.transform;
    return [((x % this.paneWidth) - t.x) / t.k, (y - t.y) / t.k];
  }

  // How many of a pane's edges, the strongest first, are drawn for themselves.
  limit({ edges }) {
    if (this.drawn === "chosen") return 0;
    if (this.drawn === "all" || this.panes.every((pane) => pane.edges.n <= WALL)) return edges.n;
    return Math.min(edges.n, Math.round(BACKGROUND * Math.max(1, this.transform.k / this.fitted) ** 2));
  }

  zoom(factor, x, y) {
    const t = this.transform,
      k = Math.min(12, Math.max(0.04, t.k * factor)),
      f = k / t.k;
    const px = x % this.paneWidth;
    this.transform = { k, x: px - (px - t.x) * f, y: y - (y - t.y) * f };
    this.moved();
  }

  pan(dx, dy) {
    this.transform = { ...this.transform, x: this.transform.x + dx, y: this.transform.y + dy };
    this.moved();
  }

  // Puts a node into sight if it is not.
  reveal(node) {
    const t = this.transform,
      x = t.k * node.x + t.x,
      y = t.k * node.y + t.y;
    if (x < GUTTER.left || x > this.paneWidth - 20 || y < 20 || y > this.height - GUTTER.bottom) {
      this.pan(this.paneWidth / 2 - x, this.height / 2 - y);
    }
  }

  moved() {
    this.job = null; // what was being drawn is drawn anew at rest, and takes no time of a frame till then
    this.stale = false;
    this.request();
    clearTimeout(this.resting);
    this.resting = setTimeout(() => this.restart(), REST_MS);
  }

  restart() {
    this.job = null;
    this.stale = true; // begun at the next frame, once however often it was asked for
    this.request();
  }

  request() {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.#draw();
    });
  }

  at(x, y) {
    const pane = this.panes[Math.floor(x / this.paneWidth)];
    if (!pane) return null;
    const t = this.transform,
      [wx, wy] = this.world(x, y);
    const reach = Math.max(8, 9 / t.k);
    let best = null,
      near = reach * reach;
    for (const node of this.graph.nodes) {
      if (!this.isShown(node, pane.view)) continue;
      const at = this.#stand(node);
      const dx = Math.max(0, Math.abs(at.x - wx) - (node.kind === "logit" ? Math.min(node.room, 84 / t.k) / 2 - 6 : 0)),
        dy = at.y - wy;
      const d = dx * dx + dy * dy;
      if (d < near) {
        near = d;
        best = node;
      }
    }
    return best;
  }

  isShown(node, view) {
    return view === "difference" ? true : this.graph.shown(node, view);
  }

  #start(pane) {
    const back = document.createElement("canvas");
    back.width = Math.max(1, Math.round(this.paneWidth * this.ratio));
    back.height = this.canvas.height;
    const context = back.getContext("2d", { willReadFrequently: true });
    const { k, x, y } = this.transform;
    context.setTransform(this.ratio * k, 0, 0, this.ratio * k, this.ratio * x, this.ratio * y);
    context.globalCompositeOperation = "destination-over";
    context.lineCap = "butt";
    return { pane, back, context, at: 0, transform: this.transform, first: !pane.layer };
  }

  #work() {
    const until = performance.now() + SLICE_MS;
    let busy = false;
    if (this.stale) this.job = this.panes.map((pane) => this.#start(pane));
    this.stale = false;
    for (const job of this.job ?? []) {
      const { edges } = job.pane,
        n = this.limit(job.pane);
      while (job.at < n && performance.now() < until) {
        const stop = Math.min(n, job.at + 100);
        for (; job.at < stop; job.at++) this.#edge(job.context, edges, job.at, job.at / n, job.transform.k);
        // Strokes are only noted down until somebody looks; all at once they are a stall.
        job.context.getImageData(0, 0, 1, 1);
      }
      if (job.at < n) busy = true;
      if (job.at >= n || job.first) job.pane.layer = { picture: job.back, transform: job.transform };
    }
    if (!busy && this.job) {
      this.job = null;
      this.onPicture?.();
    }
    return busy;
  }

  // rank 0 is the strongest edge, 1 the weakest.
  #edge(context, edges, e, rank, k, style = null) {
    const nodes = this.graph.nodes,
      s = this.#stand(nodes[edges.source[e]]),
      t = this.#stand(nodes[edges.target[e]]);
    if (s === t) return;
    const level = Math.min(LEVELS - 1, Math.floor((1 - rank) ** 3 * LEVELS));
    const up = edges.weight[e] >= 0;
    context.strokeStyle = style ? style[up ? 0 : 1] : (up ? this.colours.upEdges : this.colours.downEdges)[level];
    context.lineWidth = (style ? 1.3 + 2 * (1 - rank) : 0.5 + 0.09 * level) / k;
    const mid = (s.y + t.y) / 2;
    context.beginPath();
    context.moveTo(s.x, s.y);
    if (k < 0.35) context.lineTo(t.x, t.y);
    else context.bezierCurveTo(s.x, mid, t.x, mid, t.x, t.y);
    context.stroke();
  }

  // Where a node stands: a folded group stands for its members.
  #stand(node) {
    return this.folded.get(node.name) ?? node;
  }

  #draw() {
    if (!this.graph || !this.width) return;
    const started = performance.now();
    const busy = this.#work();
    const context = this.context,
      t = this.transform;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.panes.forEach((pane, p) => {
      context.save();
      context.setTransform(this.ratio, 0, 0, this.ratio, this.ratio * p * this.paneWidth, 0);
      context.beginPath();
      context.rect(0, 0, this.paneWidth, this.height);
      context.clip();
      this.#bands(context);
      const dim = this.selected || this.path;
      if (pane.layer) {
        const f = t.k / pane.layer.transform.k;
        context.globalAlpha = dim ? 0.22 : 1;
        context.drawImage(
          pane.layer.picture,
          t.x - f * pane.layer.transform.x,
          t.y - f * pane.layer.transform.y,
          (f * pane.layer.picture.width) / this.ratio,
          (f * pane.layer.picture.height) / this.ratio,
        );
        context.globalAlpha = 1;
      }
      context.save();
      context.translate(t.x, t.y);
      context.scale(t.k, t.k);
      this.#highlights(context, pane);
      this.#nodes(context, pane.view);
      context.restore();
      this.#logits(context, pane.view);
      this.#axes(context, pane.view, p);
      context.restore();
    });
    this.lastFrame = performance.now() - started;
    if (busy) this.request();
  }

  #bands(context) {
    const t = this.transform,
      { bands } = this.place;
    context.fillStyle = this.colours.band;
    for (let b = 1; b < bands.length - 1; b++) {
      const top = t.k * (bands[b].top - 9) + t.y,
        bottom = t.k * (bands[b].bottom + 9) + t.y;
      context.fillRect(0, top, this.paneWidth, bottom - top);
    }
  }

  #highlights(context, pane) {
    const focus = this.hover && !this.path ? this.hover : this.selected;
    const style = [this.colours.up, this.colours.down];
    if (this.path) {
      context.lineWidth = 3 / this.transform.k;
      for (let n = 1; n < this.path.length; n++) {
        const [a, b] = [this.path[n - 1], this.path[n]].map((name) => this.graph.nodes[this.graph.index.get(name)]);
        if (!a || !b) continue;
        context.strokeStyle = this.colours.accent;
        context.beginPath();
        context.moveTo(a.x, a.y);
        const mid = (a.y + b.y) / 2;
        context.bezierCurveTo(a.x, mid, b.x, mid, b.x, b.y);
        context.stroke();
      }
      return;
    }
    if (!focus) {
      const each = Math.ceil(60 / Math.sqrt(this.pinned.size || 1)); // of many pins the strongest few
      for (const name of this.pinned) this.#edgesOf(context, pane, this.graph.index.get(name), each, style);
      return;
    }
    this.#edgesOf(context, pane, focus.i, 220, style);
  }

  // The strongest edges of one node.
  #edgesOf(context, pane, node, most, style) {
    if (node === undefined) return;
    const around = pane.around(node);
    const drawn = Array.from(around.subarray(0, most), (e, rank) => [e, rank]);
    for (const [e, rank] of drawn.reverse()) {
      context.globalAlpha = 0.25 + 0.7 * (1 - rank / drawn.length) ** 2;
      this.#edge(context, pane.edges, e, rank / around.length, this.transform.k, style);
    }
    context.globalAlpha = 1;
  }

  #nodes(context, view) {
    const k = this.transform.k,
      near = this.#near(),
      size = Math.max(1, 0.75 / k);
    const buckets = new Map();
    for (const node of this.graph.nodes) {
      if (node.kind === "logit" || !this.isShown(node, view) || this.folded.has(node.name)) continue;
      const tone = this.graph.tone(node, view);
      const faint = near && !near.has(node.i) ? 1 : 0;
      const key = `${Math.round(tone * 8)}:${faint}:${view === "difference" ? presence(this.graph, node) : 3}`;
      if (!buckets.has(key)) buckets.set(key, []);
      buckets.get(key).push([node, tone]);
    }
    for (const [key, list] of buckets) {
      const [tone, faint, where] = key.split(":").map(Number);
      context.globalAlpha = faint ? 0.3 : 1;
      context.fillStyle = this.colours.tone(tone / 8);
      context.strokeStyle = where === 3 ? this.colours.rim : this.colours.ink;
      context.lineWidth = (where === 3 ? 0.8 : 1.7) / k;
      context.setLineDash(where === 1 ? [2.5 / k, 2 / k] : []);
      context.beginPath();
      for (const [node, value] of list) shape(context, node, (3.8 + 3.8 * Math.abs(value)) * size);
      if (where !== 1) context.fill();
      else {
        context.globalAlpha *= 0.35;
        context.fill();
        context.globalAlpha = faint ? 0.3 : 1;
      }
      context.stroke();
    }
    context.globalAlpha = 1;
    context.setLineDash([]);
    this.#marks(context, view, size);
  }

  #marks(context, view, size) {
    const k = this.transform.k;
    context.lineWidth = 1.6 / k;
    context.strokeStyle = this.colours.accent;
    for (const name of this.pinned) {
      const node = this.graph.nodes[this.graph.index.get(name)];
      if (!node || node.kind === "logit" || !this.isShown(node, view)) continue;
      context.beginPath();
      context.arc(node.x, node.y, 8.6 * size, 0, 7);
      context.stroke();
    }
    for (const group of this.groups) this.#group(context, group);
    this.#labels(context, view, size);
    for (const [node, width] of [
      [this.hover, 1.6],
      [this.selected, 2.6],
    ]) {
      if (!node || node.kind === "logit") continue;
      context.strokeStyle = this.colours.ink;
      context.lineWidth = width / k;
      context.beginPath();
      context.arc(node.x, node.y, 9.5 * size, 0, 7);
      context.stroke();
    }
  }

  // Pixels at the top that the legend covers where the window is narrow.
  #covered() {
    const legend = this.canvas.parentElement.querySelector(".legend");
    return legend.offsetWidth > 0.9 * this.width ? legend.offsetHeight : 0;
  }

  // What a node is called, where there is room for it: right of it, left, or lines above and below.
  #labels(context, view, size) {
    const k = this.transform.k,
      high = 14 / k,
      left = (GUTTER.left - this.transform.x) / k,
      right = (this.paneWidth - this.transform.x) / k,
      off = 9 * size;
    context.font = `${11.5 / k}px system-ui, sans-serif`;
    context.textAlign = "left";
    context.textBaseline = "middle";
    context.lineWidth = 3 / k;
    context.strokeStyle = this.colours.gutter;
    context.fillStyle = this.colours.ink;
    const named = this.graph.nodes.filter(
      (node) =>
        node.kind === "feature" && this.isShown(node, view) && !this.folded.has(node.name) && this.labelOf(node),
    );
    const taken = named.map((node) => ({ x: node.x - 0.7 * off, y: node.y, w: 1.4 * off }));
    for (const node of named) {
      const text = this.labelOf(node),
        label = visible(text.length > 28 ? `${text.slice(0, 27)}…` : text, false),
        w = context.measureText(label).width;
      const beside = [
        [node.x + off, node.y],
        [node.x - off - w, node.y],
      ];
      const lines = [-1, 1, -2, 2, -3, 3].flatMap((line) => {
        const y = node.y + Math.sign(line) * (off + (Math.abs(line) - 0.5) * high);
        return [node.x - w / 2, node.x, node.x - w].map((x) => [x, y]);
      });
      const free = [...beside, ...lines].find(
        ([x, y]) =>
          x > left && x + w < right && !taken.some((b) => x < b.x + b.w && b.x < x + w && Math.abs(y - b.y) < high),
      );
      const [x, y] = free ?? [node.x + off, node.y];
      taken.push({ x, y, w });
      context.strokeText(label, x, y);
      context.fillText(label, x, y);
    }
  }

  #group(context, group) {
    const members = group.members.map((name) => this.graph.nodes[this.graph.index.get(name)]).filter(Boolean);
    if (!members.length) return;
    const k = this.transform.k,
      at = group.at;
    context.font = `600 ${12 / k}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    const text = visible(group.name, false),
      w = context.measureText(text).width + 14 / k,
      h = 19 / k;
    if (!group.folded) {
      context.strokeStyle = this.colours.accent;
      context.globalAlpha = 0.45;
      context.lineWidth = 1 / k;
      context.beginPath();
      for (const node of members) {
        context.moveTo(at.x, at.y);
        context.lineTo(node.x, node.y);
      }
      context.stroke();
      context.globalAlpha = 1;
    }
    context.fillStyle = this.colours.accent;
    context.beginPath();
    context.roundRect(at.x - w / 2, at.y - h / 2, w, h, 5 / k);
    context.fill();
    context.fillStyle = this.colours.accentInk;
    context.fillText(text, at.x, at.y);
  }

  // Nodes that touch what is pointed at, or lie on the path; null where nothing is.
  #near() {
    if (this.path) return new Set(this.path.map((name) => this.graph.index.get(name)));
    if (!this.selected) return null;
    const found = new Set([this.selected.i]);
    for (const pane of this.panes) {
      for (const e of pane.around(this.selected.i)) {
        found.add(pane.edges.source[e]);
        found.add(pane.edges.target[e]);
      }
    }
    return found;
  }

  #logits(context, view) {
    const t = this.transform;
    const mono = "11.5px ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace";
    const shown = this.graph.nodes.filter((node) => node.kind === "logit" && this.isShown(node, view));
    const wide = (node) => Math.max(10, Math.min(84, t.k * node.room - 4));
    const text = (node) => visible(node.target?.text ?? "").replace(/^␣/, "");
    context.font = mono;
    const slanted = shown.some((n) => wide(n) < SLANTED.below && context.measureText(text(n)).width > wide(n) - 6);
    context.textAlign = "center";
    for (const node of shown) {
      const x = t.k * node.x + t.x,
        y = t.k * node.y + t.y,
        w = wide(node);
      const tone = this.graph.tone(node, view),
        marked = node === this.selected || node === this.hover || this.pinned.has(node.name);
      context.fillStyle = this.colours.surface;
      context.strokeStyle = marked ? this.colours.ink : this.colours.tone(tone);
      context.lineWidth = marked ? 2.4 : 1.4;
      context.beginPath();
      context.roundRect(x - w / 2, y - 19, w, 34, 6);
      context.fill();
      context.stroke();
      context.fillStyle = this.colours.ink;
      context.font = mono;
      if (slanted) {
        context.save();
        context.translate(x, y - 24);
        context.rotate(-Math.PI / 3.6);
        context.textAlign = "left";
        context.fillText(cut(context, text(node), 62), 0, 0);
        context.restore();
      } else context.fillText(cut(context, text(node), w - 6), x, y - 8);
      const mark = { evil: "▲", safe: "●", unsure: "?" }[node.target?.label] ?? "";
      const p =
        view === "difference"
          ? change(node)
          : this.graph.target
            ? this.graph.reading(node, view)
            : `${(100 * (node.target?.p[view] ?? 0)).toFixed(node.target?.p[view] < 0.095 ? 1 : 0)}%`;
      context.fillStyle = tone ? this.colours.tone(tone) : this.colours.muted;
      context.font = "10.5px system-ui, sans-serif";
      context.save();
      context.translate(x, slanted ? y - 2 : y + 7);
      if (w < 28) context.rotate(-Math.PI / 2); // upright it would be wider than its box
      context.fillText(`${w > 44 ? `${mark} ` : ""}${p}`, 0, 0);
      context.restore();
    }
  }

  #axes(context, view, pane) {
    const t = this.transform,
      { columns, bands } = this.place,
      c = this.colours;
    context.fillStyle = c.gutter;
    context.fillRect(0, this.height - GUTTER.bottom + 8, this.paneWidth, GUTTER.bottom);
    context.fillRect(0, 0, GUTTER.left - 8, this.height);
    context.font = "11px system-ui, sans-serif";
    context.textAlign = "right";
    context.textBaseline = "middle";
    context.fillStyle = c.muted;
    bands.forEach((band, b) => {
      const y = t.k * band.y + t.y;
      if (y < 10 || y > this.height - GUTTER.bottom) return;
      const top = this.graph.target ? "target" : "logits";
      context.fillText(b === 0 ? "tokens" : b === bands.length - 1 ? top : `L${b - 1}`, GUTTER.left - 10, y);
    });
    context.font = "11.5px ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace";
    const gaps = columns.slice(1).map((column, i) => t.k * (column.x - columns[i].x));
    const steep = Math.min(...gaps) < 17; // slanted lines of text would touch
    let last = -Infinity;
    columns.forEach((column, i) => {
      const x = t.k * column.x + t.x;
      if (x < GUTTER.left - 6 || x > this.paneWidth || x - last < 11) return;
      last = x;
      context.save();
      context.translate(x + (steep ? 0 : 3), this.height - GUTTER.bottom + 18);
      context.rotate(-Math.PI / (steep ? 2 : 3.6));
      context.textAlign = "right";
      context.fillStyle = this.selected?.position === i && this.selected.kind !== "logit" ? c.ink : c.muted;
      context.fillText(cut(context, visible(this.graph.tokens[i]), 62), 0, 0);
      context.restore();
    });
    if (this.panes.length > 1) {
      context.font = "600 13px system-ui, sans-serif";
      context.textAlign = "left";
      context.fillStyle = c.ink;
      context.fillText(view[0].toUpperCase() + view.slice(1), GUTTER.left, Math.max(50, this.#covered() + 20));
      if (pane) {
        context.fillStyle = c.line;
        context.fillRect(0, 0, 1, this.height);
      }
    }
  }
}

function presence(graph, node) {
  return (graph.shown(node, "base") ? 1 : 0) | (graph.shown(node, "merged") ? 2 : 0);
}

function change(node) {
  const { p = {}, value = {} } = node.target ?? {};
  if ("merged" in value) return signed(value.merged - (value.base ?? 0), 2);
  const d = 100 * ((p.merged ?? 0) - (p.base ?? 0));
  const text = Math.abs(d).toFixed(Math.abs(d) < 9.5 ? 1 : 0);
  return `${text === "0.0" ? "" : d > 0 ? "+" : "−"}${text}`;
}

export function shape(context, node, r) {
  if (node.module) {
    context.moveTo(node.x, node.y - 1.2 * r);
    context.lineTo(node.x + 1.1 * r, node.y + 0.8 * r);
    context.lineTo(node.x - 1.1 * r, node.y + 0.8 * r);
    context.closePath();
  } else if (node.kind === "feature") {
    context.moveTo(node.x + r, node.y);
    context.arc(node.x, node.y, r, 0, 7);
  } else if (node.kind === "token") context.rect(node.x - r, node.y - r, 2 * r, 2 * r);
  else {
    context.moveTo(node.x, node.y - 1.2 * r);
    context.lineTo(node.x + 1.2 * r, node.y);
    context.lineTo(node.x, node.y + 1.2 * r);
    context.lineTo(node.x - 1.2 * r, node.y);
    context.closePath();
  }
}

function cut(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let n = text.length;
  while (n > 1 && context.measureText(`${text.slice(0, n)}…`).width > width) n--;
  return `${text.slice(0, n)}…`;
}

function palette() {
  const css = getComputedStyle(document.documentElement),
    get = (name) => css.getPropertyValue(name).trim();
  const up = rgb(get("--up")),
    down = rgb(get("--down")),
    mid = rgb(get("--neutral-soft"));
  const mix = (a, b, f) => `rgb(${a.map((v, i) => Math.round(v + (b[i] - v) * f)).join(" ")})`;
  const ramp = (c) =>
    Array.from(
      { length: LEVELS },
      (_, l) => `rgb(${c.join(" ")} / ${(0.035 + 0.4 * (l / (LEVELS - 1)) ** 2).toFixed(3)})`,
    );
  return {
    up: get("--up"),
    down: get("--down"),
    ink: get("--ink"),
    muted: get("--muted"),
    line: get("--line"),
    surface: get("--surface"),
    accent: get("--accent"),
    accentInk: get("--accent-ink"),
    gutter: get("--ground"),
    rim: get("--line-strong"),
    band: document.documentElement.dataset.theme === "dark" ? "rgb(255 255 255 / 2.2%)" : "rgb(0 0 0 / 2.2%)",
    upEdges: ramp(up),
    downEdges: ramp(down),
    tone: (v) => (v >= 0 ? mix(mid, up, v) : mix(mid, down, -v)),
  };
}

function rgb(hex) {
  const full = hex.length === 4 ? hex.replace(/[0-9a-f]/gi, "$&$&") : hex;
  return [1, 3, 5].map((i) => parseInt(full.slice(i, i + 2), 16));
}
