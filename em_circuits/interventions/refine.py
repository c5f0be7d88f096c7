"""Which scores of a first-order ranking are worth measuring?

A gradient misjudges features whose removal is no small step. How large the effect of a feature
could be at most, to first order, is

    bound[s] = |a_s * W_dec[s]| * |d contrast / d mlp_out[layer(s), position(s)]|

whatever the angle between the two. The features with the largest bounds are ablated for real and
their scores replaced by the measured effects: one more batch of forward passes. A second-order
estimate would need a forward and a backward pass for each, which is more than measuring it.

    refined = refined_scores(model, state, groups=groups, targets=token_ids)
    refined.scores[target, feature], refined.measured[feature]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from em_circuits.contrast import Contrast
from em_circuits.graphs.gradient import demeaned_targets, feature_scores, mlp_output_gradients
from em_circuits.interventions.feature_rows import FeatureRows
from em_circuits.interventions.scan import ablation_effects
from em_circuits.interventions.state import PromptState
from em_circuits.models import Model

N_MEASURED = 100
"""Features ablated for real, unless another number is asked for."""


@dataclass(frozen=True, eq=False)
class Refined:
    """Scores of every active feature, in the order of `PromptState.active`; on the CPU."""

    scores: Float[Tensor, "target active"]
    """In logits; positive = the feature's presence raises the target."""
    measured: Bool[Tensor, " active"]
    """Which of them are measured effects; the others are first-order."""


def refined_scores(
    model: Model,
    state: PromptState,
    *,
    groups: Contrast,
    targets: Int[Tensor, " target"],
    n_measured: int = N_MEASURED,
) -> Refined:
    """Gradient scores of every active feature, the n that matter most replaced by measurement.

    Args:
        model: The model that is run.
        state: The prompt, captured on it.
        groups: Evil and safe tokens, whose contrast decides what matters.
        targets: Token ids that are scored; the groups' tokens must be among them.
        n_measured: Features ablated for real.

    Raises:
        RequestError: If the groups have no contrast, or tokens that are no targets.
    """
    weights = groups.over(targets, strict=True).float()
    rows = demeaned_targets(targets, len(state.logits))
    gradients = mlp_output_gradients(model, state.input_ids, rows)
    scores, bound = _first_order(model, state, gradients, weights)
    measured = torch.zeros(len(bound), dtype=torch.bool)
    measured[bound.topk(min(n_measured, len(bound))).indices] = True
    features = state.active.cpu()[measured]
    scores[:, measured] = ablation_effects(model, state, targets=targets, features=features).T
    return Refined(scores, measured)


def _first_order(
    model: Model,
    state: PromptState,
    gradients: Float[Tensor, "target layer pos d_model"],
    weights: Float[Tensor, " target"],
) -> tuple[Float[Tensor, "target active"], Float[Tensor, " active"]]:
    """Gradient score of every active feature, and the bound on its effect on the contrast."""
    active, activations = state.active.cpu(), state.activations.float().cpu()
    contrast = torch.einsum("t,tlpd->lpd", weights.to(gradients.device), gradients)
    steepness = contrast.norm(dim=-1).cpu()[active[:, 0], active[:, 1]]
    scores = torch.empty(len(weights), len(active))
    length = torch.empty(len(active))
    for layer in active[:, 0].unique().tolist():  # one layer's decoder rows at a time
        here = active[:, 0] == layer
        rows = FeatureRows.read(model.transcoders[layer], active[here, 2].contiguous())
        decoder = rows.decoder.float().cpu()[rows.index(active[here, 2].contiguous()).cpu()]
        written = activations[here, None] * decoder
        scores[:, here] = feature_scores(gradients, active[here], written)
        length[here] = written.norm(dim=1)
    return scores, length * steepness
