"""Five tasks of a newcomer in the viewer, click by click, each click with its wait.

    walk = Walk(page, base)
    for name, task in TASKS.items():
        task(walk)                     # walk.clicks, walk.waits: of this task

Every task begins at the overview. `tests/browser/test_browser_tasks.py` counts the clicks and looks
at what came of them, `scripts/bench_viewer.py` measures the waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable

NODE = "#panel .node-link"
"""The nodes of the graph page's panel, the strongest towards evil first."""


class Walk:
    """Clicks on a page, counted, each until its result is there."""

    def __init__(self, page, base: str) -> None:
        self.page, self.base = page, base
        self.clicks = 0
        self.waits: list[float] = []
        """Milliseconds from each click to its result."""

    def begin(self) -> None:
        """A new task, at the overview."""
        self.page.goto(self.base)
        self.page.wait_for_selector("text=See why")
        self.clicks, self.waits = 0, []

    def click(self, what: str, result: str) -> None:
        """Click on the first of what a selector finds, and wait for the result's."""
        start = time.perf_counter()
        self.page.locator(what).first.click()
        self.page.locator(result).first.wait_for()
        self.waits.append(1000 * (time.perf_counter() - start))
        self.clicks += 1

    def strongest(self) -> None:
        """The strongest feature of a prompt: its graph opens with the list."""
        self.begin()
        self.click(".bar a:has-text('Prompts')", "h1:has-text('Prompts')")
        self.click("main a[href^='/prompt/']", "text=Open the graph")
        self.click("text=Open the graph", NODE)

    def _at_the_strongest(self) -> None:
        self.begin()
        self.click("text=See why", NODE)
        self.click(NODE, "text=Strongest inputs")

    def why(self) -> None:
        """Through what it acts: its inputs, and the paths to the contrast."""
        self._at_the_strongest()
        self.click("text=Find paths", ".path")

    def elsewhere(self) -> None:
        """Every prompt and position where it fires."""
        self._at_the_strongest()
        self.click("#panel >> text=Where else it fires", ".firing")

    def steer(self) -> None:
        """It is ablated in the model, beside matched random features."""
        self._at_the_strongest()
        self.click("#panel >> text=Steer it here", ".strength")
        self.click("#pg-run", "#playground[data-state=done] .three .big")

    def send(self) -> None:
        """A link to what is seen, for a colleague."""
        self._at_the_strongest()
        self.click("summary:has-text('Export')", "[data-export=link]")
        self.click("[data-export=link]", ".toast")


TASKS: dict[str, Callable[[Walk], None]] = {
    "find the strongest feature of a prompt": Walk.strongest,
    "see why": Walk.why,
    "see where else it fires": Walk.elsewhere,
    "steer it": Walk.steer,
    "send a colleague the view": Walk.send,
}
MOST_CLICKS = 6
