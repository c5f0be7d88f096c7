"""What does ``em-circuits influence --json`` print?

One object: the method, the graph, its coverage, the targets, labelled tokens that are none, and
for every node (or the N largest) its coordinates and one value per target. What does not apply is
null; no number is NaN.

    to_json(graph, influence(graph, targets, Method.TOTAL_EFFECT), top=20)
"""

from __future__ import annotations

from typing import Any

import torch

from em_circuits.graphs.graph import AttributionGraph
from em_circuits.influence.methods import Influence
from em_circuits.influence.names import place
from em_circuits.influence.seeds import TargetSeed
from pivotal_tokens.errors import RequestError


def to_json(
    graph: AttributionGraph, influence: Influence, top: int | None = None
) -> dict[str, Any]:
    """The documented JSON shape.

    Args:
        graph: The graph the influence was computed in.
        influence: Its values.
        top: Keep the N nodes with the largest absolute value over targets, largest first; without
            it every node, in node order.

    Returns:
        ``method``, ``graph`` (its key), ``coverage`` (the least over the targets, or null if it is
        not known), ``targets``, ``unmatched`` (token ids asked for that are no target) and
        ``nodes``. A target that is one logit has token_id, text and probability; another has
        ``weights``, token id -> weight.
    """
    if influence.graph_key != graph.header.key:
        raise RequestError(
            f"The influence is of graph {influence.graph_key[:12]}, not {graph.header.key[:12]}."
        )
    coverage = influence.coverage
    return {
        "method": str(influence.method),
        "graph": graph.header.key,
        "coverage": float(coverage.min()) if coverage is not None and len(coverage) else None,
        "targets": [
            target_json(graph, influence.targets, i) for i in range(len(influence.targets))
        ],
        "unmatched": list(influence.targets.unmatched),
        "nodes": [
            {**place(graph, i), "values": influence.values[:, i].tolist()}
            for i in _nodes(influence, top)
        ],
    }


def _nodes(influence: Influence, top: int | None) -> list[int]:
    n_nodes = influence.values.shape[1]
    if top is None:
        return list(range(n_nodes))
    if top < 0:
        raise RequestError(f"--top must be at least 0, got {top}.")
    if not len(influence.values):
        return list(range(min(top, n_nodes)))
    largest = influence.values.abs().amax(0)
    return torch.argsort(largest, descending=True, stable=True)[:top].tolist()


def target_json(graph: AttributionGraph, seeds: TargetSeed, i: int) -> dict[str, Any]:
    """One target: a logit with its token, or the weights over several."""
    targets, logit = graph.targets, seeds.logits[i]
    if logit is not None:
        return {
            "index": i,
            "token_id": int(targets.token_ids[logit]),
            "text": targets.texts[logit],
            "probability": float(targets.probabilities[logit]),
            "weights": None,
        }
    row = seeds.weights[i]
    weights = {str(int(targets.token_ids[j])): float(row[j]) for j in row.nonzero()[:, 0].tolist()}
    return {
        "index": i,
        "token_id": None,
        "text": seeds.names[i],
        "probability": None,
        "weights": weights,
    }
