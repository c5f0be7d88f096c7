"""The graph in a real browser: drawn, toggled, clicked, searched, pinned, walked by keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from browsing import running
from rooms import Room, enter, furnish, unblind
from synthetic import Size

"""Times are for two idle cores; a busy machine may take so many times longer."""


FILLED = """() => { const { scene } = graphPage, t = scene.transform;
  const logits = graphPage.graph.nodes.filter((n) => n.kind === 'logit');
  const legend = document.querySelector('.legend'), wide = t.k * logits[0].room - 4;
  const text = wide < 46 ? 24 + 62 * Math.sin(Math.PI / 3.6) : 19;
  const top = Math.min(...logits.map((n) => t.k * n.y + t.y)) - text;
  const under = legend.offsetWidth > 0.9 * scene.width || scene.panes.length > 1;
  const across = t.k * graphPage.place.width / (scene.paneWidth - 88);
  const down = t.k * graphPage.place.height / (scene.height - 64 - 74 - 90);
  return [Math.max(across, down), under ? top - legend.offsetTop - legend.offsetHeight : 1]; }"""
"""How much of its room a drawing fills, and pixels between the legend and the logits' texts."""


def _place(page, name: str) -> tuple[float, float]:
    script = """(name) => { const p = graphPage, n = p.graph.nodes[p.graph.index.get(name)];
      const t = p.scene.transform, b = document.getElementById('canvas').getBoundingClientRect();
      return [b.left + t.k * n.x + t.x, b.top + t.k * n.y + t.y]; }"""
    x, y = page.evaluate(script, name)
    return x, y


def _a_feature(page) -> str:
    return page.evaluate(
        """() => { const c = (n) => Math.abs(n.at.merged.value);
           return graphPage.graph.nodes.filter((n) => n.kind === 'feature' && n.at.merged?.shown
             && !n.at.base?.shown).sort((a, b) => c(b) - c(a))[0].name; }"""
    )


def _until(holds: Callable[[], bool], page) -> None:
    """Waits for it; Playwright's own waiting needs eval in the page, which the policy forbids."""
    while not holds():  # until the test's own time limit
        page.wait_for_timeout(100)


def test_toggle_click_search_pin_group_and_permalink(seen_room: Room, open_browser) -> None:
    room = seen_room
    prompt = room.prompts[0].prompt_id
    with running(room) as base:
        browser = open_browser(base)
        page = browser.window(room)
        page.goto(f"{base}graph/{prompt}")
        page.wait_for_selector("#graph[data-first-picture]")
        name = _a_feature(page)
        before = _place(page, name)
        page.mouse.click(*before)
        page.wait_for_selector("text=Strongest inputs")
        assert page.evaluate("graphPage.selected") == name
        page.keyboard.press("m")
        page.wait_for_selector("text=In base it")
        assert _place(page, name) == before, "toggling moves nothing"
        page.click("button[data-show=difference]")
        page.click("button[data-show=both]")
        page.click("button[data-show=merged]")
        page.click("text=Find paths")
        page.locator(".path").first.click()
        assert page.evaluate("graphPage.scene.path").__len__() >= 2
        page.once("dialog", lambda dialog: dialog.accept("<b>mine</b>"))
        page.select_option("select[aria-label='Put into a group']", "+")
        page.wait_for_selector("#panel >> text=<b>mine</b>")
        page.click("text=Fold")
        page.click("#panel >> text=Pin")
        _until(lambda: f"select={name.replace('/', '%2F')}" in page.url, page)
        link = page.url
        other = browser.window(room)
        other.goto(link)
        other.wait_for_selector("#panel >> text=<b>mine</b>")
        assert other.evaluate("graphPage.selected") == name
        other.fill("#search", "eat")
        other.keyboard.press("Enter")
        _until(lambda: other.evaluate("graphPage.selected") == "logit:3", other)


