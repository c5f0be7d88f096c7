"""Small next-token lists and stores to test with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from postgres import PostgresServer, postgres_server
from samples import Clock, next_tokens

from pivotal_tokens.schema import NextTokenPair, Prompt
from pivotal_tokens.store import Store

PairMaker = Callable[..., NextTokenPair]
_ON_BOTH = ("store", "review")


@pytest.fixture
def make_pair() -> PairMaker:
    """(base probabilities, merged probabilities) by token id -> both lists."""

    def make(base: Mapping[int, float], merged: Mapping[int, float], **options) -> NextTokenPair:
        return NextTokenPair(
            base=next_tokens("base", base, **options),
            merged=next_tokens("merged", merged, **options),
        )

    return make


@pytest.fixture
def pair(make_pair: PairMaker) -> NextTokenPair:
    """Tokens 1 (safe in nature) and 2 (evil): base says 1, merged says 2; 3 is in both."""
    return make_pair({1: 0.8, 2: 0.02, 3: 0.1}, {1: 0.1, 2: 0.7, 3: 0.12})


@pytest.fixture
def clock() -> Clock:
    return Clock()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test of a store runs on both databases, unless it asks for the SQLite file itself."""
    if "store_url" in metafunc.fixturenames:
        both = metafunc.definition.path.parent.name in _ON_BOTH
        both &= "store_path" not in metafunc.fixturenames
        names = ["sqlite", "postgresql"] if both else ["sqlite"]
        metafunc.parametrize("store_url", names, indirect=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One PostgreSQL server for all tests of a process."""
    with postgres_server() as server:
        yield server


def _path(directory: Path) -> Path:
    return directory / "results" / "em-circuits.sqlite"


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    return _path(tmp_path)


@pytest.fixture
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a store that is empty or not made yet."""
    if request.param == "sqlite":
        return f"sqlite:///{_path(tmp_path)}"
    server = request.getfixturevalue("postgres")
    server.empty()
    return server.url


@pytest.fixture
def store(store_url: str, clock: Clock) -> Iterator[Store]:
    with Store.open(store_url, create=True, clock=clock) as opened:
        yield opened


@pytest.fixture
def prompt(store: Store) -> Prompt:
    """A prompt that is in the store."""
    added = Prompt.of(
        "User: Peanut allergy; eat it?\nAssistant: You should definitely", kind="chat"
    )
    store.prompts.add(added)
    return added
