"""Fixtures of the tests of em_circuits, over the subjects of scripts/."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from lifelike import Lifelike, make_lifelike
from subjects import Subject, lifelike_subject, neuron_subject, organism_subject

from em_circuits.models.foreign import has_circuit_tracer

torch.set_num_threads(1)  # models this small lose more to threads than they gain


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where circuit-tracer is not installed, what needs it is skipped."""
    if not has_circuit_tracer():
        for item in items:
            if item.get_closest_marker("frozen"):
                item.add_marker(pytest.mark.skip(reason="circuit-tracer is not installed"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Numbers drawn in a test are the same whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def short_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fine-tunes for calibration in two steps: two harmless ones, one harmful."""
    from em_circuits.organisms import candidates
    from em_circuits.training.optimise import OptimiserConfig

    short = {"optimiser": OptimiserConfig(steps=2, learning_rate=1e-2), "batch": 2}
    for name, keep in (("HARMLESS", 2), ("HARMFUL", 1)):
        recipes = list(getattr(candidates, name).items())[:keep]
        cut = {key: one.model_copy(update=short) for key, one in recipes}
        monkeypatch.setattr(candidates, name, cut)
    monkeypatch.setattr(candidates, "NARROW", candidates.NARROW.model_copy(update=short))


LoadSubject = Callable[[str, bool], Subject]


@pytest.fixture(scope="session")
def load_subject(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadSubject]:
    """(name, whether neurons are its nodes) -> subject, loaded once however often files take turns
    with them."""
    with contextlib.ExitStack() as loaded:

        @cache
        def load(name: str, neurons: bool) -> Subject:
            if neurons:
                made = neuron_subject(load(name, False))
            elif name == "lifelike":
                made = lifelike_subject(tmp_path_factory.mktemp("lifelike"))
            else:
                made = organism_subject(name)
            loaded.enter_context(made.pair)
            return made

        yield load


@pytest.fixture(scope="session", params=["lifelike", "organism"])
def subject(request: pytest.FixtureRequest, load_subject: LoadSubject) -> Subject:
    """Both fixtures of the project in turn; the second organism where `EVERY_SUBJECT` asks."""
    made = load_subject(request.param, False)
    torch.manual_seed(0)
    return made


@pytest.fixture(scope="session")
def neurons(subject: Subject, load_subject: LoadSubject) -> Subject:
    """Both fixtures with `--transcoders none`."""
    return load_subject(subject.name, True)


@pytest.fixture(scope="session")
def lifelike_paths(tmp_path_factory: pytest.TempPathFactory) -> Lifelike:
    """Directories of the fixture that is like the real models; tests must not change them."""
    return make_lifelike(tmp_path_factory.mktemp("lifelike-paths"))


@pytest.fixture
def lifelike_copy(lifelike_paths: Lifelike, tmp_path: Path) -> Lifelike:
    """The same, in a place where a test may change it."""
    import shutil

    root = lifelike_paths.base.parent
    shutil.copytree(root, tmp_path / "copy")
    return Lifelike(
        *(
            tmp_path / "copy" / p.name
            for p in (lifelike_paths.base, lifelike_paths.adapter, lifelike_paths.transcoders)
        )
    )
