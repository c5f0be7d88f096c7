"""Benchmark of the viewer's server and of its graph page, in headless Chromium.

Server: a synthetic graph of 8,192 features, read from its file by a process that never saw it, then
asked again. Page: a view of about 1,000 nodes and 20,000 edges; the first picture counts from the
start of the page's script to the last edge drawn, the click until the details stand in the panel,
frames are counted while the view is panned at each.

    python scripts/bench_viewer.py --out results/bench_viewer.json
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from pathlib import Path

from browsing import ARGUMENTS, NAMES, Browser, running
from measure import Row, benchmark
from rooms import Room, enter, furnish
from synthetic import Size

from em_circuits.cli.options import Options

LARGE = Size(n_features=8192, n_layers=16, n_pos=20, n_logits=10)
SHOWN = Size(n_features=1500, n_layers=16, n_pos=20, n_logits=10)
VIEW = "node=0.98&edge=0.89"
FRAMES = 60


class Plan(Options):
    """What is measured, how often."""

    repeats: int = 5
    """Of each timing."""
    no_browser: bool = False
    """Measure the server alone."""


def measure(plan: Plan) -> list[Row]:
    """All rows of the table."""
    with tempfile.TemporaryDirectory() as folder:
        rows = _server(Path(folder) / "large", plan.repeats)
        if not plan.no_browser:
            rows += _page(Path(folder) / "shown", plan.repeats)
    return rows


def _server(root: Path, repeats: int) -> list[Row]:
    furnish(root, size=LARGE, n_graphs=1)
    first: dict[str, list[float]] = {"merged": [], "base,merged": []}
    again: list[float] = []
    node: list[float] = []
    for _ in range(repeats):
        for models, times in first.items():
            with enter(root) as room:
                client = room.client()
                url = f"/api/graph/{room.prompts[0].prompt_id}?models={models}"
                times.append(_timed(lambda: client.get(url)))  # noqa: B023
                again.append(_timed(lambda: client.get(url)))  # noqa: B023
                name = client.get(url).json()["nodes"]["name"][0]
                detail = f"/api/graph/{room.prompts[0].prompt_id}/node?name={name}"
                node.append(_timed(lambda: client.get(detail)))  # noqa: B023
    one, two = (statistics.median(times) for times in first.values())
    return [
        Row("pruned graph of 8,192 features, first time", None, one, "ms", at_most=1500),
        Row("both models' pruned graphs, first time", None, two, "ms"),
        Row("the same view again", None, statistics.median(again), "ms", at_most=50),
        Row("details of one node", None, statistics.median(node), "ms"),
    ]


def _page(root: Path, repeats: int) -> list[Row]:
    from playwright.sync_api import sync_playwright

    furnish(root, size=SHOWN, n_graphs=1)
    executable = next(path for path in map(shutil.which, NAMES) if path)
    first, clicks, frames, sizes = [], [], [], (0, 0)
    with (
        enter(root) as room,
        running(room) as base,
        sync_playwright() as playwright,
    ):
        chromium = playwright.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        for _ in range(repeats):
            page = Browser(chromium, base).window(room)
            sizes = _open(page, base, room)
            first.append(float(page.get_attribute("#graph", "data-first-picture")))
            clicks.append(_click(page))
            frames += _pan(page)
            page.context.close()
        chromium.close()
    nodes, edges = sizes
    what = f"{nodes:,} nodes, {edges:,} edges"
    return [
        Row(f"first picture of {what}", None, statistics.median(first), "ms", at_most=2000),
        Row("click to detail", None, statistics.median(clicks), "ms", at_most=150),
        Row(
            "frame to frame while panning, median",
            None,
            statistics.median(frames),
            "ms",
            at_most=17,
        ),
        Row("the same, 95th percentile", None, _high(frames), "ms", at_most=34),
    ]


def _open(page, base: str, room: Room) -> tuple[int, int]:
    page.goto(f"{base}graph/{room.prompts[0].prompt_id}?{VIEW}")
    page.wait_for_selector("#graph[data-first-picture]")
    counts = page.evaluate(
        "[graphPage.graph.nodes.filter((n) => graphPage.graph.shown(n, 'merged')).length,"
        " graphPage.graph.edges.merged.n]"
    )
    return int(counts[0]), int(counts[1])


def _click(page) -> float:
    """Milliseconds from a click on a node to its inputs in the panel, as the page sees it."""
    script = """() => new Promise((done) => {
      const p = graphPage, c = document.getElementById('canvas'), t = p.scene.transform;
      const n = p.graph.nodes.find((n) => n.kind === 'feature' && p.graph.shown(n, 'merged'));
      const b = c.getBoundingClientRect();
      const x = b.left + t.k * n.x + t.x, y = b.top + t.k * n.y + t.y;
      const start = performance.now();
      new MutationObserver((_, seen) => {
        if (!document.getElementById('panel').textContent.includes('Strongest inputs')) return;
        seen.disconnect();
        requestAnimationFrame(() => done(performance.now() - start));
      }).observe(document.getElementById('panel'), { childList: true, subtree: true });
      for (const kind of ['pointerdown', 'pointerup'])
        c.dispatchEvent(new PointerEvent(kind, { clientX: x, clientY: y, pointerId: 1 }));
    })"""
    page.evaluate("document.getElementById('canvas').setPointerCapture = () => {}")
    return float(page.evaluate(script))


def _pan(page) -> list[float]:
    """Milliseconds from frame to frame while the view is panned at every one."""
    script = """(frames) => new Promise((done) => {
      const s = graphPage.scene, times = [];
      const step = (now) => {
        times.push(now);
        if (times.length > frames) return done(times.slice(1).map((t, i) => t - times[i]));
        s.pan(times.length % 20 < 10 ? 6 : -6, 1);
        requestAnimationFrame(step);
      };
      requestAnimationFrame(step);
    })"""
    return [float(t) for t in page.evaluate(script, FRAMES)]


def _timed(work) -> float:
    start = time.perf_counter()
    answer = work()
    assert answer.status_code == 200, answer.text
    return 1000 * (time.perf_counter() - start)


def _high(values: list[float]) -> float:
    return sorted(values)[int(0.95 * (len(values) - 1))]


if __name__ == "__main__":
    benchmark(Plan, measure, __doc__)
