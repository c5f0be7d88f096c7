"""Batched generation against circuit-tracer's `feature_intervention_generate`, one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from subjects import Subject, hooks_on

from em_circuits.interventions import (
    ActivationCache,
    Intervention,
    Mode,
    Regime,
    Sampling,
    Treatment,
    Where,
    generate,
    run_rows,
)

STEPS = 5
GREEDY = Sampling(samples=1, max_tokens=STEPS, temperature=0, stop_at_end=False)
UPSTREAM: dict[Regime, dict[str, Any]] = {
    Regime.DIRECT: {"constrained_layers": range(4)},
    Regime.ATTENTION_FROZEN: {"freeze_attention": True},
    Regime.FREE: {"freeze_attention": False},
}


def loudest(state: ActivationCache, n: int) -> list[list[int]]:
    """(layer, position, feature) of active features, one per layer and position."""
    order = state.activations.argsort(descending=True)
    return state.active[order][:: max(1, len(order) // (4 * n))][:n].tolist()


def upstream(subject: Subject, values: list[tuple], regime: Regime) -> torch.Tensor:
    model = subject.model.replacement
    generate_batch = model.generate
    with pytest.MonkeyPatch.context() as patch:
        # Upstream takes one prompt's ids for its hooks and a batch of them for `generate`.
        patch.setattr(model, "generate", lambda ids, **rest: generate_batch(ids[None], **rest))
        _, logits, _ = model.feature_intervention_generate(
            subject.input_ids,
            values,
            max_new_tokens=STEPS,
            do_sample=False,
            stop_at_eos=False,
            verbose=False,
            **UPSTREAM[regime],
        )
    return logits


def closeness(subject: Subject) -> float:
    return 1e-5 * max(1, subject.logit_scale())


@pytest.mark.parametrize("regime", list(UPSTREAM))
@pytest.mark.frozen
def test_every_row_equals_upstream_one_by_one(subject: Subject, regime: Regime) -> None:
    state = subject.state()
    places = loudest(state, 3)
    rows: list[list[Intervention]] = []
    oracle: list[list[tuple]] = []
    for layer, position, feature in places:
        for mode, value in ((Mode.SET, 2.5), (Mode.ABLATE, None)):
            item = {"layer": layer, "feature": feature, "mode": mode, "value": value}
            new = value or 0.0
            rows.append([Intervention(position=position, **item)])
            oracle.append([(layer, position, feature, new)])
            rows.append([Intervention(**item)])
            oracle.append([(layer, slice(1, None), feature, new)])
    made = generate(subject.model, state, rows, GREEDY, regime, keep_logits=True)
    assert made.logits is not None
    worst = 0.0
    for row, values in enumerate(oracle):
        expected = upstream(subject, values, regime)
        worst = max(worst, float((made.logits[row, 0] - expected).abs().max()))
    assert worst <= closeness(subject)
    assert (made.logits[:, 0, 0] - state.logits).abs().max() > 0.01


@pytest.mark.parametrize("mode", [Mode.SET, Mode.ADD, Mode.SCALE, Mode.ABLATE, Mode.CLAMP])
def test_with_the_cache_equals_without(subject: Subject, mode: Mode) -> None:
    """Each step's logits are those of one pass over the whole text so far."""
    state = subject.state()
    items = [
        Intervention(layer=lay, feature=f, mode=mode, value=None if mode is Mode.ABLATE else 0.7)
        for lay, _, f in loudest(state, 3)
    ]
    made = generate(subject.model, state, [[], items], GREEDY, keep_logits=True)
    assert made.logits is not None
    ids = subject.input_ids
    for step, token in enumerate(made.ids(1, 0)):
        text = ActivationCache.capture(subject.model, ids)
        expected = run_rows(subject.model, text, [items])[0]
        assert (made.logits[1, 0, step] - expected).abs().max() <= closeness(subject)
        ids = torch.cat([ids, torch.tensor([token])])


