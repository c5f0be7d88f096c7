"""Interventions on neurons are what hooks on ``down_proj`` do, in every regime."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from subjects import Subject, in_float64

from em_circuits.activation_cache import BatchedCache
from em_circuits.contrast import demeaned
from em_circuits.graphs.gradient import demeaned_targets, mlp_output_gradients
from em_circuits.interventions import (
    ActivationCache,
    Intervention,
    Mode,
    Regime,
    Treatment,
    ablation_effects,
    live_scores,
    run_rows,
)
from em_circuits.interventions.edits import Replacement
from em_circuits.interventions.integrated import integrated_effects
from em_circuits.interventions.matched_controls import random_places
from em_circuits.interventions.patching import ActivationPatch
from em_circuits.interventions.regimes import frozen
from em_circuits.interventions.steering import steer
from em_circuits.models import Model
from em_circuits.scoring import Scoring

SOME = 97
"""Every so-manieth neuron is ablated one by one."""


@contextlib.contextmanager
def hidden(model: Model, values: dict[int, torch.Tensor]) -> Iterator[dict[int, torch.Tensor]]:
    """The inputs of ``down_proj`` put at `values` where they are given; what they were."""
    seen: dict[int, torch.Tensor] = {}

    def hook(layer: int):
        def change(_module, args):
            seen[layer] = args[0][0].clone()
            return (values[layer].expand_as(args[0]),) if layer in values else None

        return change

    handles = [
        dictionary.down.register_forward_pre_hook(hook(i))  # type: ignore[attr-defined]
        for i, dictionary in enumerate(model.dictionaries)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def undisturbed(model: Model, ids: torch.Tensor) -> dict[int, torch.Tensor]:
    with hidden(model, {}) as seen:
        model.next_logits(ids)
    return seen


def some(state: ActivationCache) -> torch.Tensor:
    return state.active[::SOME].cpu()


def test_ablating_a_neuron_zeroes_the_input_of_down_proj_at_position_0_too(
    neurons: Subject,
) -> None:
    model, state = neurons.model, neurons.state()
    rows = torch.cat([some(state), state.active[state.active[:, 1] == 0][:3]])
    targets = torch.tensor([*neurons.groups.evil, *neurons.groups.safe])
    measured = ablation_effects(model, state, targets=targets, features=rows)
    before = undisturbed(model, neurons.input_ids)
    plain = demeaned(model.next_logits(neurons.input_ids).float())[targets]
    for (layer, position, neuron), found in list(zip(rows.tolist(), measured, strict=True))[::20]:
        values = before[layer].clone()
        values[position, neuron] = 0
        with hidden(model, {layer: values}):
            removed = demeaned(model.next_logits(neurons.input_ids).float())[targets]
        assert torch.allclose(found, plain - removed, atol=2e-5 * neurons.logit_scale())


@pytest.mark.parametrize("regime", [Regime.DIRECT, Regime.FROZEN_LINEAR])
def test_linear_ablations_are_the_gradient_of_the_frozen_model(
    neurons: Subject, regime: Regime
) -> None:
    """With patterns and norms frozen the derivative of the real network at the point is the
    linearisation that `frozen_linear` runs; with MLP outputs constant too, `direct`."""
    model, d_vocab = neurons.model, neurons.model.hf.config.vocab_size
    targets = torch.tensor([*neurons.groups.evil, *neurons.groups.safe])
    constant = model.sites.hooked(write=lambda _layer, output: output.detach())
    with in_float64(model):
        state = neurons.state()
        rows = some(state)
        measured = ablation_effects(model, state, targets=targets, features=rows, regime=regime)
        with frozen(model, BatchedCache.of([state]), regime), contextlib.ExitStack() as stack:
            if regime is Regime.DIRECT:
                stack.enter_context(constant)
            weights = demeaned_targets(targets, d_vocab)
            gradients = mlp_output_gradients(model, neurons.input_ids, weights)
        expected = written(model, state, rows, gradients)
    # Logits leave in float32: their rounding shows beside effects that are small.
    rounding = 2 * torch.finfo(torch.float32).eps * neurons.logit_scale()
    assert (measured - expected).abs().max() <= 1e-5 * expected.abs().max() + rounding


def written(model: Model, state: ActivationCache, rows, gradients) -> torch.Tensor:
    """``a_s w_s . gradient`` one by one."""
    return torch.stack(
        [
            float(state.dense_activations(layer)[position, neuron])
            * gradients[:, layer, position].float().cpu()
            @ model.dictionaries[layer].down.weight[:, neuron].float().cpu()  # type: ignore[attr-defined]
            for layer, position, neuron in rows.tolist()
        ]
    )


@pytest.mark.parametrize("regime", [Regime.GATES_RECOMPUTED, Regime.FROZEN_LINEAR])
def test_small_changes_agree_whether_gates_are_recomputed_or_not(
    neurons: Subject, regime: Regime
) -> None:
    """`gates_recomputed` runs the real MLP; to first order both are its derivative."""
    model = neurons.model
    with in_float64(model):
        state = neurons.state()
        places = state.active[state.active[:, 0] == 0][::SOME].tolist()
        step = 1e-5
        rows: list = [[]] + [
            [Intervention(layer=a, position=b, feature=c, mode=Mode.SCALE, value=1 + step)]
            for a, b, c in places
        ]
        logits = run_rows(model, state, rows, regime).double()
        with frozen(model, BatchedCache.of([state]), regime):
            weights = neurons.groups.weights(len(state.logits))
            gradients = mlp_output_gradients(model, neurons.input_ids, weights[None])
        expected = written(model, state, torch.tensor(places), gradients)[:, 0]
    values = logits @ weights.double()
    found = (values[1:] - values[0]) / step
    # Logits leave in float32, so a small step shows their rounding.
    noise = 4 * torch.finfo(torch.float32).eps * neurons.logit_scale() / step
    assert (found - expected).abs().max() <= 1e-3 * expected.abs().max() + noise


def test_gradient_and_joint_scores_name_every_neuron(neurons: Subject) -> None:
    model, state = neurons.model, neurons.state()
    n = len(state.active)
    assert n >= 0.99 * model.sites.n_layers * state.n_pos * model.dictionaries[0].width
    gradient = live_scores(model, state, neurons.groups, Scoring.GRADIENT)
    weights = neurons.groups.weights(len(state.logits))[None]
    gradients = mlp_output_gradients(model, neurons.input_ids, weights)
    expected = written(model, state, some(state), gradients)[:, 0]
    found = torch.from_numpy(gradient.contrasted(neurons.groups)["contrast"])[::SOME].float()
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    joint = live_scores(model, state, neurons.groups, Scoring.JOINT)
    assert len(joint) == n


def test_integrated_effects_of_all_neurons_sum_to_what_moving_them_does(neurons: Subject) -> None:
    model, state = neurons.model, neurons.state()
    start = state.activations.float().cpu()
    end = 0.9 * start
    weights = neurons.groups.weights(len(state.logits))
    effects = integrated_effects(
        model, neurons.input_ids, state.active.cpu(), start, end, weights[None], steps=8
    )[0]
    before = undisturbed(model, neurons.input_ids)
    plain = float(model.next_logits(neurons.input_ids).float() @ weights)
    with hidden(model, {layer: 0.9 * x for layer, x in before.items()}):
        moved = float(model.next_logits(neurons.input_ids).float() @ weights)
    assert float(effects.sum()) == pytest.approx(moved - plain, rel=0.02, abs=1e-3)


def test_what_down_proj_itself_changes_is_the_remainder_of_mediation(neurons: Subject) -> None:
    """The base with merged activations under its own ``down_proj``, and the rest: what the
    adapter changes in that matrix."""
    base, merged = neurons.pair.models
    patch = ActivationPatch.of(neurons.pair, neurons.input_ids, neurons.groups)
    logits = patch.component_logits()
    after = undisturbed(merged, neurons.input_ids)
    tolerance = 2e-5 * neurons.logit_scale()
    with hidden(base, after):
        expected = base.next_logits(neurons.input_ids).float()
    assert torch.allclose(logits["features"], expected, atol=tolerance)

    def add(layer: int, output: torch.Tensor) -> torch.Tensor:
        own, other = (m.dictionaries[layer].down.weight for m in (base, merged))  # type: ignore[attr-defined]
        return output + after[layer] @ (other - own).T

    with base.sites.hooked(write=add):
        expected = base.next_logits(neurons.input_ids).float()
    assert torch.allclose(logits["errors"], expected, atol=tolerance)
    together = merged.next_logits(neurons.input_ids).float()
    assert torch.allclose(logits["together"], together, atol=5 * tolerance)
    plain = base.next_logits(neurons.input_ids).float()
    moved = float((logits["errors"] - plain).abs().max())
    if neurons.name == "lifelike":  # its adapter is on down_proj
        assert moved > 0.01 * neurons.logit_scale()
    else:
        assert moved <= tolerance


def test_replaced_features_are_the_sources_under_the_recipients_down_proj(
    neurons: Subject,
) -> None:
    base, merged = neurons.pair.models
    state = ActivationCache.capture(base, neurons.input_ids)
    layers = tuple(range(base.sites.n_layers))
    row = Treatment(replacement=Replacement(layers=layers))
    found = run_rows(base, state, [row], source=merged)[0]
    with hidden(base, undisturbed(merged, neurons.input_ids)):
        expected = base.next_logits(neurons.input_ids).float()
    assert torch.allclose(found, expected, atol=2e-5 * neurons.logit_scale())


def test_an_intervention_everywhere_includes_position_0(neurons: Subject) -> None:
    model, state = neurons.model, neurons.state()
    (found,) = run_rows(model, state, [[Intervention(layer=1, feature=5)]])
    values = undisturbed(model, neurons.input_ids)[1].clone()
    values[:, 5] = 0
    with hidden(model, {1: values}):
        expected = model.next_logits(neurons.input_ids).float()
    assert torch.allclose(found, expected, atol=2e-5 * neurons.logit_scale())


def test_matched_controls_are_neurons_of_the_same_layers(neurons: Subject) -> None:
    model, state = neurons.model, neurons.state()
    chosen = [Intervention(layer=2, position=3, feature=4), Intervention(layer=1, feature=7)]
    places = random_places(model, state, chosen, n_draws=20, seed=0)
    assert (places[:, 0, 0] == 2).all() and (places[:, 1, 0] == 1).all()
    result = steer(model, neurons.input_ids, chosen, neurons.groups)
    assert result.worlds.random_control.n == 20
