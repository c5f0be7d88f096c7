"""Ranks of an adapter scaled for real, and the scores that predict it.

With factors c on the ranks, every adapted module responds with

    f(c) (W + scaling B diag(c) A),   f = 1, with DoRA m / |W + scaling B diag(c) A|

through hooks on the merged model, a row of a batch per set of factors, everything downstream
running free. c = 1 is the merged model, c = 0 the base (with DoRA, the base's directions at the
merged magnitudes), c = s an adapter of s times the alpha, and 0 in one place drops that rank:

    effect[r] = target(1) - target(1 without r)           positive: its presence raises the target
    gradient  = d target / d c at c = 1                   sum over positions of its nodes' scores
    integrated = mean over t in (0, 1) of d target / d c at c = t      sums to merged minus base

All parts' ranks stand side by side on one axis, in the order of the parts.

    parts = adapter_parts(pair)
    effects = drop_effects(pair.merged, parts, input_ids, weights[None])     # target x rank
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from em_circuits.bases.adapters import AdapterPart
from em_circuits.graphs.held import captured, site_gradients
from em_circuits.models import Model
from pivotal_tokens.errors import RequestError

STEPS = 8
"""Points of the midpoint rule."""
ROWS = 64
"""Rows of one batched pass."""


def n_ranks(parts: Sequence[AdapterPart]) -> int:
    """Length of the rank axis."""
    return sum(part.n_nodes for part in parts)


@contextlib.contextmanager
def scaled_ranks(
    parts: Sequence[AdapterPart],
    factors: Float[Tensor, "row rank"],
    *,
    instead: Sequence[Float[Tensor, "_ _"]] | None = None,
) -> Iterator[None]:
    """Forward passes of the merged model with factors on the ranks, a row of the batch each.

    Args:
        parts: Of the merged model's adapter.
        factors: Differentiable.
        instead: By part, what its ranks write instead of their own vectors, times the factors.

    Raises:
        RequestError: With DoRA on an embedding that the head shares.
    """

    def respond(module: Any, args: tuple, output: Tensor, answer: Any) -> Tensor:
        return answer(module, args[0], output)

    with contextlib.ExitStack() as stack:
        start = 0
        for i, part in enumerate(parts):
            mine = factors[:, start : start + part.n_nodes]
            other = None if instead is None else instead[i]
            start += part.n_nodes
            module = part.writes[0].module

            answer = partial(_response, part, factors=mine, instead=other)
            hook = partial(respond, answer=answer)
            stack.callback(module.register_forward_hook(hook).remove)
            if part.tied_head is not None:
                if part.dora is not None:
                    raise RequestError(
                        f"{part.name} is tied to the head and has DoRA: its ranks cannot be scaled"
                    )
                answer = partial(_head_response, part, factors=mine, instead=other)
                hook = partial(respond, answer=answer)
                stack.callback(part.tied_head.register_forward_hook(hook).remove)
        yield


def _response(
    part: AdapterPart,
    module: Any,
    x: Tensor,
    output: Tensor,
    factors: Float[Tensor, "row node"],
    instead: Float[Tensor, "node d_write"] | None,
) -> Tensor:
    """What a module answers under other factors, from what it answers merged."""
    a = part.responses(x).float()
    factors = factors.to(a)[:, None]
    own = factors - 1 if instead is None else -torch.ones_like(factors)
    change = (a * own) @ part.up
    result = output.float() + change
    if part.dora is not None:
        bias = 0 if getattr(module, "bias", None) is None else module.bias.float()
        ones = torch.ones_like(own)
        ratio = part.dora.norm(ones) / part.dora.norm(ones + own)
        result = bias + ratio * (result - bias)
    if instead is not None:
        result = result + (a * factors) @ instead
    return result.to(output.dtype)


def _head_response(
    part: AdapterPart,
    _module: Any,
    x: Tensor,
    output: Tensor,
    factors: Float[Tensor, "row node"],
    instead: Float[Tensor, "node d_write"] | None,
) -> Tensor:
    """The same of a head that shares the embedding's matrix: A and B change places."""
    scale = getattr(part.writes[0].module, "embed_scale", 1.0)
    x, factors = x.float(), factors.float()[:, None]
    if instead is None:
        amounts = (x @ part.up.T / scale) * (factors - 1)
    else:
        amounts = (x @ instead.T / scale) * factors - x @ part.up.T / scale
    return (output.float() + amounts @ part.down).to(output.dtype)


