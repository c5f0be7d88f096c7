"""How much would each target logit move if a feature were a little more active?

To first order, in the real model with nothing frozen:

    score[t, s] = a_s * W_dec[s] . d target_t / d mlp_out[layer(s), position(s)]

One backward pass per target serves every active feature, selected into a graph or not. The
replacement model will not do: its permanent stop-gradient hooks make the result nearly the direct
edge. The sign is the project's: positive = the feature's presence raises the target.

    weights = demeaned_targets(token_ids, vocab_size)
    gradients = mlp_output_gradients(model, input_ids, weights)
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from em_circuits.models import Model


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
    target_weights: Float[Tensor, "target vocab"],
    *,
    batch_size: int = 32,
) -> Float[Tensor, "target layer pos d_model"]:
    """Gradients of weighted last-position logits with respect to every MLP output.

    Args:
        model: The real model is differentiated (`Model.hf`), nothing in it frozen.
        input_ids: One prompt, with its beginning-of-sequence token.
        target_weights: Row t defines the target ``sum_v w[t, v] * logit_v`` at the last position.
        batch_size: Targets per backward pass.

    Returns:
        Float32 on the model's device: how much each target rises per unit of MLP output.
    """
    n_targets, n_pos = target_weights.shape[0], len(input_ids)
    config: Any = model.hf.config
    width: int = config.hidden_size
    result = torch.empty(
        (n_targets, model.sites.n_layers, n_pos, width), dtype=torch.float32, device=model.device
    )
    for start in range(0, n_targets, batch_size):
        rows = target_weights[start : start + batch_size].to(model.device)
        result[start : start + len(rows)] = _batch_gradients(model, input_ids, rows, width)
    return result


def _batch_gradients(
    model: Model, input_ids: Tensor, weights: Tensor, width: int
) -> Float[Tensor, "target layer pos d_model"]:
    # Zero perturbations added at the MLP outputs: their gradients are the outputs' gradients.
    nudges = [
        torch.zeros(
            (1, len(input_ids), width),
            dtype=model.dtype,
            device=model.device,
            requires_grad=True,
        )
        for _ in range(model.sites.n_layers)
    ]
    ids = input_ids.to(model.device)[None]
    with torch.enable_grad(), model.sites.hooked(write=lambda layer, out: out + nudges[layer]):
        logits = model.hf(input_ids=ids, use_cache=False).logits[0, -1].float()
        targets = (weights * logits).sum(1)
        # One forward pass serves every target; the backward passes are batched.
        each = torch.eye(len(weights), dtype=targets.dtype, device=targets.device)
        gradients = torch.autograd.grad(targets, nudges, each, is_grads_batched=True)
    return torch.stack([gradient[:, 0] for gradient in gradients], dim=1).float()


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
