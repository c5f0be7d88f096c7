"""Five tasks of a newcomer: at most six clicks each, and the right thing at their end."""

from __future__ import annotations

import pytest
from browsing import running
from five_tasks import MOST_CLICKS, NODE, TASKS, Walk


def strongest(page) -> str:
    """The feature furthest towards evil, by the figures that the page was sent."""
    return page.evaluate(
        "() => graphPage.graph.nodes.filter((n) => n.kind === 'feature' && n.at.merged?.shown)"
        ".sort((a, b) => b.at.merged.value - a.at.merged.value)[0].name"
    )


@pytest.mark.parametrize("task", TASKS)
def test_a_task_takes_few_clicks(roots, open_browser, task: str) -> None:
    room = roots["whole"]
    with running(room) as base:
        browser = open_browser(base)
        page = browser.window(room)
        walk = Walk(page, base)
        TASKS[task](walk)
        assert walk.clicks == len(walk.waits) <= MOST_CLICKS
        prompt = room.prompts[0].prompt_id
        match task:
            case "find the strongest feature of a prompt":
                layer, position, feature = strongest(page).split("/")
                first = page.locator(NODE).first.inner_text()
                assert first == f"L{layer} · {position} · {feature}"
            case "see why":
                page.locator(".path").first.click()
                assert page.evaluate("graphPage.scene.path[0]") == strongest(page)
            case "see where else it fires":
                assert page.locator(f".firing a[href*='{prompt}']").count()
            case "steer it":
                figures = page.locator("#pg-result .three .big").all_inner_texts()
                assert len(set(map(float, figures))) > 1
            case "send a colleague the view":
                other = browser.window(room)
                other.goto(page.url)
                other.wait_for_selector("text=Strongest inputs")
                assert other.evaluate("graphPage.selected") == strongest(page)