def scaled_logits(
    model: Model,
    parts: Sequence[AdapterPart],
    input_ids: Int[Tensor, " pos"],
    factors: Float[Tensor, "row rank"],
    *,
    instead: Sequence[Float[Tensor, "_ _"]] | None = None,
) -> Float[Tensor, "row vocab"]:
    """Logits after the last position under each set of factors, one batched pass; float32."""
    ids = input_ids.to(model.device)[None].expand(len(factors), -1)
    with scaled_ranks(parts, factors.to(model.device), instead=instead):
        output = model.hf(input_ids=ids, use_cache=False, logits_to_keep=1)
    return output.logits[:, -1].float()


@torch.no_grad()
def drop_effects(
    model: Model,
    parts: Sequence[AdapterPart],
    input_ids: Int[Tensor, " pos"],
    weights: Float[Tensor, "target vocab"],
    *,
    ranks: Int[Tensor, " op"] | None = None,
    rows: int = ROWS,
) -> Float[Tensor, "target op"]:
    """Change of the targets that each rank's presence makes: really dropped, one at a time.

    Args:
        model: The merged model.
        parts: Of its adapter.
        input_ids: One prompt, with its beginning-of-sequence token.
        weights: Targets ``sum_v w[t, v] logit_v`` at the last position.
        ranks: Which, by index; all by default.
        rows: Of one batched pass.

    Returns:
        Float32 on the CPU, in logits; positive = the rank's presence raises the target.
    """
    n = n_ranks(parts)
    ranks = torch.arange(n) if ranks is None else ranks
    weights = weights.to(model.device).T
    whole = scaled_logits(model, parts, input_ids, torch.ones(1, n)) @ weights
    found = []
    for some in ranks.split(rows):
        factors = torch.ones(len(some), n)
        factors[torch.arange(len(some)), some] = 0
        found.append((whole - scaled_logits(model, parts, input_ids, factors) @ weights).cpu())
    return torch.cat(found).T if found else torch.zeros(weights.shape[1], 0)


def rank_gradients(
    model: Model,
    parts: Sequence[AdapterPart],
    input_ids: Int[Tensor, " pos"],
    weights: Float[Tensor, "target vocab"],
    at: Float[Tensor, " point"],
) -> Float[Tensor, "target rank"]:
    """``d target / d c``, averaged over points at which all factors are equal.

    Args:
        model: The merged model.
        parts: Of its adapter.
        input_ids: One prompt.
        weights: Targets.
        at: Value of all factors at each point: ``[1.]`` is the merged model.
    """
    factors = at[:, None].expand(-1, n_ranks(parts)).clone().to(model.device).requires_grad_()
    with torch.enable_grad():
        logits = scaled_logits(model, parts, input_ids, factors)
        targets = (logits @ weights.to(logits).T).sum(0)
        each = torch.eye(len(targets), device=targets.device)
        (slopes,) = torch.autograd.grad(targets, factors, each, is_grads_batched=True)
    return slopes.mean(1).cpu()


def integrated_rank_effects(
    model: Model,
    parts: Sequence[AdapterPart],
    input_ids: Int[Tensor, " pos"],
    weights: Float[Tensor, "target vocab"],
    *,
    steps: int = STEPS,
) -> Float[Tensor, "target rank"]:
    """Each rank's part of the shift while all of them grow together from base to merged.

    Source: integrated gradients, Sundararajan et al. 2017, arXiv:1703.01365, eq. 1, by the midpoint
    rule. A row sums to target(merged) - target(base), up to that rule's error.
    """
    at = (torch.arange(steps) + 0.5) / steps
    return rank_gradients(model, parts, input_ids, weights, at)


def pulls(
    model: Model,
    parts: Sequence[AdapterPart],
    input_ids: Int[Tensor, " pos"],
    weights: Float[Tensor, "target vocab"],
) -> list[Float[Tensor, "target _ _"]]:
    """By part, the vector whose product with what a rank writes is that rank's gradient score.

    ``sum over positions of a_r . d target / d module output``: so the score of any other write of
    the same rank is one product. The head that shares an embedding's matrix is left out.
    """
    reads = captured(model, parts, input_ids)
    gradients = site_gradients(model, parts, input_ids, weights)
    return [
        torch.einsum("pr,tpd->trd", part.activations(x).float(), gradient[0].float())
        for part, x, gradient in zip(parts, reads, gradients, strict=True)
    ]


def random_writes(parts: Sequence[AdapterPart], *, seed: int) -> list[Float[Tensor, "_ _"]]:
    """By part, a random direction for each rank, of the norm of what it writes."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for part in parts:
        drawn = torch.randn(part.up.shape, generator=generator).to(part.up)
        found.append(drawn / drawn.norm(dim=1, keepdim=True) * part.up.norm(dim=1, keepdim=True))
    return found
