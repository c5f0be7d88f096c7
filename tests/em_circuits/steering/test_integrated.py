"""Integrated effects add up to what moving all features together really does."""

from __future__ import annotations

import pytest
import torch
from subjects import Subject

from em_circuits.steering import PromptState, contrast, run_rows
from em_circuits.steering.changed import ChangedFeatures
from em_circuits.steering.integrated import chosen_jointly, integrated_effects
from em_circuits.steering.mediation import gradient_effects
from em_circuits.steering.plan import Plan


def states(subject: Subject) -> tuple[PromptState, PromptState]:
    base, merged = (PromptState.capture(m, subject.input_ids) for m in subject.pair.models)
    return base, merged


def weights(subject: Subject) -> torch.Tensor:
    return subject.groups.weights(subject.pair.base.hf.config.vocab_size)


def test_the_effects_sum_to_the_joint_intervention(subject: Subject) -> None:
    base, merged = states(subject)
    changed = ChangedFeatures.between(base, merged)
    logits = run_rows(
        subject.pair.base, base, changed.plan([torch.arange(0), torch.arange(len(changed))])
    )
    before, after = contrast(logits, subject.groups).tolist()
    effects = integrated_effects(
        subject.pair.base,
        subject.input_ids,
        changed.coordinates,
        changed.own,
        changed.other,
        weights(subject),
        steps=64,
    )
    # JumpReLU gates jump on the way; ReLU has no jumps.
    near = 0.02 if subject.name == "lifelike" else 0.12
    assert float(effects.sum()) == pytest.approx(after - before, rel=near, abs=0.01)


def test_a_move_so_short_that_nothing_bends_has_the_gradients_effect(subject: Subject) -> None:
    base, merged = states(subject)
    changed = ChangedFeatures.between(base, merged)
    change = 1e-3 * changed.change
    short = ChangedFeatures(changed.coordinates, changed.own, changed.own + change)
    active = short.own > 0  # what the base does not compute, clamping does not take out of it
    kept = ChangedFeatures(short.coordinates[active], short.own[active], short.other[active])
    first = 1000 * gradient_effects(subject.pair.base, base, kept, weights(subject))
    # One at a time: clamped together, features no longer answer to one another.
    for index in first.abs().argsort(descending=True)[:5].tolist():
        one = slice(index, index + 1)
        alone = integrated_effects(
            subject.pair.base,
            subject.input_ids,
            kept.coordinates[one],
            kept.own[one],
            kept.other[one],
            weights(subject),
            steps=1,
        )
        assert 1000 * float(alone) == pytest.approx(float(first[index]), rel=0.05, abs=1e-3)


def test_points_in_several_passes_give_the_same(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, merged = states(subject)
    changed = ChangedFeatures.between(base, merged)
    given = (
        subject.pair.base,
        subject.input_ids,
        changed.coordinates,
        changed.own,
        changed.other,
        weights(subject),
    )
    whole = integrated_effects(*given)
    monkeypatch.setattr("em_circuits.steering.integrated._PASS_BYTES", 1)
    torch.testing.assert_close(integrated_effects(*given), whole, atol=1e-5, rtol=1e-4)


def test_nothing_to_move_has_no_effects(subject: Subject) -> None:
    nothing = torch.empty(0)
    effects = integrated_effects(
        subject.pair.base,
        subject.input_ids,
        torch.empty((0, 3), dtype=torch.int64),
        nothing,
        nothing,
        weights(subject),
    )
    assert effects.shape == (0,)


def test_what_is_chosen_jointly_beats_single_scores_and_hooks_are_gone(subject: Subject) -> None:
    state, model = subject.state(), subject.model
    coordinates, activations = state.active.cpu(), state.activations.float().cpu()
    zero = torch.zeros_like(activations)
    chosen = chosen_jointly(
        model, subject.input_ids, coordinates, activations, zero, weights(subject), k=10
    )
    assert len(chosen) == len(set(chosen.tolist())) == 10
    effects = integrated_effects(
        model,
        subject.input_ids,
        coordinates[chosen],
        activations[chosen],
        zero[chosen],
        weights(subject),
        steps=64,
    )
    plan = Plan.setting(2, torch.ones(10, dtype=torch.int64), coordinates[chosen], zero[chosen])
    before, after = contrast(run_rows(model, state, plan), subject.groups).tolist()
    near = 0.05 if subject.name == "lifelike" else 0.15
    assert float(effects.sum()) == pytest.approx(after - before, rel=near, abs=0.02)
    assert after < before
    assert torch.equal(model.next_logits(subject.input_ids), model.next_logits(subject.input_ids))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())
