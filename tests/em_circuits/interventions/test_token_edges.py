"""Token edges are real changes of the embeddings, and a forgotten scale is found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_families import PROMPT, make_family

from em_circuits.interventions.token_edges import check_token_edges
from em_circuits.models import Model, ModelPair, encode
from em_circuits.models.replacement import PreparedContext


@pytest.fixture(scope="module", params=["gemma-3", "gemma-2", "llama-tied", "gpt-2"])
def checked(request, tmp_path_factory) -> Iterator[tuple[Model, torch.Tensor]]:
    made = make_family(tmp_path_factory.mktemp("tokens"), request.param)
    with ModelPair.load(made.settings()) as pair:
        yield pair.merged, torch.tensor(encode(pair.tokenizer, PROMPT))


def test_token_edges_are_real_changes(checked) -> None:
    checks = check_token_edges(*checked)
    assert [check.name.split()[1] for check in checks] == ["full", "frozen"]
    assert all(check.ok for check in checks), checks


def test_a_forgotten_scale_is_found_and_its_factor_told(checked, monkeypatch) -> None:
    model, ids = checked
    made = PreparedContext.setup_attribution

    def unscaled(self, inputs):
        prepared, context = self._prepared, made(self, inputs)
        if prepared is None:
            context.token_vectors = context.token_vectors / 8
        return context

    monkeypatch.setattr(PreparedContext, "setup_attribution", unscaled)
    full, frozen = check_token_edges(model, ids)
    assert full.ok and not frozen.ok and frozen.fatal
    assert "0.125 times the real ones" in frozen.found


def test_bfloat16_rounds_but_a_scale_still_shows(tmp_path: Path, monkeypatch) -> None:
    made = make_family(tmp_path, "gemma-3")
    with ModelPair.load(made.settings(dtype="bfloat16")) as pair:
        checks = check_token_edges(pair.merged, torch.tensor(encode(pair.tokenizer, PROMPT)))
    assert checks[1].ok, checks
