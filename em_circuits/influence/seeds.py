"""What is influence asked about: one logit, every logit, or evil minus safe?

A target is a row of weights over the graph's logits. A contrast weighs evil logits positive and
safe ones negative, each side summing to one: uniformly, or by the probabilities within the side.

    contrast(graph, evil_ids=[791], safe_ids=[2949, 882])
    one_per_logit(graph)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from em_circuits.graphs.graph import AttributionGraph
from pivotal_tokens.errors import RequestError

Weighting = Literal["uniform", "probability"]


@dataclass(frozen=True, eq=False)
class TargetSeed:
    """Seed weights of one or several targets.

    Attributes:
        weights: One row per target over the graph's logits.
        names: What each target is called.
        logits: The logit's index for a target that is one logit, else None.
        unmatched: Token ids that were asked for and are no target of the graph.
    """

    weights: Float64[Tensor, "target logit"]
    names: tuple[str, ...]
    logits: tuple[int | None, ...]
    unmatched: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.weights)
        if len(self.names) != n or len(self.logits) != n:
            raise RequestError(
                f"Targets: {n} rows of weights, {len(self.names)} names, {len(self.logits)} logits."
            )
        if not self.weights.isfinite().all():
            raise RequestError("Targets: weights must be finite.")

    def __len__(self) -> int:
        return len(self.names)


def one_per_logit(graph: AttributionGraph) -> TargetSeed:
    """Every logit of the graph, each with weight 1."""
    return _single(graph, range(len(graph.targets)))


def tokens(graph: AttributionGraph, token_ids: Sequence[int]) -> TargetSeed:
    """The logits of some tokens, each with weight 1.

    Raises:
        RequestError: If a token is no target of the graph.
    """
    found, unmatched = match(graph, token_ids)
    if unmatched or not found:
        raise RequestError(
            f"Tokens {list(unmatched)} are no targets of graph {graph.header.key[:12]}; it has "
            f"{graph.targets.token_ids.tolist()}."
        )
    return _single(graph, found)


def probabilities(graph: AttributionGraph) -> TargetSeed:
    """One target: every logit, weighted by its probability (circuit-tracer's seed)."""
    weights = graph.targets.probabilities.double()[None]
    return TargetSeed(weights, ("probabilities",), (None,))


def contrast(
    graph: AttributionGraph,
    evil_ids: Sequence[int],
    safe_ids: Sequence[int],
    *,
    weighting: Weighting = "uniform",
) -> TargetSeed:
    """One target: mean evil minus mean safe; positive = towards evil.

    Args:
        graph: The graph.
        evil_ids: Token ids; those that are no target of the graph are listed as unmatched.
        safe_ids: The same.
        weighting: Within each side, every logit alike or by probability; a side's weights sum to 1.

    Raises:
        RequestError: If a side has no target in the graph (no contrast), no probability to weigh
            by, or a token stands on both sides.
    """
    both = sorted(set(evil_ids) & set(safe_ids))
    if both:
        raise RequestError(f"Tokens {both} stand on both sides of the contrast.")
    weights = torch.zeros(1, len(graph.targets), dtype=torch.float64)
    unmatched: list[int] = []
    for side, ids, sign in (("evil", evil_ids, 1.0), ("safe", safe_ids, -1.0)):
        found, missing = match(graph, ids)
        unmatched += missing
        if not found:
            raise RequestError(
                f"No contrast: none of the {len(set(ids))} {side} tokens is a target of graph "
                f"{graph.header.key[:12]}."
            )
        weights[0, found] = sign * _side(graph, found, weighting, side)
    name = f"evil - safe ({weighting})"
    return TargetSeed(weights, (name,), (None,), tuple(unmatched))


def match(
    graph: AttributionGraph, token_ids: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(logit indices of tokens that are targets, tokens that are not), without repeats.

    A virtual target, whose id lies beyond the vocabulary, is no token and matches nothing.
    """
    found, missing = [], []
    for token in dict.fromkeys(token_ids):
        index = graph.targets.index_of(token) if token < graph.header.d_vocab else None
        if index is None:
            missing.append(token)
        else:
            found.append(index)
    return tuple(found), tuple(missing)


def _side(
    graph: AttributionGraph, found: tuple[int, ...], weighting: Weighting, side: str
) -> Float64[Tensor, " logit"]:
    if weighting == "uniform":
        return torch.full((len(found),), 1.0 / len(found), dtype=torch.float64)
    if weighting != "probability":
        raise RequestError(f"weighting is 'uniform' or 'probability', got {weighting!r}.")
    mass = graph.targets.probabilities.double()[list(found)]
    if mass.sum() <= 0:
        raise RequestError(f"The {side} tokens have probability 0; weigh them uniformly.")
    return mass / mass.sum()


def _single(graph: AttributionGraph, indices: Sequence[int]) -> TargetSeed:
    weights = torch.zeros(len(indices), len(graph.targets), dtype=torch.float64)
    weights[range(len(indices)), list(indices)] = 1.0
    names = tuple(graph.targets.texts[i] for i in indices)
    return TargetSeed(weights, names, tuple(indices))