def test_positions_decide_when_a_feature_is_changed(subject: Subject) -> None:
    state = subject.state()
    layer, _, feature = state.active[0].tolist()  # of the first layer: it reaches every later one

    def row(position: Where | None) -> list[Intervention]:
        return [
            Intervention(layer=layer, feature=feature, position=position, mode=Mode.ADD, value=9.0)
        ]

    rows = [[], row(Where.LAST), row(Where.PROMPT), row(Where.GENERATED), row(None)]
    # The same tokens for all, so that only the treatments differ.
    made = generate(subject.model, state, rows, GREEDY, keep_logits=True)
    assert made.logits is not None
    first, second = made.logits[:, 0, 0], made.logits[:, 0, 1]
    close = closeness(subject)
    # Generated positions are not reached yet when the first token is drawn.
    assert (first[3] - first[0]).abs().max() <= close
    assert (first[4] - first[2]).abs().max() <= close
    assert (first[1] - first[0]).abs().max() > close
    assert (first[2] - first[1]).abs().max() > close
    # The un-steered and the generated-only row read the same first token, and differ after it.
    assert made.ids(3, 0)[:1] == made.ids(0, 0)[:1]
    assert (second[3] - second[0]).abs().max() > close


def test_prompts_of_different_lengths_share_a_batch(subject: Subject) -> None:
    model = subject.model
    states = [ActivationCache.capture(model, subject.input_ids[:n]) for n in (9, 13, 11)]
    item = Intervention(layer=1, feature=loudest(states[0], 1)[0][2], mode=Mode.ADD, value=3.0)
    for regime in Regime:
        together = run_rows(model, states, [[item]] * 3, regime)
        alone = torch.cat([run_rows(model, state, [[item]], regime) for state in states])
        assert (together - alone).abs().max() <= closeness(subject), regime
        made = generate(model, states, [[item]] * 3, GREEDY, regime, keep_logits=True)
        assert made.logits is not None
        for row, state in enumerate(states):
            one = generate(model, state, [[item]], GREEDY, regime, keep_logits=True)
            assert one.logits is not None and one.ids(0, 0) == made.ids(row, 0)
            assert (one.logits[0] - made.logits[row]).abs().max() <= closeness(subject), regime


def test_conditions_share_their_noise(subject: Subject) -> None:
    state = subject.state()
    sampling = Sampling(samples=6, max_tokens=4, temperature=1.5, seed=3)
    item = Intervention(layer=1, feature=1, mode=Mode.SCALE, value=1.0)
    noop = [item.model_copy(update={"position": state.n_pos - 1})]
    made = generate(subject.model, state, [[], noop, []], sampling, batch_size=6)
    assert torch.equal(made.tokens[0], made.tokens[1])
    assert torch.equal(made.tokens[0], made.tokens[2])
    assert len({tuple(row) for row in made.tokens[0].tolist()}) > 1  # samples differ
    other = generate(
        subject.model, state, [[]], sampling.model_copy(update={"seed": 4}), batch_size=6
    )
    assert not torch.equal(other.tokens[0], made.tokens[0])


def test_nothing_is_left_behind_after_an_exception(subject: Subject) -> None:
    state, hf = subject.state(), subject.model.hf
    before = subject.model.next_logits(subject.input_ids)
    calls = []

    def fails_at_the_third_token(*_: object) -> None:
        calls.append(0)
        if len(calls) == 3:
            raise ZeroDivisionError

    hooks = hooks_on(hf)
    broken = hf.model.layers[2].mlp.register_forward_pre_hook(fails_at_the_third_token)  # type: ignore
    with pytest.raises(ZeroDivisionError):
        generate(
            subject.model,
            state,
            [Treatment(interventions=(Intervention(layer=0, feature=1),))],
            GREEDY,
            Regime.ATTENTION_FROZEN,
        )
    broken.remove()
    assert hooks_on(hf) == hooks
    assert torch.equal(subject.model.next_logits(subject.input_ids), before)
