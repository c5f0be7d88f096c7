"""Scores of a whole graph: the share of the computation it explains, and the share through errors.

`replacement`: of the absolute influence that ends in tokens or errors, the share in tokens.
`completeness`: of what flows into all nodes, weighted by their influence, the share that is no
error's. Both are circuit-tracer's, seeded with the probabilities. The error scores ask the same of
the error nodes alone: by direct edges, or through every path.

    scores = graph_scores(graph)
    error_direct_score(graph, mode="ratio")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from em_circuits.graphs.graph import AttributionGraph
from em_circuits.influence.methods import Method, row_scale
from em_circuits.influence.propagate import propagate
from em_circuits.influence.targets import match
from pivotal_tokens.errors import RequestError

_LEAST_MASS = 1e-12


@dataclass(frozen=True)
class GraphScores:
    """Both lie in 0..1, higher is better; None if the graph carries no influence to share out."""

    replacement: float | None
    completeness: float | None


def graph_scores(graph: AttributionGraph) -> GraphScores:
    """Replacement and completeness score, seeded with the probabilities of the targets.

    Raises:
        RequestError: If the graph has full edges, whose rows do not sum to their target's value.
    """
    _require_frozen(graph)
    weights = graph.targets.probabilities.double()
    values = _absolute(graph, weights)
    layout = graph.layout
    errors, tokens = float(values[layout.errors].sum()), float(values[layout.tokens].sum())
    # circuit-tracer sums (1 - error share of t's inputs) * output(t) over all nodes t. What errors
    # put into all nodes is, by definition, the influence of the errors.
    output = float(values.sum())
    return GraphScores(
        replacement=tokens / (tokens + errors) if tokens + errors > 0 else None,
        completeness=1 - errors / output if output > 0 else None,
    )


def error_direct_score(
    graph: AttributionGraph,
    *,
    mode: Literal["mean", "ratio"],
    token_ids: Sequence[int] | None = None,
) -> float:
    """How strongly error nodes act on the logits by *direct* edges alone, unsigned.

    Args:
        graph: The graph.
        mode: "mean": sum of abs(A[logit, error]) per logit, in units of the logit. "ratio": the
            same sum over the sum of abs(A[logit, every source]).
        token_ids: Only these targets; those the graph does not have are left out.

    Raises:
        RequestError: If none of the tokens is a target, or the mode is another.
    """
    _require_frozen(graph)
    chosen = _chosen(graph, token_ids)
    rows = graph.require_edges().logit_rows()[chosen].double().abs()
    errors = float(rows[:, graph.layout.errors].sum())
    match mode:
        case "mean":
            return errors / len(chosen)
        case "ratio":
            return errors / max(float(rows.sum()), _LEAST_MASS)
    raise RequestError(f"mode is 'mean' or 'ratio', got {mode!r}.")


def error_influence_share(
    graph: AttributionGraph, *, token_ids: Sequence[int] | None = None
) -> float | None:
    """Multi-hop companion of `error_direct_score`: of the absolute influence on the logits that
    ends in tokens or errors, through every path, the share in errors; every logit weighs the same.

    Raises:
        RequestError: If none of the tokens is a target.
    """
    _require_frozen(graph)
    weights = torch.zeros(graph.layout.n_logits, dtype=torch.float64)
    weights[_chosen(graph, token_ids)] = 1.0
    values = _absolute(graph, weights)
    errors = float(values[graph.layout.errors].sum())
    both = errors + float(values[graph.layout.tokens].sum())
    return errors / both if both > 0 else None


def _chosen(graph: AttributionGraph, token_ids: Sequence[int] | None) -> list[int]:
    if token_ids is None:
        return list(range(len(graph.targets)))
    found, _ = match(graph, token_ids)
    if not found:
        raise RequestError(
            f"None of the tokens {list(token_ids)} is a target of graph {graph.header.short_key}."
        )
    return list(found)


def _absolute(
    graph: AttributionGraph, weights: Float64[Tensor, " logit"]
) -> Float64[Tensor, " node"]:
    scale = row_scale(graph, Method.ABSOLUTE)
    return propagate(graph.require_edges(), weights[None], scale, absolute=True).values[0]


def _require_frozen(graph: AttributionGraph) -> None:
    if graph.edge_kind != "frozen":
        raise RequestError(
            f"graph {graph.header.short_key} has {graph.edge_kind} edges, which do not sum to a "
            "target's value; scores of replacement and errors need a graph with frozen edges"
        )
