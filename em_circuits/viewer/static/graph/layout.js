// Fits a drawing's bands into the window: nodes keep their columns, bands move apart to fill the height.

const BAND_GAP = 34;
const WIDEST_GAP = 420;
const STEP = 15; // between the rows of a band, as the server places them

export function layOut(graph, aspect, places = {}) {
  const { width, columns, heights, band, rise } = graph.place;
  const natural = heights.reduce((a, b) => a + b, 0) + BAND_GAP * (heights.length - 1);
  const spare = (width / aspect - natural) / (heights.length - 1);
  const gap = BAND_GAP + Math.max(0, Math.min(WIDEST_GAP, spare));
  const base = [];
  heights.reduce((y, h) => {
    base.push(y);
    return y - h - gap;
  }, 0);
  for (const node of graph.nodes) {
    [node.x, node.y] = places[node.name] ?? [graph.place.x[node.i], base[band[node.i]] - rise[node.i]];
  }
  return {
    width,
    height: -base.at(-1),
    columns,
    bands: base.map((y, b) => ({
      y: y - heights[b] / 2 + STEP / 2,
      top: y - heights[b] + STEP / 2,
      bottom: y + STEP / 2,
    })),
  };
}
