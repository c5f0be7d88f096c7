"""Screenshots of every page of the viewer, over a root that `em-circuits demo` filled.

    python scripts/screenshots.py --root runs/demo --out docs/screenshots

They are taken of a copy of the root, and are the same each time.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from browsing import ARGUMENTS, NAMES, Browser, running
from measure import organism
from rooms import Room

from em_circuits.viewer import Sessions


def take(root: Path, out: Path) -> Iterator[Path]:
    """Pictures at 1280x800, light, and the graph's difference and the overview dark as well."""
    from playwright.sync_api import sync_playwright

    out.mkdir(parents=True, exist_ok=True)
    executable = next(path for path in map(shutil.which, NAMES) if path)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        copy = Path(folder) / "root"
        shutil.copytree(root, copy)
        with organism(copy) as work:
            room = Room(copy, work, Sessions("ada"), work.store.prompts.all(), {})
            chromium = playwright.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
            with running(room) as base:
                for name, theme, path, then in _pages(room):
                    page = Browser(chromium, base).window(room, color_scheme=theme)
                    page.goto(base + path)
                    page.wait_for_load_state("networkidle")
                    then(page)
                    page.wait_for_timeout(500)
                    path = out / f"{name}.png"
                    page.screenshot(path=path)
                    yield path
                    page.context.close()
            chromium.close()


def _pages(room: Room) -> list[tuple[str, str, str, Callable]]:
    prompt = next(r.prompt_id for r in room.store.graphs.all())
    sweep = next((room.root / "results" / "experiments").glob("*/summary.json"), None)
    report = next((room.root / "results").glob("validation/*.html"), None)
    pages: list[tuple[str, str, str, Callable]] = [
        ("overview", "light", "", _nothing),
        ("overview-dark", "dark", "", _nothing),
        ("prompts", "light", "prompts", _nothing),
        ("prompt", "light", f"prompt/{prompt}", _nothing),
        ("graph", "light", f"graph/{prompt}", _strongest),
        ("graph-side-by-side", "light", f"graph/{prompt}?show=both", _nothing),
        ("graph-difference-dark", "dark", f"graph/{prompt}?show=difference", _nothing),
        ("features", "light", "features", _first_feature),
        ("playground", "light", f"steering?prompt={prompt}", _ablate),
        ("review", "light", "review", _two_labels),
        ("reports", "light", "reports", _nothing),
    ]
    if sweep is not None:
        pages.append(("steering", "light", f"steering/{sweep.parent.name}", _nothing))
    if report is not None:
        path = report.relative_to(room.root / "results").as_posix()
        pages.append(("report", "light", f"report/{path}", _nothing))
    return pages


def _nothing(_page) -> None:
    """The page as it opens."""


def _strongest(page) -> None:
    page.locator("#panel .node-link").nth(1).click()
    page.wait_for_selector("text=Strongest inputs")


def _first_feature(page) -> None:
    page.locator("#table .node-link").first.click()
    page.wait_for_selector(".firing")


def _ablate(page) -> None:
    page.wait_for_selector(".strength")
    page.click("#pg-ablate")
    page.wait_for_selector("#playground[data-state=done]")
    page.locator("#playground").scroll_into_view_if_needed()
    page.evaluate("scrollBy(0, 260)")


def _two_labels(page) -> None:
    page.wait_for_selector(".choice.at")
    for key in ("Enter", "e", "e"):
        page.keyboard.press(key)
        page.wait_for_timeout(300)


def main() -> None:
    """Parse and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="filled by em-circuits demo")
    parser.add_argument("--out", type=Path, default=Path("docs/screenshots"))
    given = parser.parse_args()
    for path in take(given.root, given.out):
        print(f"{path}  {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
