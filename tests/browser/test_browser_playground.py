"""The playground on the embedded organism's models: figures move, and follow the adapter."""

from __future__ import annotations

import re

import pytest
from browsing import running


def _masses(page) -> list[float]:
    page.wait_for_selector("#playground[data-state=done] .three .big")
    return [float(t) for t in page.locator("#pg-result .three .big").all_inner_texts()]


def test_ablating_the_top_features_moves_the_figures(roots, open_browser) -> None:
    room = roots["whole"]
    with running(room) as base:
        page = open_browser(base).window(room)
        page.goto(base + "steering")
        page.wait_for_selector(".strength")
        page.click("#pg-run")
        before, same = _masses(page)  # nothing is changed, so there is no control
        assert before == same > 0.3
        page.click("#pg-ablate")
        page.wait_for_selector("#playground[data-runs='2']")
        unsteered, steered, random = _masses(page)
        assert unsteered == before and steered < before - 0.03
        assert abs(random - before) < (before - steered) / 2, "matched random features do little"
        assert page.locator("#pg-result .texts p").count() == 3


def test_without_the_adapter_both_models_are_the_same_everywhere(roots, open_browser) -> None:
    room = roots["zero"]
    prompt = room.prompts[0].prompt_id
    with running(room) as base:
        page = open_browser(base).window(room)
        page.goto(f"{base}prompt/{prompt}")
        changes = page.locator(".butterfly tbody td:nth-child(6)").all_inner_texts()
        assert changes and {float(text.replace("−", "-")) for text in changes} == {0.0}
        page.goto(f"{base}graph/{prompt}?show=difference")
        page.wait_for_selector("#graph[data-first-picture]")
        largest = """() => Math.max(
            ...graphPage.graph.nodes.map((n) => Math.abs(graphPage.graph.change(n) ?? 0)))"""
        most = page.evaluate(largest)
        assert most < 1e-4
        page.goto(base + "steering")
        page.wait_for_selector(".strength")
        figures = []
        for model in ("merged", "base"):
            page.select_option("#pg-model", model)
            page.wait_for_selector("#pg-result .empty")
            page.wait_for_selector(".strength")
            page.click("#pg-run")
            page.wait_for_selector("#pg-result .three .big")
            figures.append(_masses(page)[0])
        assert figures[0] == pytest.approx(figures[1], abs=2e-3)


def test_a_node_is_steered_and_its_measured_effect_appears_on_it(roots, open_browser) -> None:
    room = roots["whole"]
    prompt = room.prompts[0].prompt_id
    with running(room) as base:
        page = open_browser(base).window(room)
        page.set_default_timeout(60_000)
        page.goto(f"{base}graph/{prompt}")
        before = _ablated(page)
        for i in range(1 + before):  # others may have steered the first ones
            page.goto(f"{base}graph/{prompt}")
            page.locator("#panel .node-link").nth(i).click()
            page.wait_for_selector("text=Strongest inputs")
            if not page.locator("#panel td:text-is('measured')").count():
                break
        assert page.locator("#panel td:text-is('measured')").count() == 0
        node = page.evaluate("graphPage.selected")
        page.click("#panel >> text=Steer it here")
        page.wait_for_selector(".strength")
        page.click("#pg-run")
        page.wait_for_selector("#playground[data-state=done] .three .big")
        page.goto(f"{base}graph/{prompt}?select={node}")
        page.wait_for_selector("#panel td:text-is('measured')")
        other = page.evaluate(
            "graphPage.graph.nodes.find((n) => n.kind === 'feature'"
            " && n.name !== graphPage.selected && !graphPage.graph.score(n, 'merged', 'measured')"
            " && graphPage.graph.shown(n, 'merged')).name"
        )
        page.evaluate("(name) => graphPage.draw(name)", other)
        page.click("#panel >> text=Really ablate it")
        page.wait_for_selector("#panel td:text-is('measured')")
        page.evaluate("graphPage.select(null)")
        assert _ablated(page) == before + 2


def _ablated(page) -> int:
    """Nodes that the graph page says were really ablated."""
    page.wait_for_selector(".agreement")
    said = re.search(r"Really ablated: (\d+) of", page.locator(".agreement").inner_text())
    return int(said[1]) if said else 0