def test_keys_walk_the_graph(seen_room: Room, open_browser) -> None:
    room = seen_room
    with running(room) as base:
        page = open_browser(base).window(room)
        page.goto(f"{base}graph/{room.prompts[0].prompt_id}")
        page.wait_for_selector("#graph[data-first-picture]")
        page.focus("#canvas")
        seen = []
        for key in ("ArrowRight", "ArrowRight", "ArrowUp", "ArrowDown"):
            page.keyboard.press(key)
            seen.append(page.evaluate("graphPage.selected"))
        assert None not in seen and len(set(seen)) >= 3
        page.keyboard.press("Escape")
        assert page.evaluate("graphPage.selected") is None


def test_thresholds_are_live_and_exports_are_files(seen_room: Room, open_browser) -> None:
    room = seen_room
    with running(room) as base:
        page = open_browser(base).window(room)
        page.goto(f"{base}graph/{room.prompts[0].prompt_id}")
        page.wait_for_selector("#graph[data-first-picture]")
        count = "graphPage.graph.edges.merged.n"
        before = page.evaluate(count)
        page.click("#pruning summary")
        page.locator("#edge-cut").fill("0.6")
        _until(lambda: page.evaluate(count) < before, page)
        for kind, start in (("png", b"\x89PNG"), ("svg", b"<svg"), ("json", b"{")):
            page.click(".menu:has([data-export]) summary")
            with page.expect_download() as download:
                page.click(f"[data-export={kind}]")
            assert Path(download.value.path()).read_bytes().startswith(start)
            if kind == "json":
                assert json.loads(Path(download.value.path()).read_text())["nodes"]


def test_a_large_view_is_drawn_and_answers(tmp_path: Path, open_browser) -> None:
    """How fast is measured by `scripts/bench_viewer.py`."""
    size = Size(n_features=1500, n_layers=16, n_pos=20, n_logits=10)
    furnish(tmp_path, size=size, n_graphs=1)
    with enter(tmp_path) as room, running(room) as base:
        unblind(room)
        page = open_browser(base).window(room)
        prompt = room.prompts[0].prompt_id
        page.goto(f"{base}graph/{prompt}?node=0.98&edge=0.93")
        page.wait_for_selector("#graph[data-first-picture]")
        assert page.evaluate("graphPage.scene.limit(graphPage.scene.panes[0])") < 2000
        assert "strongest of" in page.locator("#panel").inner_text()
        nodes, edges = page.evaluate(
            "[graphPage.graph.nodes.length, graphPage.graph.edges.merged.n]"
        )
        assert nodes >= 900 and edges >= 15_000
        assert float(page.get_attribute("#graph", "data-first-picture") or "inf") < float("inf")
        x, y = _place(page, _a_feature(page))
        page.mouse.click(x, y)
        page.wait_for_selector("text=Strongest inputs")


def test_promoted_tokens_stay_within_the_panel(seen_room: Room, open_browser) -> None:
    """Token after token without a space between them once ran out of the window."""
    room = seen_room
    tokens = [[f" token{n}", 1.0] for n in range(12)]
    known = {"label": "advice", "promoted": tokens, "suppressed": tokens}

    def told(route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json=answer.json() | {"known": known})

    with running(room) as base:
        page = open_browser(base).window(room)
        page.route("**/node?*", told)
        page.goto(f"{base}graph/{room.prompts[0].prompt_id}")
        page.locator("#panel .node-link").first.click()
        page.wait_for_selector("#panel >> text=Suppresses")
        marks = page.locator("#panel p:has-text('Promotes') .token").all()
        assert len(marks) == 12
        right = page.locator("#panel").bounding_box()
        assert all(
            box["x"] + box["width"] <= right["x"] + right["width"]
            for box in (mark.bounding_box() for mark in marks)
        )


