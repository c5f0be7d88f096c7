// The view as a picture: PNG from the canvas as it is, SVG from the same geometry.
import { visible } from "../ask.js";

export function save(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export function png(scene, name) {
  const copy = document.createElement("canvas");
  copy.width = scene.canvas.width;
  copy.height = scene.canvas.height;
  const context = copy.getContext("2d");
  context.fillStyle = scene.colours.gutter;
  context.fillRect(0, 0, copy.width, copy.height);
  context.drawImage(scene.canvas, 0, 0);
  copy.toBlob((blob) => save(`${name}.png`, blob));
}

const escape = (text) => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
const round = (v) => Math.round(v * 10) / 10;

export function svg(scene, name) {
  const { graph, place, colours } = scene, margin = 60, parts = [];
  const view = scene.panes[0].view, { edges } = scene.panes[0];
  for (let k = edges.n - 1; k >= 0; k--) {
    const e = edges.order[k], s = graph.nodes[edges.source[e]], t = graph.nodes[edges.target[e]];
    const level = (1 - k / edges.n) ** 3, mid = round((s.y + t.y) / 2);
    parts.push(`<path d="M${round(s.x)} ${round(s.y)}C${round(s.x)} ${mid} ${round(t.x)} ${mid} ${round(t.x)} ${round(t.y)}" stroke="${edges.weight[e] >= 0 ? colours.up : colours.down}" stroke-opacity="${(0.05 + 0.6 * level).toFixed(2)}" stroke-width="${(0.5 + level).toFixed(2)}"/>`);
  }
  const marks = [];
  for (const node of graph.nodes) {
    if (!scene.isShown(node, view)) continue;
    const tone = graph.tone(node, view), r = round(3 + 3.4 * Math.abs(tone)), fill = colours.tone(tone), x = round(node.x), y = round(node.y);
    const title = `<title>${escape(graph.label(node))}</title>`;
    if (node.kind === "logit") marks.push(`<text x="${x}" y="${y}" text-anchor="middle" font-size="11">${escape(visible(node.target?.text ?? ""))} ${(100 * (node.target?.p[view] ?? 0)).toFixed(1)}%</text>`);
    else if (node.kind === "feature") marks.push(`<circle cx="${x}" cy="${y}" r="${r}" fill="${fill}" stroke="${colours.rim}" stroke-width=".8">${title}</circle>`);
    else {
      const turn = node.kind === "error" ? ` transform="rotate(45 ${x} ${y})"` : "";
      marks.push(`<rect x="${x - r}" y="${y - r}" width="${2 * r}" height="${2 * r}"${turn} fill="${fill}" stroke="${colours.rim}" stroke-width=".8">${title}</rect>`);
    }
  }
  place.columns.forEach((column, i) => marks.push(`<text x="${round(column.x)}" y="24" text-anchor="end" font-size="10" transform="rotate(-50 ${round(column.x)} 24)">${escape(visible(graph.tokens[i]))}</text>`));
  const [w, h] = [place.width + 2 * margin, place.height + 3 * margin];
  const text = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="${-margin} ${round(-place.height - margin)} ${round(w)} ${round(h)}" font-family="monospace"><rect x="${-margin}" y="${round(-place.height - margin)}" width="100%" height="100%" fill="${colours.gutter}"/><g fill="none">${parts.join("")}</g><g fill="${colours.ink}">${marks.join("")}</g></svg>`;
  save(`${name}.svg`, new Blob([text], { type: "image/svg+xml" }));
}
