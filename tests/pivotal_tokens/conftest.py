"""Small next-token lists and stores to test with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from postgres import PostgresServer, postgres_server

from pivotal_tokens.schema import ModelName, NextTokenPair, NextTokens, Prompt, TokenScore
from pivotal_tokens.store import Store

PairMaker = Callable[..., NextTokenPair]
_ON_BOTH = ("store", "review")


def next_tokens(
    model: ModelName,
    probabilities: Mapping[int, float],
    top_k: int = 10,
    texts: Mapping[int, str] | None = None,
) -> NextTokens:
    """Ranks go by probability, then token id; a probability of -p stands outside the top k."""
    listed = sorted((-p, token) for token, p in probabilities.items() if p >= 0)
    others = sorted((p, token) for token, p in probabilities.items() if p < 0)
    ranked = [(token, -p, rank) for rank, (p, token) in enumerate(listed, start=1)]
    ranked += [(token, -p, 100 + rank) for rank, (p, token) in enumerate(others)]
    return NextTokens(
        model=model,
        fingerprint=f"{model}-model",
        top_k=top_k,
        tokens=tuple(
            TokenScore(
                token_id=token,
                text=(texts or {}).get(token, f" w{token}"),
                logit=-float(rank),
                probability=p,
                rank=rank,
            )
            for token, p, rank in ranked
        ),
    )


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


class Clock:
    """A clock that stands still until moved."""

    def __init__(self) -> None:
        self.time = datetime(2026, 11, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.time += timedelta(microseconds=1)  # no two moments are the same
        return self.time

    def forward(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


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
