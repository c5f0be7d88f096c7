"""Sliding windows: what shares a prefix, or a batch, sees what the whole prompt would."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tiny_families import PROMPT, WINDOW, make_family

from em_circuits.activation_cache import ActivationCache
from em_circuits.interventions import Intervention, Mode, Regime, run_rows
from em_circuits.interventions.generation import generate
from em_circuits.models import Model, ModelPair, encode
from em_circuits.sampling import Sampling


@pytest.fixture(scope="module", params=["mistral-window", "gemma-2-window", "gemma-3"])
def windowed(
    request: pytest.FixtureRequest, tmp_path_factory
) -> Iterator[tuple[Model, torch.Tensor]]:
    made = make_family(tmp_path_factory.mktemp("windowed"), request.param)
    with ModelPair.load(made.settings()) as pair:
        ids = torch.tensor(encode(pair.tokenizer, PROMPT))
        assert len(ids) > 2 * WINDOW
        yield pair.merged, ids


def ablations(state: ActivationCache, position: int) -> list[Intervention]:
    here = state.active[state.active[:, 1] == position]
    return [
        Intervention(layer=layer, position=at, feature=node, mode=Mode.ABLATE)
        for layer, at, node in here.tolist()
    ]


@pytest.mark.parametrize("regime", [Regime.FREE, Regime.ATTENTION_FROZEN])
@pytest.mark.parametrize("back", [1, WINDOW - 1, WINDOW, WINDOW + 2, 2 * WINDOW])
def test_a_shared_prefix_changes_no_logit(windowed, back: int, regime: Regime) -> None:
    """Positions before, at and behind the edge of the window, as seen from the last one."""
    model, ids = windowed
    state = ActivationCache.capture(model, ids)
    rows = [[], ablations(state, len(ids) - back)]
    shared, alone = (
        run_rows(model, state, rows, regime, share_prefix=share) for share in (True, False)
    )
    assert (shared - alone).abs().max() <= 1e-6 * alone.abs().max()


def test_a_prefix_is_shared_although_windows_are_shorter(windowed, monkeypatch) -> None:
    """The sharing itself must go on, or the test above compares a run with itself."""
    from em_circuits.interventions import run

    model, ids = windowed
    state, seen = ActivationCache.capture(model, ids), []
    made = run.SharedRun.cache
    monkeypatch.setattr(
        run.SharedRun, "cache", lambda self, n, rows: seen.append(n) or made(self, n, rows)
    )
    run_rows(model, state, [[], ablations(state, len(ids) - 1)])
    assert seen == [len(ids) - 1]


def test_prompts_of_several_lengths_go_on_as_each_would_alone(windowed) -> None:
    model, ids = windowed
    states = [ActivationCache.capture(model, part) for part in (ids[:9], ids, ids[:15])]
    sampling = Sampling(samples=2, max_tokens=6, temperature=1.0, stop_at_end=False)
    rows: list[list[Intervention]] = [[], [], []]
    together = generate(model, states, rows, sampling, keep_logits=True)
    for i, state in enumerate(states):
        alone = generate(model, state, [[]], sampling, keep_logits=True)
        assert torch.equal(alone.tokens[0], together.tokens[i])
        assert torch.allclose(alone.logits[0], together.logits[i], atol=1e-4)


def test_generation_is_that_of_transformers(windowed) -> None:
    """Through the window's edge, token by token, beside one pass over the whole text each time."""
    model, ids = windowed
    state = ActivationCache.capture(model, ids)
    sampling = Sampling(samples=1, max_tokens=5, temperature=0.0, stop_at_end=False)
    row = ablations(state, len(ids) - 1)[:1]  # so that a prefix is shared before it goes on
    found = generate(model, state, [[], row], sampling, keep_logits=True)
    text = ids
    for step, token in enumerate(found.tokens[0, 0].tolist()):
        expected = model.hf(input_ids=text[None], use_cache=False).logits[0, -1]
        assert torch.allclose(found.logits[0, 0, step], expected, atol=1e-4)
        text = torch.cat([text, torch.tensor([token])])
