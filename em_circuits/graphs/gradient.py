"""Gradient scores: the change of each target logit per small change of a feature.

To first order, in the real model with nothing frozen:

    score[t, s] = a_s * W_dec[s] . d target_t / d mlp_out[layer(s), position(s)]

One backward pass per target serves every active feature, selected into a graph or not. The
replacement model will not do: its permanent stop-gradient hooks make the result nearly the direct
edge. The sign is the project's: positive = the feature's presence raises the target.

    weights = demeaned_targets(token_ids, vocab_size)
    scores = gradient_scores(model, input_ids, weights, active, outputs)
    scores = gradient_scores(model, input_ids, target.terms, active, outputs)

A target is a row of weights over the logits, or a term of `em_circuits.target`; where that forces
tokens after the prompt, gradients are those at the prompt's positions.

Over long prompts attention is computed by `scaled_dot_product_attention`, which keeps no
(position x position) matrix, and targets take turns.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from em_circuits.models import Model
from em_circuits.models.memory import BatchSize
from em_circuits.models.sites import Site, on_site
from em_circuits.target import Branch, Columns, gradients_of

LONG = 1024
"""Tokens above which a prompt is long."""


def demeaned_targets(
    token_ids: Int[Tensor, " target"], d_vocab: int
) -> Float[Tensor, "target vocab"]:
    """Weights over the vocabulary whose product with the logits is ``z_t`` minus their mean."""
    weights = torch.full((len(token_ids), d_vocab), -1.0 / d_vocab)
    weights[torch.arange(len(token_ids)), token_ids.cpu()] += 1.0
    return weights


def mlp_output_gradients(
    model: Model,
    input_ids: Int[Tensor, " pos"],
    targets: Columns,
    *,
    batch_size: int = 32,
) -> Float[Tensor, "target layer pos d_model"]:
    """Gradients of targets with respect to every MLP output at the prompt's positions.

    Args:
        model: The real model is differentiated (`Model.hf`), nothing in it frozen.
        input_ids: One prompt, with its beginning-of-sequence token.
        targets: Terms, or rows of weights: ``sum_v w[t, v] * logit_v`` at the last position.
        batch_size: Targets per backward pass.

    Returns:
        Float32 on the model's device: how much each target rises per unit of MLP output.
    """
    return torch.cat(list(_batches(model, input_ids, targets, batch_size=batch_size)))


def gradient_scores(
    model: Model,
    input_ids: Int[Tensor, " pos"],
    targets: Columns,
    coordinates: Int[Tensor, "active 3"],
    outputs: Float[Tensor, "active d_model"],
) -> Float[Tensor, "target active"]:
    """Gradient scores of features; of a long prompt, no more than one target's gradients at once.

    Args:
        model: See `mlp_output_gradients`.
        input_ids: One prompt.
        targets: See `mlp_output_gradients`.
        coordinates: See `feature_scores`.
        outputs: See `feature_scores`.

    Returns:
        Float32 scores, in logits.
    """
    return torch.cat(
        [
            feature_scores(part, coordinates, outputs)
            for part in _batches(model, input_ids, targets, batch_size=32)
        ]
    )


def _batches(
    model: Model, input_ids: Tensor, targets: Columns, *, batch_size: int
) -> Iterator[Float[Tensor, "target layer pos d_model"]]:
    long = len(input_ids) > LONG
    size = 1 if long else batch_size
    with _without_pattern_matrices(model) if long else contextlib.nullcontext():
        batches = BatchSize(size).over(
            len(targets),
            lambda start, stop: gradients_at(
                model, model.sites.writes, input_ids, targets[start:stop]
            ),
        )
        for _, found in batches:
            yield torch.stack(found, dim=1).float()


@contextlib.contextmanager
def _without_pattern_matrices(model: Model) -> Iterator[None]:
    hf: Any = model.hf
    if not model.decoder.plain_attention:  # soft-caps and sinks are in eager attention alone
        yield
        return
    before = hf.config._attn_implementation
    hf.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        hf.set_attn_implementation(before)


def gradients_at(
    model: Model, sites: Sequence[Site], input_ids: Int[Tensor, " pos"], targets: Columns
) -> list[Float[Tensor, "target pos _"]]:
    """Gradients of targets with respect to what stands at some sites, nothing in the model frozen.

    Args:
        model: The real model is differentiated (`Model.hf`).
        sites: Each of them once.
        input_ids: One prompt, with its beginning-of-sequence token.
        targets: Terms, or rows of weights of the logits at the last position.

    Returns:
        One tensor a site, at the prompt's positions, in the model's precision and on its device.
    """
    prompt, total = input_ids.to(model.device), None
    for branch in Branch.of(targets):
        if not branch.terms:
            continue
        # Zeros added at the sites: their gradients are those of what stands there.
        nudges: dict[int, Tensor] = {}

        def nudge(x: Tensor, i: int, nudges: dict[int, Tensor] = nudges) -> Tensor:
            nudges[i] = torch.zeros_like(x, requires_grad=True)
            return x + nudges[i]

        with torch.enable_grad(), contextlib.ExitStack() as stack:
            for i, site in enumerate(sites):
                stack.enter_context(on_site(site, partial(nudge, i=i)))
            reading = stack.enter_context(branch.reading(model.hf, prompt))
            # One forward pass serves every target; the backward passes are batched.
            values = reading.run(model.hf)[0]
            gradients = gradients_of(values, [nudges[i] for i in range(len(sites))])
        found = [gradient[:, 0, : len(prompt)] for gradient in gradients]
        total = found if total is None else [x + y for x, y in zip(total, found, strict=True)]
    assert total is not None
    return total


def feature_scores(
    gradients: Float[Tensor, "target layer pos d_model"],
    coordinates: Int[Tensor, "active 3"],
    outputs: Float[Tensor, "active d_model"],
) -> Float[Tensor, "target active"]:
    """Contract MLP-output gradients with what each feature writes there.

    Args:
        gradients: From `mlp_output_gradients`.
        coordinates: (layer, position, feature id) per active feature, sorted.
        outputs: ``a_s * W_dec[s]`` (or a difference of activations times ``W_dec[s]``).

    Returns:
        Float32 scores, in logits.
    """
    scores = torch.empty((gradients.shape[0], len(coordinates)), dtype=torch.float32)
    places, counts = torch.unique_consecutive(coordinates[:, :2].cpu(), dim=0, return_counts=True)
    start = 0
    for (layer, position), count in zip(places.tolist(), counts.tolist(), strict=True):
        rows = slice(start, start + count)
        written = outputs[rows].to(gradients.device, torch.float32)
        scores[:, rows] = (gradients[:, layer, position] @ written.T).cpu()
        start += count
    return scores
