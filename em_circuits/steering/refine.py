"""Which scores of a first-order ranking are worth measuring?

A gradient misjudges features whose removal is no small step. How large the effect of a feature
could be at most, to first order, is

    bound[s] = |a_s * W_dec[s]| * |d contrast / d mlp_out[layer(s), position(s)]|

whatever the angle between the two. The features with the largest bounds are ablated for real and
their scores replaced by the measured effects: one more batch of forward passes.

    scores = refined_scores(model, state, scores, gradients, groups=groups)
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from em_circuits.models import Model
from em_circuits.steering.contrast import TokenGroups
from em_circuits.steering.scan import ablation_effects
from em_circuits.steering.state import PromptState
from em_circuits.steering.substitutes import decoder_norms


def refined_scores(
    model: Model,
    state: PromptState,
    scores: Float[Tensor, " active"],
    gradients: Float[Tensor, "layer pos d_model"],
    *,
    groups: TokenGroups,
    n_measured: int = 100,
) -> Float[Tensor, " active"]:
    """Gradient scores of every active feature, the n that matter most replaced by measurement.

    Args:
        model: The model that is run.
        state: The prompt, captured on it.
        scores: First-order score of each of `state.active` on the evil-minus-safe contrast.
        gradients: Of that contrast with respect to the MLP outputs.
        groups: Evil and safe tokens.
        n_measured: Features ablated for real.

    Returns:
        Float32 in logits, on the CPU; positive = the feature's presence raises the contrast.

    Raises:
        RequestError: If the groups have no contrast.
    """
    active = state.active.cpu()
    steepness = gradients.norm(dim=-1).cpu()[active[:, 0], active[:, 1]]
    bound = state.activations.float().cpu().abs() * decoder_norms(model, active) * steepness
    chosen = bound.topk(min(n_measured, len(bound))).indices
    refined = scores.float().cpu().clone()
    refined[chosen] = ablation_effects(model, state, targets=groups, features=active[chosen])[:, 0]
    return refined
