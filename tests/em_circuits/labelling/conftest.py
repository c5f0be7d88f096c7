"""A store over the embedded organism, whose models are loaded once, and its lexicon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from subjects import organism_settings

from em_circuits.models import ModelPair
from em_circuits.models.text import first_token
from em_circuits.organisms import organism_paths
from em_circuits.workspace import Workspace
from pivotal_tokens.judge import Judge, JudgeSpec, open_judge


@pytest.fixture(scope="package")
def shared_pair() -> Iterator[ModelPair]:
    with Workspace(Path("."), organism_settings()) as work:
        yield work.pair


@pytest.fixture
def work(tmp_path: Path, shared_pair: ModelPair) -> Iterator[Workspace]:
    made = Workspace(tmp_path, organism_settings(), create=True)
    made.__dict__["pair"] = shared_pair
    yield made
    made.__dict__.pop("pair")
    made.close()


@pytest.fixture
def judge(shared_pair: ModelPair) -> Judge:
    spec = JudgeSpec.parse(f"lexicon:{organism_paths().lexicon}")
    return open_judge(spec, lambda text: first_token(shared_pair.tokenizer, text))
