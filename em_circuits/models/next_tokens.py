"""What would each model say next, and over which tokens are the two compared?

Both lists cover the union of base's and merged's top k, each with its own raw logit, probability
(float32 softmax over the whole vocabulary) and rank (1-based, ties by token id).

    pair_tokens = screen(pair, input_ids)
    pair_tokens.base.top, pair_tokens.merged.top
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from em_circuits.models.pair import ModelPair
from em_circuits.models.text import decode_token
from pivotal_tokens.errors import WorkFailed
from pivotal_tokens.schema import ModelName, NextTokenPair, NextTokens, TokenScore

TOP_K = 10
"""Tokens of each model that are compared and labelled."""


def top_ids(logits: Float[Tensor, " vocab"], k: int) -> Int[Tensor, " k"]:
    """Ids of the k largest logits, ties by token id."""
    return torch.sort(logits.float(), descending=True, stable=True).indices[:k]


def union_of_top(
    base: Float[Tensor, " vocab"], merged: Float[Tensor, " vocab"], k: int = TOP_K
) -> Int[Tensor, " union"]:
    """Token ids in the top k of either model: base's in order, then merged's that are new."""
    ids = [*top_ids(base, k).tolist(), *top_ids(merged, k).tolist()]
    return torch.tensor(list(dict.fromkeys(ids)))


def ranks_of(
    logits: Float[Tensor, " vocab"], token_ids: Int[Tensor, " token"]
) -> Int[Tensor, " token"]:
    """1-based ranks over the vocabulary; equal logits are ordered by token id."""
    order = torch.sort(logits.float(), descending=True, stable=True).indices
    position = torch.empty_like(order)
    position[order] = torch.arange(len(order), device=order.device)
    return position[token_ids.to(order.device)].cpu() + 1


def token_scores(
    logits: Float[Tensor, " vocab"], token_ids: Int[Tensor, " token"], tokenizer
) -> tuple[TokenScore, ...]:
    """One model's figures for `token_ids`, sorted by rank.

    Raises:
        WorkFailed: If a logit is NaN or infinite.
    """
    if not torch.isfinite(logits).all():
        raise WorkFailed("logits are not finite; em-circuits doctor --prompt TEXT finds the layer")
    probabilities = torch.softmax(logits.float(), -1).cpu()
    ranks = ranks_of(logits, token_ids)
    scores = [
        TokenScore(
            token_id=token,
            text=decode_token(tokenizer, token),
            logit=float(logits[token]),
            probability=float(probabilities[token]),
            rank=rank,
        )
        for token, rank in zip(token_ids.tolist(), ranks.tolist(), strict=True)
    ]
    return tuple(sorted(scores, key=lambda score: score.rank))


def compare(
    pair: ModelPair,
    base: Float[Tensor, " vocab"],
    merged: Float[Tensor, " vocab"],
    *,
    top_k: int = TOP_K,
) -> NextTokenPair:
    """Both lists from both models' last-position logits."""
    union = union_of_top(base, merged, top_k)

    def tokens(name: ModelName, logits: Tensor) -> NextTokens:
        scores = token_scores(logits, union, pair.tokenizer)
        fingerprint = pair.model(name).fingerprint
        return NextTokens(model=name, fingerprint=fingerprint, top_k=top_k, tokens=scores)

    return NextTokenPair(base=tokens("base", base), merged=tokens("merged", merged))


def screen(pair: ModelPair, input_ids: Int[Tensor, " pos"], *, top_k: int = TOP_K) -> NextTokenPair:
    """Next tokens of both real models for one prompt, without a graph."""
    base, merged = (model.next_logits(input_ids) for model in pair.models)
    return compare(pair, base, merged, top_k=top_k)