def test_a_pin_outlives_the_threshold_and_a_label_is_exported(
    seen_room: Room, open_browser
) -> None:
    """Pinned nodes once vanished when a slider hid them, and nodes had no label."""
    room = seen_room
    with running(room) as base:
        page = open_browser(base).window(room)
        page.goto(f"{base}graph/{room.prompts[0].prompt_id}")
        page.wait_for_selector("#graph[data-first-picture]")
        name = page.evaluate(
            """() => graphPage.graph.nodes.filter((n) => n.kind === 'feature' && n.at.merged?.shown)
               .sort((a, b) => b.at.merged.share - a.at.merged.share)[0].name"""
        )
        page.evaluate("(name) => graphPage.select(name)", name)
        page.wait_for_selector("text=Strongest inputs")
        page.fill("#panel input[aria-label^='Your label']", "danger words")
        page.keyboard.press("Enter")
        page.wait_for_selector("#panel h2:has-text('danger words')")
        page.keyboard.press("Tab")
        page.click("#panel >> text=Pin")
        page.wait_for_selector("#panel >> text=Unpin")
        page.evaluate("graphPage.select(null)")
        page.click("#pruning summary")
        page.locator("#node-cut").fill("0.3")
        _until(lambda: page.evaluate("graphPage.graph.views.merged.cut.node") == 0.3, page)
        assert page.evaluate("(name) => graphPage.graph.index.has(name)", name)
        fitted = "[graphPage.scene.transform.k, graphPage.scene.fitted]"
        k, fits = page.evaluate(fitted)
        assert k == fits, "sliders keep the picture fitted"
        page.click("#only")
        _until(
            lambda: (
                page.evaluate("graphPage.graph.nodes.filter((n) => n.kind !== 'logit').length") == 1
            ),
            page,
        )
        x, y = _place(page, name)
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x - 60, y - 40, steps=4)
        page.mouse.up()
        _until(lambda: page.evaluate("Object.keys(graphPage.pins.places).length") == 1, page)
        assert "keep=" in page.url and "only=kept" in page.url
        page.click("#only")
        page.click(".menu:has([data-export]) summary")
        with page.expect_download() as download:
            page.click("[data-export=json]")
        nodes = json.loads(Path(download.value.path()).read_text())
        assert "danger words" in {n["clerp"] for n in nodes["nodes"]}
        assert len(nodes["qParams"]["pinnedIds"]) == 1


def test_the_table_says_what_the_picture_shows(seen_room: Room, open_browser) -> None:
    room = seen_room
    with running(room) as base:
        page = open_browser(base).window(room)
        page.goto(f"{base}graph/{room.prompts[0].prompt_id}")
        page.wait_for_selector("#graph[data-first-picture]")
        page.focus("#canvas")
        page.keyboard.press("t")
        rows = page.locator("#table-twin tbody tr")
        shown = page.evaluate(
            """graphPage.graph.nodes.filter((n) => n.kind !== 'logit' && n.at.merged?.shown
               || n.kind !== 'logit' && graphPage.graph.shown(n, 'merged')).length"""
        )
        assert rows.count() == min(shown, 500)
        rows.first.locator("button").click()
        page.wait_for_selector("text=Strongest inputs")
        page.click("#as-table")
        page.select_option("#colour", "direct")
        _until(lambda: page.evaluate("graphPage.graph.views.merged.by") == "direct", page)
        assert "direct effect" in page.locator(".legend").inner_text()


def test_a_window_of_another_shape_is_filled_and_the_legend_covers_no_logit(
    seen_room: Room, open_browser
) -> None:
    """A narrower window kept the bands of the wide one, squeezed, their logits under the legend."""
    with running(seen_room) as base:
        page = open_browser(base).window(seen_room)
        page.goto(f"{base}graph/{seen_room.prompts[0].prompt_id}")
        page.wait_for_selector("#graph[data-first-picture]")
        for view in ("merged", "both"):
            page.click(f"button[data-show={view}]")
            for width, height in ((800, 600), (390, 844), (1280, 800)):
                page.set_viewport_size({"width": width, "height": height})
                page.wait_for_timeout(300)
                filled, free = page.evaluate(FILLED)
                assert filled > 0.8 and free > 0, (view, width)


def test_what_is_hidden_is_not_called_missing(room: Room, open_browser) -> None:
    with running(room) as base:
        page = open_browser(base).window(room)
        page.goto(f"{base}graph/{room.prompts[0].prompt_id}")
        page.wait_for_selector("#graph[data-first-picture]")
        assert page.locator("#legend-by").inner_text() == "hidden until you answer"
        assert page.locator("#colour option").all_inner_texts() == ["hidden"]
