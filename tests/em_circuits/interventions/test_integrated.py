"""Integrated effects add up to what moving all features together really does."""

from __future__ import annotations

import pytest
import torch
from subjects import Subject, hooks_on

from em_circuits.graphs.gradient import feature_scores, mlp_output_gradients
from em_circuits.interventions import ActivationCache, run_rows
from em_circuits.interventions.edits import EditBatch
from em_circuits.interventions.feature_rows import decoder_vectors
from em_circuits.interventions.integrated import integrated_effects, joint_scores
from em_circuits.interventions.patching import ActivationDiff


def states(subject: Subject) -> tuple[ActivationCache, ActivationCache]:
    base, merged = (ActivationCache.capture(m, subject.input_ids) for m in subject.pair.models)
    return base, merged


def weights(subject: Subject) -> torch.Tensor:
    """The contrast as one target."""
    return subject.groups.weights(subject.pair.base.hf.config.vocab_size)[None]


def test_the_effects_sum_to_the_joint_intervention(subject: Subject) -> None:
    base, merged = states(subject)
    changed = ActivationDiff.between(base, merged)
    logits = run_rows(
        subject.pair.base, base, changed.edits([torch.arange(0), torch.arange(len(changed))])
    )
    before, after = subject.groups.value(logits).tolist()
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
    changed = ActivationDiff.between(base, merged)
    change = 1e-3 * changed.change
    short = ActivationDiff(changed.coordinates, changed.own, changed.own + change)
    active = short.own > 0  # what the base does not compute, clamping does not take out of it
    kept = ActivationDiff(short.coordinates[active], short.own[active], short.other[active])
    first = 1000 * kept.gradient_effects(subject.pair.base, base, weights(subject)[0])
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
    changed = ActivationDiff.between(base, merged)
    given = (
        subject.pair.base,
        subject.input_ids,
        changed.coordinates,
        changed.own,
        changed.other,
        weights(subject),
    )
    whole = integrated_effects(*given)
    monkeypatch.setattr("em_circuits.interventions.integrated._PASS_BYTES", 1)
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
    assert effects.shape == (1, 0)


def test_joint_scores_of_each_group_sum_to_ablating_it_for_real(subject: Subject) -> None:
    if subject.name == "organism":
        pytest.skip(
            "ablating half of all features moves JumpReLU gates, whose jumps have no gradient"
        )
    state, model = subject.state(), subject.model
    evil, safe = subject.groups.evil, subject.groups.safe
    targets = torch.tensor([*evil, *safe])
    scores = joint_scores(model, state, subject.groups, targets)
    joint = scores[: len(evil)].mean(0) - scores[len(evil) :].mean(0)
    first = gradient_contrast(subject, state)
    zero = torch.zeros(len(state.active))
    for group in (first > 0, first < 0):
        plan = EditBatch.setting(
            2,
            torch.ones(int(group.sum()), dtype=torch.int64),
            state.active.cpu()[group],
            zero[group],
        )
        whole, ablated = subject.groups.value(run_rows(model, state, plan)).tolist()
        assert float(joint[group].sum()) == pytest.approx(whole - ablated, rel=0.1, abs=0.1)


def test_ten_by_joint_score_do_more_together_than_ten_by_gradient(subject: Subject) -> None:
    if subject.name != "organism":
        pytest.skip("random weights have no features that work together")
    state, model = subject.state(), subject.model
    evil, safe = subject.groups.evil, subject.groups.safe
    scores = joint_scores(model, state, subject.groups, torch.tensor([*evil, *safe]))
    joint = scores[: len(evil)].mean(0) - scores[len(evil) :].mean(0)
    values = []
    for by in (joint, gradient_contrast(subject, state)):
        top = by.argsort(descending=True)[:10]
        plan = EditBatch.setting(
            1, torch.zeros(10, dtype=torch.int64), state.active.cpu()[top], torch.zeros(10)
        )
        values.append(float(subject.groups.value(run_rows(model, state, plan))[0]))
    assert values[0] < values[1]


def test_every_hook_is_gone_afterwards(subject: Subject) -> None:
    before, hooks = subject.model.next_logits(subject.input_ids), hooks_on(subject.model.hf)
    targets = torch.tensor(subject.groups.evil)
    joint_scores(subject.model, subject.state(), subject.groups, targets)
    assert torch.equal(subject.model.next_logits(subject.input_ids), before)
    assert hooks_on(subject.model.hf) == hooks


def gradient_contrast(subject: Subject, state: ActivationCache) -> torch.Tensor:
    weights_of = subject.groups.weights(len(state.logits))[None]
    gradients = mlp_output_gradients(subject.model, state.input_ids, weights_of)
    active = state.active.cpu()
    outputs = decoder_vectors(subject.model, active[:, 0], active[:, 2])
    outputs = outputs * state.activations.float().cpu()[:, None]
    return feature_scores(gradients, active, outputs)[0]
