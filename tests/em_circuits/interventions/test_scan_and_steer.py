"""Ablation scans and steered prompts on real models, beside their controls."""

import json

import pytest
import torch
from subjects import Subject

from em_circuits.contrast import Contrast, demeaned
from em_circuits.graphs.gradient import feature_scores, mlp_output_gradients
from em_circuits.interventions import (
    ActivationCache,
    Intervention,
    Mode,
    Regime,
    ablation_effects,
    live_scores,
    on_each,
    run_rows,
    steer,
)
from em_circuits.interventions.feature_rows import decoder_vectors
from em_circuits.scoring import Scoring
from em_circuits.statistics import agreement
from pivotal_tokens.errors import RequestError


def test_an_effect_is_undisturbed_minus_ablated(subject: Subject) -> None:
    state = subject.state()
    targets = torch.tensor(subject.groups.evil)
    features = state.active[::40]
    effects = ablation_effects(subject.model, state, targets=targets, features=features)
    rows: list = [[], *([i] for i in on_each([tuple(f) for f in features.tolist()], Mode.ABLATE))]
    values = demeaned(run_rows(subject.model, state, rows))[:, targets]
    assert torch.allclose(effects, values[0] - values[1:], atol=2e-5)


@pytest.mark.parametrize("batch_size", [2, 7, 1000])
def test_a_scan_of_any_batch_size_lines_up_with_its_features(
    subject: Subject, batch_size: int
) -> None:
    state = subject.state()
    features = state.active[-40:]
    whole, parts = (
        ablation_effects(
            subject.model, state, targets=subject.groups, features=features, batch_size=size
        )
        for size in (None, batch_size)
    )
    assert whole.shape == (40, 1)
    assert torch.allclose(whole, parts, atol=2e-5 * max(1, subject.logit_scale()))


def test_a_scan_of_no_feature_is_empty(subject: Subject) -> None:
    none = torch.empty((0, 3), dtype=torch.int64)
    found = ablation_effects(subject.model, subject.state(), targets=subject.groups, features=none)
    assert found.shape == (0, 1)


def gradient_scores(subject: Subject, state: ActivationCache) -> tuple[torch.Tensor, torch.Tensor]:
    weights = subject.groups.weights(len(state.logits))[None]
    gradients = mlp_output_gradients(subject.model, subject.input_ids, weights)
    vectors = decoder_vectors(subject.model, state.active[:, 0], state.active[:, 2])
    outputs = state.activations[:, None] * vectors
    return feature_scores(gradients, state.active, outputs)[0], gradients[0]


def test_the_gradient_predicts_the_scan_and_does_better_with_ablations(subject: Subject) -> None:
    state = subject.state()
    first_order, _ = gradient_scores(subject, state)
    targets = torch.tensor([*subject.groups.evil, *subject.groups.safe])
    result = live_scores(
        subject.model,
        state,
        subject.groups,
        Scoring.GRADIENT_ABLATION,
        targets=targets,
        n_measured=100,
    )
    better = torch.from_numpy(result.contrasted(subject.groups)["contrast"]).float()
    really = torch.from_numpy(result["measured"])
    measured = ablation_effects(subject.model, state, targets=subject.groups)[:, 0]
    found, refined = (agreement(scores, measured) for scores in (first_order, better))
    assert int(really.sum()) == 100
    scale = float(measured.abs().max())
    assert torch.allclose(better[really], measured[really], atol=1e-4 * scale, rtol=1e-3)
    left = ~really
    assert torch.allclose(better[left], first_order[left], atol=1e-4 * scale, rtol=1e-3)
    assert refined.pearson > max(found.pearson, 0.9)
    if subject.name == "organism":  # random weights are too curved for a first-order score
        assert found.pearson > 0.9 and found.spearman > 0.95 and found.top20 >= 15
        assert refined.pearson > 0.99 and refined.top20 >= 19


def test_scores_need_the_contrast_among_their_targets(subject: Subject) -> None:
    some = torch.tensor(subject.groups.evil)
    with pytest.raises(RequestError, match="no targets"):
        by = Scoring.GRADIENT_ABLATION
        live_scores(subject.model, subject.state(), subject.groups, by, targets=some)


def test_steering_reports_three_conditions(subject: Subject) -> None:
    state = subject.state()
    effects, _ = gradient_scores(subject, state)
    top = state.active[effects.argsort(descending=True)[:10]].tolist()
    items = on_each([tuple(p) for p in top], Mode.SCALE, 0.0)
    result = steer(subject.model, subject.input_ids, items, subject.groups)
    rows = run_rows(subject.model, state, [[], items])
    assert result.unsteered.contrast == pytest.approx(float(subject.groups.value(rows)[0]), 1e-4)
    assert result.steered.contrast == pytest.approx(float(subject.groups.value(rows)[1]), 1e-4)
    # The features that carry the contrast lower it; others like them do so less.
    assert result.steered.contrast < result.random_control.contrast.low
    assert result.random_control.n == 20
    record = json.loads(json.dumps(result.model_dump(mode="json"), allow_nan=False))
    assert set(record["worlds"]) == {"unsteered", "steered", "random_control"}
    assert set(record["worlds"]["steered"]) == {"evil_mass", "contrast", "top"}
    assert set(record["worlds"]["random_control"]["evil_mass"]) == {"mean", "sd", "low", "high"}
    assert record["intervention"]["mode"] == "scale" and record["intervention"]["value"] == 0.0
    assert len(record["worlds"]["steered"]["top"]) == 10


def test_a_no_op_changes_nothing(subject: Subject) -> None:
    state = subject.state()
    items = on_each([tuple(p) for p in state.active[::90].tolist()], Mode.SCALE, 1.0)
    result = steer(subject.model, subject.input_ids, items, subject.groups)
    assert result.steered == result.unsteered
    assert result.random_control.contrast.sd <= 1e-5 * max(1, subject.logit_scale())


def test_without_a_contrast_steering_reports_none(subject: Subject) -> None:
    items = on_each([tuple(subject.state().active[3].tolist())], Mode.ABLATE)
    result = steer(subject.model, subject.input_ids, items, Contrast((5,), ()))
    assert result.steered.contrast is None and result.random_control.contrast is None
    assert result.model_dump(mode="json")["worlds"]["unsteered"]["contrast"] is None


def test_a_control_of_fewer_than_20_draws_is_refused(subject: Subject) -> None:
    items = [Intervention(layer=0, position=1, feature=0)]
    with pytest.raises(RequestError, match="too few"):
        steer(subject.model, subject.input_ids, items, subject.groups, n_random=19)


def test_a_bad_intervention_is_refused_before_anything_runs(subject: Subject) -> None:
    items = [Intervention(layer=77, position=1, feature=0)]
    with pytest.raises(RequestError, match="layer 77"):
        steer(subject.model, subject.input_ids, items, subject.groups)
    with pytest.raises(RequestError, match="no intervention"):
        steer(subject.model, subject.input_ids, [], subject.groups, regime=Regime.FREE)
