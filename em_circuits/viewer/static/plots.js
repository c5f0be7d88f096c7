// Plots by plotly.js in the page's own colours: SVG traces only, so that nothing needs eval.

export function theme() {
  const css = getComputedStyle(document.documentElement),
    get = (name) => css.getPropertyValue(name).trim();
  return {
    ink: get("--ink"),
    muted: get("--muted"),
    line: get("--line"),
    up: get("--up"),
    down: get("--down"),
    neutral: get("--neutral"),
    accent: get("--accent"),
    font: get("--sans"),
  };
}

export function draw(node, make) {
  const paint = () => {
    const c = theme(),
      { traces, layout } = make(c);
    const axis = {
      gridcolor: c.line,
      zerolinecolor: c.neutral,
      linecolor: c.line,
      tickfont: { color: c.muted },
      automargin: true,
    };
    globalThis.Plotly.react(
      node,
      traces,
      {
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        font: { family: c.font, size: 12.5, color: c.ink },
        margin: { l: 60, r: 20, t: 12, b: 44 },
        legend: { orientation: "h", y: 1.08, font: { color: c.muted } },
        hoverlabel: { font: { family: c.font } },
        ...layout,
        xaxis: { ...axis, ...layout.xaxis },
        yaxis: { ...axis, ...layout.yaxis },
      },
      { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] },
    );
  };
  const ready = () => {
    paint();
    document.documentElement.addEventListener("themechange", paint);
  };
  if (globalThis.Plotly) ready();
  else document.querySelector('script[src="/static/plotly.js"]').addEventListener("load", ready);
}
