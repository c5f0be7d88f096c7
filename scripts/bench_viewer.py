"""Benchmark of the viewer's server and pages, in headless Chromium: in three minutes, one table.

Server: a synthetic graph of 8,192 features, read from its file by a process that never saw it, then
asked again. Graph page: views of about 1,000 nodes with 20,000 and with 100,000 edges; the first
picture counts from the start of the page's script, the click until the details stand in the panel,
frames are counted while the view is panned and zoomed at each, with every edge drawn. A stall is
a task of the page's main thread, or the time between two frames. First loads and the five tasks of
`five_tasks.py`: of the embedded organism's demo, each page in a browser that never saw it, until
nothing of it is awaited.

    python scripts/bench_viewer.py --out results/bench_viewer.json
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from browsing import Browser, opened_chromium, running
from five_tasks import MOST_CLICKS, TASKS, Walk
from measure import Row, benchmark, organism
from rooms import Room, enter, furnish, unblind
from synthetic import Size

from em_circuits.cli.app import run
from em_circuits.cli.options import Options
from em_circuits.viewer import Sessions, ViewerSettings

LARGE = Size(n_features=8192, n_layers=16, n_pos=20, n_logits=10)
SHOWN = Size(n_features=1500, n_layers=16, n_pos=20, n_logits=10)
VIEWS = {20_000: "node=0.98&edge=0.89", 100_000: "node=0.98&edge=0.995"}
"""At most so many edges of each model -> what of the graph is asked for."""
FRAMES = 60
FIRST_LOAD, STALL, FRAME = 1000.0, 100.0, 17.0
"""Milliseconds; a frame at 60 a second is 16.7, and timers round."""


class Plan(Options):
    """What is measured, how often."""

    repeats: int = 3
    """Of each timing."""
    root: Path | None = None
    """Filled by em-circuits demo; one of 7 prompts is made otherwise."""
    no_browser: bool = False
    """Measure the server alone."""


def measure(plan: Plan) -> list[Row]:
    """All rows of the table."""
    with tempfile.TemporaryDirectory() as folder:
        rows = _server(Path(folder) / "large", plan.repeats)
        if not plan.no_browser:
            furnish(Path(folder) / "shown", size=SHOWN, n_graphs=1)
            with opened_chromium() as chromium:
                for edges in VIEWS:
                    rows += _graph(chromium, Path(folder) / "shown", edges, plan.repeats)
                rows += _demo(chromium, plan.root, Path(folder) / "demo", plan.repeats)
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


def _graph(chromium, root: Path, most: int, repeats: int) -> list[Row]:
    """The graph page with so many edges, at most, of each model."""
    first, clicks, frames, stalls = [], [], [], []
    with (
        enter(root) as room,
        running(room, ViewerSettings(port=0, max_edges=most)) as base,
    ):
        unblind(room)
        for _ in range(repeats):
            page = Browser(chromium, base).window(room)
            nodes, edges = _open(page, base, room, VIEWS[most])
            first.append(float(page.get_attribute("#graph", "data-first-picture")))
            clicks.append(_click(page))
            page.evaluate("graphPage.select(null); graphPage.scene.drawn = 'all'")
            moved = [*_frames(page, "s.pan(up ? 6 : -6, 1)"), *_frames(page, ZOOM)]
            frames += moved
            page.evaluate("graphPage.scene.restart()")
            page.wait_for_timeout(1500)
            stalls.append(max([*moved, *page.evaluate("stalls")]))
            page.context.close()
    what = f"{nodes:,} nodes, {edges:,} edges"
    large = most > 20_000
    rows = [
        Row(
            f"first picture of {what}",
            None,
            statistics.median(first),
            "ms",
            at_most=None if large else FIRST_LOAD,
        ),
        Row("click to detail", None, statistics.median(clicks), "ms", at_most=150),
        Row(
            "frame to frame while panning and zooming, every edge drawn, median",
            None,
            statistics.median(frames),
            "ms",
            at_most=FRAME,
        ),
        Row("the same, 95th percentile", None, _high(frames), "ms", at_most=2 * FRAME),
    ]
    return [
        *rows,
        Row("longest stall, loading too", None, statistics.median(stalls), "ms", at_most=STALL),
    ]


STALLS = """window.stalls = [];
new PerformanceObserver((list) => stalls.push(...list.getEntries().map((task) => task.duration)))
  .observe({ type: "longtask", buffered: true });"""
ZOOM = "s.zoom(up ? 1.1 : 1 / 1.1, 400, 300)"


def _open(page, base: str, room: Room, view: str) -> tuple[int, int]:
    page.add_init_script(STALLS)
    page.goto(f"{base}graph/{room.prompts[0].prompt_id}?{view}")
    page.wait_for_selector("#graph[data-first-picture]")
    counts = page.evaluate(
        "[graphPage.graph.nodes.filter((n) => graphPage.graph.shown(n, 'merged')).length,"
        " graphPage.graph.edges.merged.n]"
    )
    return int(counts[0]), int(counts[1])


def _demo(chromium, given: Path | None, made: Path, repeats: int) -> list[Row]:
    """First loads of every page, and the five tasks, over a demo."""
    if given is None:
        with contextlib.redirect_stdout(sys.stderr):
            assert run(["--root", str(made), "demo", "--n", "7"]) == 0
    else:
        shutil.copytree(given, made)
    with organism(made) as work:
        room = Room(made, work, Sessions("ada"), work.store.prompts.all(), {})
        with running(room) as base:
            return [*_loads(chromium, room, base, repeats), *_tasks(chromium, room, base, repeats)]


def _loads(chromium, room: Room, base: str, repeats: int) -> Iterator[Row]:
    prompt = next(record.prompt_id for record in room.store.graphs.all())
    graph = room.work.graphs.load(next(r.key for r in room.store.graphs.all(prompt)))
    feature = graph.feature_name(0)
    pages = ["prompts", f"prompt/{prompt}", "graphs", f"graph/{prompt}", "features", "steering"]
    pages += [f"feature/{feature.layer}/{feature.id}", "review", "reports", "report/demo.html"]
    for path in ("", *pages):
        times, drawn = [], []
        for _ in range(repeats):
            page = Browser(chromium, base).window(room)
            page.goto(base + path, wait_until="load")
            while page.evaluate(AWAITED):
                time.sleep(0.005)
            times.append(page.evaluate("performance.now()"))
            if page.locator("iframe").count():
                page.frame_locator("iframe").locator(".main-svg").first.wait_for()
                drawn.append(page.evaluate("performance.now()"))
            page.context.close()
        what = path.partition("/")[0] or "overview"
        shown = f"{what} of the demo" if path.count("/") else what
        yield Row(f"first load: {shown}", None, statistics.median(times), "ms", at_most=FIRST_LOAD)
        if drawn:
            yield Row(f"{shown}: its first figure", None, statistics.median(drawn), "ms")


AWAITED = """document.readyState !== "complete" || document.querySelector(".loading") !== null
  || (document.getElementById("graph") && !document.getElementById("graph").dataset.firstPicture)"""
"""Whether something of a page is still to come."""


def _tasks(chromium, room: Room, base: str, repeats: int) -> Iterator[Row]:
    for name, task in TASKS.items():
        clicks, waits = 0, []
        for _ in range(repeats):
            page = Browser(chromium, base).window(room)
            walk = Walk(page, base)
            task(walk)
            clicks = walk.clicks
            waits.append(max(walk.waits))
            page.context.close()
        yield Row(f"{name}: clicks", None, clicks, "", at_most=MOST_CLICKS)
        first = " (the first time: the models are loaded)" if name == "steer it" else ""
        if first:
            yield Row(f"{name}: longest wait{first}", None, waits[0], "ms")
        yield Row(
            f"{name}: longest wait",
            None,
            statistics.median(waits[1:] or waits),
            "ms",
            at_most=FIRST_LOAD,
        )


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


def _frames(page, move: str) -> list[float]:
    """Milliseconds from frame to frame while the view is moved at every one."""
    script = """(frames) => new Promise((done) => {
      const s = graphPage.scene, times = [];
      const step = (now) => {
        times.push(now);
        if (times.length > frames) return done(times.slice(1).map((t, i) => t - times[i]));
        const up = times.length % 20 < 10;
        MOVE;
        requestAnimationFrame(step);
      };
      requestAnimationFrame(step);
    })"""
    return [float(t) for t in page.evaluate(script.replace("MOVE", move), FRAMES)]


def _timed(work) -> float:
    start = time.perf_counter()
    answer = work()
    assert answer.status_code == 200, answer.text
    return 1000 * (time.perf_counter() - start)


def _high(values: list[float]) -> float:
    return sorted(values)[int(0.95 * (len(values) - 1))]


if __name__ == "__main__":
    benchmark(Plan, measure, __doc__)
