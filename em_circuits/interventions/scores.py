"""Scores of every active feature of a prompt, by methods that run the model.

`gradient` is first order. It misjudges features whose removal is no small step, so
`gradient+ablation` really ablates those that could matter most. How large the effect of a feature
could be at most, to first order, is

    bound[s] = |a_s * W_dec[s]| * |d contrast / d mlp_out[layer(s), position(s)]|

whatever the angle between the two; the scores of the features with the largest bounds are replaced
by measured effects: one more batch of forward passes. A second-order estimate would need a forward
and a backward pass for each, which is more than measuring it.

    table = live_scores(model, state, words, by=Scoring.GRADIENT_ABLATION)
    table.ranked(words).top(10)
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from em_circuits.activation_cache import ActivationCache
from em_circuits.contrast import Contrast
from em_circuits.graphs.gradient import demeaned_targets, mlp_output_gradients
from em_circuits.intervention import Regime
from em_circuits.interventions.feature_rows import written_bounds, written_scores
from em_circuits.interventions.greedy_selection import CHOSEN, greedy_scores
from em_circuits.interventions.integrated import joint_scores
from em_circuits.interventions.scan import ablation_effects
from em_circuits.models import Model
from em_circuits.scoring import N_MEASURED, Scoring
from em_circuits.table import FeatureTable
from em_circuits.target import Columns, Target


def live_scores(
    model: Model,
    state: ActivationCache,
    contrast: Contrast | Target,
    by: Scoring | str,
    *,
    targets: Int[Tensor, " target"] | None = None,
    n_measured: int = N_MEASURED,
    n_chosen: int = CHOSEN,
    regime: Regime = Regime.FREE,
) -> FeatureTable:
    """Score of every active feature on some target tokens, or on the terms of a target.

    Args:
        model: The model that is run.
        state: The prompt, captured on it.
        contrast: Evil and safe tokens, or a target: decides what matters.
        by: `gradient`, or a method that a stored graph cannot answer.
        targets: Token ids that are scored, those of the contrast among them; None for these alone.
            A target's terms are scored instead.
        n_measured: Features that `gradient+ablation` ablates for real.
        n_chosen: Features that `greedy` chooses by measurement; the others follow by joint score.
        regime: What is held fixed while `measured` ablates.

    Returns:
        In the order of ``state.active``, in logits (a target's terms: in their units); ``measured``
        says which scores are effects of really ablating, ``joined`` at which step of `greedy` a
        feature joined, NaN for never.

    Raises:
        RequestError: If there is no contrast, or a token of it is no target.
    """
    by = Scoring(by)
    columns: Columns
    if isinstance(contrast, Target):
        columns, targets = contrast.terms, torch.arange(len(contrast.terms))
        unit, about = contrast.unit, {"target": contrast.name}
    else:
        if targets is None:
            targets = torch.tensor(sorted(contrast.require().token_ids))
        columns, unit, about = targets, "logits", {}
    measured = torch.full((len(state.active),), by is Scoring.MEASURED)
    more: dict[str, Any] = {}
    match by:
        case Scoring.GRADIENT:
            scores, _ = first_order(model, state, contrast, targets)
        case Scoring.GRADIENT_ABLATION:
            scores, bound = first_order(model, state, contrast, targets)
            measured[bound.topk(min(n_measured, len(bound))).indices] = True
            chosen = state.active.cpu()[measured]
            scores[:, measured] = ablation_effects(model, state, targets=columns, features=chosen).T
        case Scoring.MEASURED:
            scores = ablation_effects(model, state, targets=columns, regime=regime).T
        case Scoring.JOINT:
            scores = joint_scores(model, state, contrast, targets)
        case Scoring.GREEDY:
            scores, order = greedy_scores(model, state, contrast, targets, k=n_chosen)
            measured[order] = True
            joined = torch.full((len(measured),), torch.nan)
            joined[order] = torch.arange(len(order)).float()
            more["joined"] = joined
        case _:
            raise ValueError(f"{by} is a graph's, see features.rank.stored_scores")
    return FeatureTable.of(
        state.active.cpu(),
        by=str(by),
        unit=unit,
        targets=targets,
        per_target=scores,
        about={"n_pos": state.n_pos, **about},
        activation=state.activations.float().cpu(),
        measured=measured,
        **more,
    )


def first_order(
    model: Model,
    state: ActivationCache,
    contrast: Contrast | Target,
    targets: Int[Tensor, " target"],
) -> tuple[Float[Tensor, "target active"], Float[Tensor, " active"]]:
    """Gradient score of every active feature, and the bound on its effect on the contrast."""
    weights = contrast.over(targets, strict=True).float()
    rows: Columns
    if isinstance(contrast, Target):
        rows = contrast.terms
    else:
        rows = demeaned_targets(targets, len(state.logits))
    gradients = mlp_output_gradients(model, state.input_ids, rows)
    active, activations = state.active.cpu(), state.activations.float().cpu()
    slope = torch.einsum("t,tlpd->lpd", weights.to(gradients.device), gradients)
    scores = written_scores(model, gradients, active, activations)
    bounds = written_bounds(model, slope.norm(dim=-1).cpu(), active)
    return scores, activations.abs() * bounds
