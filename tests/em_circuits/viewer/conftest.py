"""A small store with graphs of no model, and a browser that is let in."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rooms import Room, enter, furnish
from starlette.testclient import TestClient

from em_circuits.viewer import ViewerSettings

Client = Callable[..., TestClient]


@pytest.fixture(scope="session")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with four prompts, two of them with graphs of both models; not to be changed."""
    root = tmp_path_factory.mktemp("furnished")
    furnish(root)
    return root


@pytest.fixture
def room(furnished: Path, tmp_path: Path) -> Iterator[Room]:
    """A copy of it, to be changed at will."""
    shutil.copytree(furnished, tmp_path / "root")
    with enter(tmp_path / "root") as made:
        yield made


@pytest.fixture
def client(room: Room) -> TestClient:
    """A browser that was let in."""
    return room.client()


@pytest.fixture
def stranger(room: Room) -> TestClient:
    """A browser without a cookie."""
    return room.client(let_in=False)


@pytest.fixture
def reader(room: Room) -> TestClient:
    """A browser at a read-only viewer."""
    return room.client(ViewerSettings(read_only=True))
