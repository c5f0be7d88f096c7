"""Targets of influence: one logit, every logit, or evil minus safe.

A target is a row of weights over the graph's logits. A contrast weighs evil logits positive and
safe ones negative, each side summing to one: uniformly, or by the probabilities within the side.

    Targets.contrast(graph, Contrast(evil=(791,), safe=(2949, 882)))
    Targets.each(graph)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from em_circuits.contrast import Contrast
from em_circuits.graphs.graph import AttributionGraph
from em_circuits.target import Target
from pivotal_tokens.errors import RequestError

Weighting = Literal["uniform", "probability"]


@dataclass(frozen=True, eq=False)
class Targets:
    """Weights of one or several targets over a graph's logits.

    Attributes:
        weights: One row per target.
        names: What each target is called.
        logits: The logit's index for a target that is one logit, else None.
        unmatched: Token ids that were asked for and are no target of the graph.
        unit: Of the logits.
    """

    weights: Float64[Tensor, "target logit"]
    names: tuple[str, ...]
    logits: tuple[int | None, ...]
    unmatched: tuple[int, ...] = ()
    unit: str = "logits"

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

    def __repr__(self) -> str:
        return f"Targets({', '.join(map(repr, self.names))})"

    @classmethod
    def of(cls, graph: AttributionGraph, targets: Targets | Contrast | Target) -> Targets:
        """Targets as they are, a contrast over a graph's logits, or the target it was built for."""
        if isinstance(targets, Targets):
            return targets
        if isinstance(targets, Contrast):
            return cls.contrast(graph, targets)
        if isinstance(targets, Target):
            return cls.target(graph, targets)
        raise RequestError(
            f"{targets!r} is no target: give a Contrast, or Targets of the graph (Targets.each, "
            "Targets.tokens, Targets.probabilities)"
        )

    @classmethod
    def target(cls, graph: AttributionGraph, target: Target) -> Targets:
        """One target of terms; `attribute` gives each term of its target a row of its own.

        Raises:
            RequestError: If the graph has no row of a term.
        """
        known = [
            {name: value for name, value in term.items() if name != "weight"}
            for term in graph.header.terms
        ]
        weights = torch.zeros(1, len(graph.targets), dtype=torch.float64)
        for term, weight in zip(target.terms, target.weights, strict=True):
            if term.record not in known:
                raise RequestError(
                    f"graph {graph.header.short_key} has no row of {term.name}; build one for it: "
                    "attribute(model, prompt, target)"
                )
            weights[0, known.index(term.record)] += weight
        return cls(weights, (target.name,), (None,), unit=target.unit)

    @classmethod
    def own(cls, graph: AttributionGraph) -> Targets:
        """The target that the graph was built for.

        Raises:
            RequestError: If it was built for next tokens.
        """
        if graph.target is None:
            raise RequestError(
                f"graph {graph.header.short_key} has no target of its own, it is of next tokens: "
                "give all, evil-safe, probabilities or token ids"
            )
        return cls.target(graph, graph.target)

    @classmethod
    def each(cls, graph: AttributionGraph) -> Targets:
        """Every logit of the graph, or every term of its target, each with weight 1."""
        return cls.rows(graph, range(len(graph.targets)))

    @classmethod
    def tokens(cls, graph: AttributionGraph, token_ids: Sequence[int]) -> Targets:
        """The logits of some tokens, each with weight 1.

        Raises:
            RequestError: If a token is no target of the graph.
        """
        found, unmatched = match(graph, token_ids)
        if unmatched or not found:
            raise RequestError(
                f"Tokens {list(unmatched)} are no targets of graph {graph.header.short_key}; it "
                f"has {graph.targets.token_ids.tolist()}."
            )
        return cls.rows(graph, found)

    @classmethod
    def probabilities(cls, graph: AttributionGraph) -> Targets:
        """One target: every logit, weighted by its probability (circuit-tracer's seed)."""
        unit = _unit(graph)
        p = graph.targets.probabilities.double()[None]
        return cls(p, ("probabilities",), (None,), unit=unit)

    @classmethod
    def contrast(
        cls, graph: AttributionGraph, contrast: Contrast, *, weighting: Weighting = "uniform"
    ) -> Targets:
        """One target: mean evil minus mean safe; positive = towards evil.

        Args:
            graph: The graph.
            contrast: Tokens; those that are no target of the graph are listed as unmatched.
            weighting: Within each side, every logit alike or by probability.

        Raises:
            RequestError: If a side has no target in the graph (no contrast), or no probability to
                weigh by.
        """
        targets = graph.targets
        # A virtual target, whose id lies beyond the vocabulary, is no token.
        ids = torch.where(targets.token_ids < graph.header.d_vocab, targets.token_ids, -1)
        p = targets.probabilities if weighting == "probability" else None
        weights = contrast.over(ids, probabilities=p)
        name = f"evil - safe ({weighting})"
        return cls(weights[None], (name,), (None,), contrast.unmatched(ids))

    @classmethod
    def rows(cls, graph: AttributionGraph, indices: Sequence[int]) -> Targets:
        """Some logit nodes by their index among the targets, each with weight 1."""
        weights = torch.zeros(len(indices), len(graph.targets), dtype=torch.float64)
        weights[range(len(indices)), list(indices)] = 1.0
        names = tuple(graph.targets.texts[i] for i in indices)
        return cls(weights, names, tuple(indices), unit=_unit(graph))


def _unit(graph: AttributionGraph) -> str:
    return graph.header.target.unit if graph.header.target else "logits"


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
