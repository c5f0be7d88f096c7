"""A real browser in front of a real server; skipped, with one line, where no browser can be had."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browsing import ARGUMENTS, NAMES, Browser
from rooms import Room, enter, furnish, unblind


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder is marked, and skipped where there is no browser."""
    missing = _missing()
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)
            if missing:
                item.add_marker(pytest.mark.skip(reason=missing))


def _missing() -> str | None:
    if not any(map(shutil.which, NAMES)):
        return "no browser: make test-browser installs chromium where it can"
    try:
        import playwright  # noqa: F401
    except ImportError:
        return "no playwright: make test-browser installs it"
    return None


@pytest.fixture(scope="module")  # its event loop must not outlive the file: others have their own
def chromium() -> Iterator[object]:
    """One browser process for the tests of a file."""
    from playwright.sync_api import sync_playwright

    executable = next(path for path in map(shutil.which, NAMES) if path)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        yield browser
        browser.close()


Open = Callable[..., Browser]


@pytest.fixture
def open_browser(chromium) -> Iterator[Open]:
    """Makes browsers for an address; at the end none may have complained."""
    made: list[Browser] = []

    def make(base: str) -> Browser:
        made.append(Browser(chromium, base))
        return made[-1]

    yield make
    for context in chromium.contexts:
        context.close()
    assert [text for browser in made for text in browser.complaints] == []


@pytest.fixture(scope="session")
def furnished_room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root without models; not to be changed."""
    root = tmp_path_factory.mktemp("browser")
    furnish(root, n_more=10)
    return root


@pytest.fixture
def room(furnished_room: Path, tmp_path: Path) -> Iterator[Room]:
    """A copy of it."""
    shutil.copytree(furnished_room, tmp_path / "root")
    with enter(tmp_path / "root") as made:
        yield made


@pytest.fixture
def seen_room(room: Room) -> Room:
    """The same for somebody who browses without blinding."""
    unblind(room)
    return room
