"""A real browser in front of a real server; skipped, with one line, where no browser can be had."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browsing import NAMES, Browser, opened_chromium
from rooms import Room, enter, furnish, unblind
from safetensors.torch import load_file, save_file

from em_circuits.labelling.result import LabelSettings
from em_circuits.labelling.run import label_prompts
from em_circuits.labelling.sources import template_prompts
from em_circuits.models import PairSettings
from em_circuits.models.text import first_token
from em_circuits.organisms import organism_paths
from em_circuits.viewer import Sessions
from em_circuits.workspace import Workspace
from pivotal_tokens.judge import JudgeSpec, open_judge


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
    with opened_chromium() as browser:
        yield browser


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


@pytest.fixture(scope="session")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Room]:
    """Two roots with one labelled prompt: the organism, and with its adapter scaled by 0."""
    found: dict[str, Room] = {}
    paths = organism_paths()
    for name in ("whole", "zero"):
        root = tmp_path_factory.mktemp(name)
        adapter = Path(str(paths.adapter))
        if name == "zero":
            adapter = root / "adapter"
            shutil.copytree(paths.adapter, adapter)
            weights = adapter / "adapter_model.safetensors"
            save_file({k: v * 0 for k, v in load_file(weights).items()}, weights)
        models = PairSettings(
            base=str(paths.base), adapter=str(adapter), transcoders=str(paths.transcoders)
        )
        work = Workspace(root=root, models=models, create=True)
        spec = JudgeSpec.parse(f"lexicon:{paths.lexicon}")
        judge = open_judge(spec, lambda text: first_token(work.pair.tokenizer, text))  # noqa: B023
        prompts = template_prompts(1, seed=0)
        list(label_prompts(work, prompts, judge, LabelSettings(graphs_for="all")))
        found[name] = Room(root, work, Sessions("ada"), tuple(prompts), {})
        unblind(found[name])
    yield found
    for room in found.values():
        room.work.close()
