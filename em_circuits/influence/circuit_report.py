"""What do ``graphs paths``, ``graphs prune`` and ``graphs scores`` print?

One object each; nodes are named by kind, layer, position and feature id. What does not apply is
null; no number is NaN.

    paths_json(graph, 17, targets, method, top_paths(graph, source=17, targets=targets))
    pruned_json(graph, targets, prune(graph), PruneRule())
    scores_json(graph, token_ids=None)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from em_circuits.graphs.graph import AttributionGraph
from em_circuits.graphs.layout import NodeKind
from em_circuits.influence.methods import Method
from em_circuits.influence.names import place_and_token
from em_circuits.influence.paths import Paths
from em_circuits.influence.pruning import Pruned, prune, prune_contrast
from em_circuits.influence.report import target_json
from em_circuits.influence.scores import error_direct_score, error_influence_share, graph_scores
from em_circuits.influence.seeds import TargetSeed, match, probabilities


@dataclass(frozen=True)
class PruneRule:
    """By which rule, and how much is kept."""

    method: Method = Method.ABSOLUTE
    """absolute_influence is circuit-tracer's rule; signed_influence and total_effect keep what
    moves a contrast."""
    node_threshold: float = 0.8
    """Share of all node influence that is kept."""
    edge_threshold: float = 0.98
    """Share of all edge influence among the kept nodes."""

    def apply(self, graph: AttributionGraph, targets: TargetSeed | None) -> Pruned:
        """Prune by this rule; circuit-tracer's has targets of its own, the probabilities.

        Raises:
            RequestError: See `prune` and `prune_contrast`.
        """
        thresholds = {"node_threshold": self.node_threshold, "edge_threshold": self.edge_threshold}
        if targets is None:
            return prune(graph, **thresholds)
        return prune_contrast(graph, targets, method=self.method, **thresholds)


def paths_json(
    graph: AttributionGraph, source: int, targets: TargetSeed, method: Method, found: Paths
) -> dict[str, Any]:
    """The best paths from one node to one target, largest abs(product) first."""
    return {
        "graph": graph.header.key,
        "method": str(method),
        "from": place_and_token(graph, source),
        "target": target_json(graph, targets, 0),
        "unmatched": list(targets.unmatched),
        "total": found.total,
        "absolute_total": found.absolute_total,
        "paths": [
            {
                "product": path.product,
                "sign": (path.product > 0) - (path.product < 0),
                "share": path.share,
                "nodes": [place_and_token(graph, i) for i in path.nodes],
            }
            for path in found.paths
        ],
    }


def pruned_json(
    graph: AttributionGraph, targets: TargetSeed | None, pruned: Pruned, rule: PruneRule
) -> dict[str, Any]:
    """What is kept: nodes by score, largest first, and edges by size.

    `targets` None: circuit-tracer's rule, seeded with the probabilities.
    """
    seeds = targets if targets is not None else probabilities(graph)
    kept = pruned.node_mask.nonzero()[:, 0]
    kept = kept[pruned.scores[kept].argsort(descending=True, stable=True)]
    edges = pruned.edges
    order = edges.weights.abs().argsort(descending=True, stable=True)
    return {
        "graph": graph.header.key,
        "method": str(rule.method),
        "target": target_json(graph, seeds, 0),
        "unmatched": list(seeds.unmatched),
        "node_threshold": rule.node_threshold,
        "edge_threshold": rule.edge_threshold,
        "kept": {**_counts(graph, kept.tolist()), "edges": len(edges)},
        "of": {
            **_counts(graph, range(graph.layout.n_nodes)),
            "edges": _n_edges(graph),
        },
        "near_threshold": pruned.near_threshold.tolist(),
        "nodes": [
            {
                **place_and_token(graph, i),
                "score": float(pruned.scores[i]),
                "cumulative": float(pruned.cumulative[i]),
            }
            for i in kept.tolist()
        ],
        "edges": [
            {"source": source, "target": target, "weight": weight}
            for source, target, weight in zip(
                edges.sources[order].tolist(),
                edges.targets[order].tolist(),
                edges.weights[order].tolist(),
                strict=True,
            )
        ],
    }


def scores_json(graph: AttributionGraph, token_ids: Sequence[int] | None = None) -> dict[str, Any]:
    """Replacement, completeness, and the error scores over all targets or over some.

    Raises:
        RequestError: If none of the tokens is a target.
    """
    scores = graph_scores(graph)
    _, unmatched = match(graph, token_ids or ())
    return {
        "graph": graph.header.key,
        "prompt_id": graph.header.prompt_id,
        "model": graph.header.model,
        "replacement": scores.replacement,
        "completeness": scores.completeness,
        "errors": {
            "tokens": list(token_ids) if token_ids is not None else None,
            "unmatched": list(unmatched),
            "direct_mean": error_direct_score(graph, mode="mean", token_ids=token_ids),
            "direct_ratio": error_direct_score(graph, mode="ratio", token_ids=token_ids),
            "multi_hop": error_influence_share(graph, token_ids=token_ids),
        },
    }


def _counts(graph: AttributionGraph, nodes: Iterable[int]) -> dict[str, int]:
    kinds = [graph.layout.kind(i) for i in nodes]
    return {f"{kind}s": kinds.count(kind) for kind in NodeKind}


def _n_edges(graph: AttributionGraph) -> int:
    edges = graph.require_edges()
    parts = (edges.values, edges.logit_values, edges.extra_values)
    return sum(int(part.count_nonzero()) for part in parts)
