"""Every page: nothing cut at any size, and no serious finding of axe-core, in both themes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from browsing import running
from markupsafe import Markup
from plotly.graph_objects import Bar, Figure
from rooms import Room, store_experiment

from em_circuits.report.page import Code, Heading, Headline, Table, styled, write_page

AXE = Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"
SIZES = ((1280, 800), (800, 600), (390, 844))
TITLES = {
    "": "Overview",
    "prompts": "Prompts",
    "graphs": "Attribution graphs",
    "features": "Features",
    "steering": "Steering",
    "reports": "Reports",
}
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
SUMMARY = {
    "said": "it fell",
    "prompts": [],
    "conditions": [
        {
            "condition": f"#{n} scale {value} @found",
            "combination": f"#{n}",
            "mode": "scale",
            "value": value,
            "unit": "absolute",
            "place": "found",
            "features": ["0/1/2"],
            "n_prompts": 2,
            "change": change,
            "control": 0.01,
            "net": change - 0.01,
            "low": change - 0.05,
            "high": change + 0.03,
            "q": 0.04,
            "works": change < -0.1,
            "evil_mass": 0.7 + change,
            "evil_mass_unsteered": 0.7,
        }
        for n in range(1, 15)
        for value, change in ((0.0, -0.3), (2.0, 0.0))
    ],
}


@pytest.fixture
def full_room(seen_room: Room) -> Room:
    """Something on every page."""
    results = seen_room.root / "results"
    prompt = seen_room.prompts[0].prompt_id
    told = {"prompt_id": prompt, "condition": "#1 scale 0.0 @found", "draw": 0, "sample": 0}
    texts = [{**told, "control": arm, "text": "x " * 40} for arm in ("unsteered", "steered")]
    store_experiment(results / "experiments" / "dose", rows=[], rollouts=texts, summary=SUMMARY)
    (results / "notes.md").write_text("# Notes\n\n| a | b |\n|---|---|\n| 1 | <b>2</b> |\n")
    figure = styled(Figure(Bar(x=["base", "merged"], y=[0.1, 0.8], name="evil mass")), 300)
    rows = [
        ("1/2", 0.5, Markup('<span class="evil">eat <mark>it</mark></span>')),
        ("0/3", None, ""),
    ]
    parts = [
        Headline("it fell"),
        Heading("Beside"),
        "What.",
        figure,
        Code("x = 1"),
        Table("t", ("node", "effect", "text"), rows),
    ]
    write_page(results / "parts.html", "A report", parts, inputs={}, config={})
    (results / "figures.json").write_text(json.dumps({"one": {"two": [1, 2]}, "three": None}))
    seen_room.client().post(
        "/api/features/aggregate", json={"method": "gradient", "model": "merged"}
    )
    return seen_room


def _paths(room: Room) -> list[str]:
    prompt = room.prompts[0].prompt_id
    layer, _, feature = next(
        iter(room.work.graphs.load(room.graphs[prompt, "merged"]).active.tolist())
    )
    return [
        *("", "prompts", "graphs", "features", "steering", "steering/dose", "reports", "review"),
        *("report/notes.md", "report/figures.json", "report/parts.html"),
        f"feature/{layer}/{feature}",
        *(f"prompt/{prompt}", f"graph/{prompt}", f"graph/{prompt}?show=both"),
    ]


def _settled(page, url: str) -> None:
    page.goto(url)
    page.wait_for_load_state("networkidle")
    while page.locator(".loading").count():
        page.wait_for_timeout(50)
    if page.locator("iframe").count():
        page.frame_locator("iframe").locator(".bars path").first.wait_for()


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_page_opens_and_nothing_is_cut_at_any_size(
    full_room: Room, open_browser, theme: str
) -> None:
    with running(full_room) as base:
        page = open_browser(base).window(full_room, color_scheme=theme)
        cut = []
        for path in _paths(full_room):
            page.set_viewport_size({"width": SIZES[0][0], "height": SIZES[0][1]})
            _settled(page, base + path)
            assert page.locator("html").get_attribute("data-theme") == theme
            if path in TITLES:
                assert page.locator("h1").inner_text() == TITLES[path]
            for width, height in SIZES:
                page.set_viewport_size({"width": width, "height": height})
                if any(frame.evaluate(OVERFLOW) > 0 for frame in page.frames):
                    cut.append((path, width))
                wide = "(e => e ? e.scrollWidth - e.clientWidth : 0)"
                if page.evaluate(f"{wide}(document.getElementById('panel'))") > 0:
                    cut.append((f"{path} panel", width))
        assert cut == []


@pytest.mark.slow
def test_axe_finds_nothing_serious(full_room: Room, open_browser) -> None:
    if not AXE.is_file():
        pytest.skip("no axe-core: npm ci installs it")
    source = AXE.read_text(encoding="utf-8")
    found = []
    with running(full_room) as base:
        for theme in ("light", "dark"):
            # axe is put into the page as no page may do it: its policy is set aside for that.
            page = open_browser(base).window(full_room, color_scheme=theme, bypass_csp=True)
            for path in _paths(full_room):
                _settled(page, base + path)
                for frame in page.frames:
                    frame.evaluate(source)
                    result = frame.evaluate("axe.run({resultTypes: ['violations']})")
                    found += [
                        (theme, path, one["id"], one["nodes"][0]["html"][:120], len(one["nodes"]))
                        for one in result["violations"]
                        if one["impact"] in ("serious", "critical")
                    ]
    assert found == []


def test_a_report_has_the_theme_that_the_viewer_has(full_room: Room, open_browser) -> None:
    """Reports stood white on the dark page."""
    ground = "getComputedStyle(document.body).backgroundColor"
    with running(full_room) as base:
        page = open_browser(base).window(full_room, color_scheme="light")
        page.goto(base + "report/parts.html")
        seen = []
        for _ in ("system", "dark", "light"):
            page.frame_locator("iframe").locator(".bars path").first.wait_for()
            page.wait_for_timeout(100)
            seen.append(page.frames[1].evaluate(ground))
            page.keyboard.press("d")
        assert seen[0] == seen[2] == "rgb(255, 255, 255)" and seen[1] == "rgb(19, 21, 25)"
