"""Next tokens of both models, over the union of their most probable ones.

Both lists cover the union of base's and merged's top k, each with its own raw logit, probability
(float32 softmax over the whole vocabulary) and rank (1-based, ties by token id).

    pair_tokens = screen(pair, input_ids)
    pair_tokens.base.top, pair_tokens.merged.top
    screen_many(pair, [ids, other_ids, ...])     # the same, in batches of like length

Attention is causal, so what stands to the right of a prompt's last token cannot change its logits:
a batch is padded there, and only the last positions are turned into logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from em_circuits.models.pair import Model, ModelPair
from em_circuits.models.text import decode_token
from pivotal_tokens.errors import WorkFailed
from pivotal_tokens.schema import ModelName, NextTokenPair, NextTokens, TokenScore

TOP_K = 10
"""Tokens of each model that are compared and labelled."""
MAX_ROWS = 32
"""Prompts of one forward pass, at most."""
MAX_BATCH_TOKENS = 4096
"""Tokens of one forward pass, padding included, at most (but one prompt always goes)."""


def top_ids(logits: Float[Tensor, " vocab"], k: int) -> Int[Tensor, " k"]:
    """Ids of the k largest logits, ties by token id."""
    logits = logits.float()
    least = torch.topk(logits, min(k, len(logits))).values[-1]
    candidates = torch.nonzero(logits >= least).squeeze(-1)  # ascending ids
    order = torch.sort(logits[candidates], descending=True, stable=True).indices
    return candidates[order][:k]


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
    logits = logits.float()
    ids = token_ids.to(logits.device)
    mine = logits[ids, None]
    earlier = torch.arange(len(logits), device=logits.device) < ids[:, None]
    before = (logits > mine) | ((logits == mine) & earlier)
    return before.sum(-1).cpu() + 1


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
    """Next tokens of both real models for one prompt, without a graph.

    Args:
        pair: Both models.
        input_ids: The prompt, with its beginning-of-sequence token.
        top_k: Tokens of each model whose union is listed.

    Returns:
        Both lists, base first: raw logits, float32 probabilities and ranks from 1.
    """
    base, merged = (model.next_logits(input_ids) for model in pair.models)
    return compare(pair, base, merged, top_k=top_k)


def screen_many(
    pair: ModelPair, prompts: Sequence[Int[Tensor, " _"]], *, top_k: int = TOP_K
) -> list[NextTokenPair]:
    """What `screen` gives for each prompt, in the order given: the same lists, probabilities to
    within the rounding of a batched matrix product (below 1e-5 in float32)."""
    found: dict[int, NextTokenPair] = {}
    for rows in batches([len(ids) for ids in prompts]):
        batch = [prompts[row] for row in rows]
        base, merged = (last_logits(model, batch) for model in pair.models)
        for row, one, other in zip(rows, base, merged, strict=True):
            found[row] = compare(pair, one, other, top_k=top_k)
    return [found[row] for row in range(len(prompts))]


def batches(
    lengths: Sequence[int], *, max_rows: int = MAX_ROWS, max_tokens: int = MAX_BATCH_TOKENS
) -> Iterator[list[int]]:
    """Rows to run together: of like length, and no more tokens than allowed."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if batch and (len(batch) == max_rows or lengths[row] * (len(batch) + 1) > max_tokens):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


@torch.no_grad()
def last_logits(
    model: Model, prompts: Sequence[Int[Tensor, " _"]]
) -> Float[Tensor, "prompt vocab"]:
    """Logits after the last token of each prompt of a batch, in the model's precision."""
    lengths = torch.tensor([len(ids) for ids in prompts])
    padded = torch.nn.utils.rnn.pad_sequence(list(prompts), batch_first=True).to(model.device)
    ends, which = torch.unique(lengths - 1, return_inverse=True)
    # Logits are a vocabulary wide: only those at the ends of prompts are computed.
    logits = model.hf(
        input_ids=padded, logits_to_keep=ends.to(model.device), use_cache=False
    ).logits
    return logits[torch.arange(len(prompts)), which]


def kl_divergence(
    before: Float[Tensor, "*row vocab"], after: Float[Tensor, "*row vocab"]
) -> Float[Tensor, "*row"]:
    """KL(before || after) of next-token distributions, in nats, at least 0."""
    p, q = (x.double().log_softmax(-1) for x in (before, after))
    return (p.exp() * (p - q)).sum(-1).clamp(min=0).float()
