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
