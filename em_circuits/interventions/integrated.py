"""Integrated effects: each feature's contribution when many of them change together.

First-order scores look at one end of the way: with the base undisturbed, a persona feature whose
work only shows once others work too has no gradient. Here all listed features move together along
the straight line from `start` to `end`, each clamped to its place on the line, everything else
running free, and the gradient is averaged over the line (integrated gradients, Sundararajan et al.
2017, arXiv:1703.01365, eq. 1, with features in place of inputs):

    effect[s] = (end_s - start_s) * mean over the line of  W_dec[s] . d target / d mlp_out

Their sum is the effect of moving all of them for real, up to the midpoint rule's error and, with
JumpReLU transcoders, the jumps of gates that the moving features' own encoders pass on the way.

    effects = integrated_effects(model, ids, coordinates, start, end, weights[None])[0]
    scores = joint_scores(model, state, contrast, targets)      # for ablating together
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from em_circuits.activation_cache import ActivationCache
from em_circuits.contrast import Contrast
from em_circuits.graphs.gradient import demeaned_targets, mlp_output_gradients
from em_circuits.interventions.feature_rows import FeatureRows, written_scores
from em_circuits.models import Model
from em_circuits.models.memory import BatchSize
from em_circuits.target import Branch, Columns, Target, gradients_of

STEPS = 4
"""Points of the midpoint rule."""
_PASS_BYTES = 2**28
"""Activations of the moving features in one forward pass, roughly."""


@dataclass(frozen=True)
class _LayerMove:
    """The features of one layer that move."""

    rows: FeatureRows
    which: Int64[Tensor, " op"]
    position: Int64[Tensor, " op"]
    start: Float[Tensor, " op"]
    change: Float[Tensor, " op"]


def integrated_effects(
    model: Model,
    input_ids: Int[Tensor, " pos"],
    coordinates: Int[Tensor, "op 3"],
    start: Float[Tensor, " op"],
    end: Float[Tensor, " op"],
    targets: Columns,
    *,
    steps: int = STEPS,
) -> Float[Tensor, "target op"]:
    """Effect on targets of each feature's move from `start` to `end`, all moving.

    Args:
        model: The real model is run, nothing frozen.
        input_ids: One prompt, with its beginning-of-sequence token.
        coordinates: (layer, position, feature id), sorted.
        start: Activations at which the line begins.
        end: Activations at which it ends.
        targets: Terms, or rows of weights: ``sum_v w[t, v] * logit_v`` at the last position.
        steps: Points of the midpoint rule.

    Returns:
        Float32 on the CPU, in the targets' units; a row sums to target(end) - target(start).
    """
    moves = _moves(model, coordinates, start, end - start)
    total: Tensor | None = None
    wide = sum(len(move.rows.ids) for move in moves.values())
    row = max(1, 3 * len(input_ids) * wide * model.dtype.itemsize)
    points = (torch.arange(steps) + 0.5) / steps
    batches = BatchSize(max(1, _PASS_BYTES // row)).over(
        steps, lambda a, b: _gradients(model, input_ids, moves, points[a:b], targets)
    )
    for _, gradients in batches:
        total = gradients if total is None else total + gradients
    assert total is not None
    return written_scores(model, total / steps, coordinates, end - start)


def joint_scores(
    model: Model,
    state: ActivationCache,
    contrast: Contrast | Target,
    targets: Int[Tensor, " target"] | None = None,
) -> Float[Tensor, "target active"]:
    """Score of every active feature on every target, features that push one way ablated together.

    Features whose gradient raises the contrast are one group, those that lower it the other; each
    group goes from its activations to zero along its own line. Positive = presence raises.

    Args:
        model: The real model is run, nothing frozen.
        state: The prompt, captured on it.
        contrast: Evil and safe tokens, or a target: parts the features.
        targets: Token ids; None for the terms of a target.

    Returns:
        Float32 on the CPU, in demeaned logits (a target's terms: in their units); a feature without
        a gradient scores 0.
    """
    coordinates, activations = state.active.cpu(), state.activations.float().cpu()
    d_vocab = len(state.logits)
    columns: Columns
    if isinstance(contrast, Target):
        columns = contrast.terms
        first = mlp_output_gradients(model, state.input_ids, columns)
        pushes = contrast.over().float() @ written_scores(model, first, coordinates, activations)
    else:
        assert targets is not None
        columns = demeaned_targets(targets, d_vocab)
        first = mlp_output_gradients(model, state.input_ids, contrast.weights(d_vocab)[None])
        pushes = written_scores(model, first, coordinates, activations)[0]
    scores = torch.zeros((len(columns), len(coordinates)))
    for group in (pushes > 0, pushes < 0):
        scores[:, group] = -integrated_effects(
            model,
            state.input_ids,
            coordinates[group],
            activations[group],
            torch.zeros(int(group.sum())),
            columns,
        )
    return scores


def _moves(
    model: Model, coordinates: Tensor, start: Tensor, change: Tensor
) -> dict[int, _LayerMove]:
    device, found = model.device, {}
    for layer in coordinates[:, 0].unique().tolist():
        mask = coordinates[:, 0] == layer
        ids = coordinates[mask, 2].contiguous()
        rows = FeatureRows.read(model.dictionaries[layer], ids)
        found[layer] = _LayerMove(
            rows,
            rows.index(ids),
            coordinates[mask, 1].to(device),
            start[mask].to(device),
            change[mask].to(device),
        )
    return found


def _gradients(
    model: Model,
    input_ids: Tensor,
    moves: dict[int, _LayerMove],
    points: Tensor,
    targets: Columns,
) -> Float[Tensor, "target layer pos d_model"]:
    """Gradients of the targets with respect to the MLP outputs, summed over some points."""
    found = [
        _branch_gradients(model, input_ids, moves, points, branch)
        for branch in Branch.of(targets)
        if branch.terms
    ]
    return sum(found[1:], start=found[0])


def _branch_gradients(
    model: Model, input_ids: Tensor, moves: dict[int, _LayerMove], points: Tensor, branch: Branch
) -> Float[Tensor, "target layer pos d_model"]:
    n_rows, n_prompt = len(points), len(input_ids)
    shape = (n_rows, n_prompt + len(branch.forced), model.dictionaries[0].d_model)
    # Below the first layer that moves nothing is asked for, and nothing is differentiated.
    first = min(moves, default=0)
    nudges = [
        torch.zeros(shape, dtype=model.dtype, device=model.device, requires_grad=True)
        for _ in range(first, model.sites.n_layers)
    ]
    seen: dict[int, Tensor] = {}
    shifts: dict[int, Callable[[int], Tensor]] = {}
    on = points.to(model.device)

    def read(layer: int, inputs: Tensor) -> None:
        seen[layer] = inputs

    def write(layer: int, output: Tensor) -> Tensor:
        inputs = seen.pop(layer)
        if layer in moves:
            shifts[layer] = _shift(moves[layer], inputs, on)
        for below, shift in shifts.items():
            if layer - below < model.dictionaries[below].n_writes:
                output = output + shift(layer - below)
        return output + nudges[layer - first] if layer >= first else output

    with (
        torch.enable_grad(),
        model.sites.hooked(read, write),
        branch.reading(model.hf, input_ids.to(model.device)) as reading,
    ):
        found = gradients_of(reading.run(model.hf, n_rows).sum(0), nudges)
    known = torch.stack([g[:, :, :n_prompt].sum(1) for g in found], dim=1).float()
    return torch.cat([known.new_zeros(len(known), first, *known.shape[2:]), known], dim=1)


def _shift(move: _LayerMove, inputs: Tensor, points: Tensor) -> Callable[[int], Tensor]:
    """What clamping a layer's features to their places on the line adds to the MLP output so many
    layers further up."""
    wanted = move.start + points[:, None] * move.change
    # At every position: a product of two matrices, where rows gathered pair by pair would be held
    # for differentiation, as long as the model is wide.
    every = move.rows.encoder.encode(inputs)
    at = (slice(None), move.position, move.which)
    change = torch.zeros_like(every)
    change[at] = wanted.to(every.dtype) - every[at]
    return lambda write: change @ move.rows.decoders[write]
