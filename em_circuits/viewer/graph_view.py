"""What is drawn of a graph: the nodes and edges that carry most, in columns of plain numbers.

Nodes are named ``LAYER/POSITION/ID``, ``error:LAYER/POSITION``, ``token:POSITION`` and
``logit:TOKEN``, so that base's and merged's line up; edges are pairs of indices into the nodes.

    record = view_of(opened, labels, tokens, Cut(node=0.8, edge=0.98))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from em_circuits.graphs import AttributionGraph, NodeKind
from em_circuits.influence import Pruned, prune, prune_contrast
from em_circuits.viewer.graph_cache import Opened
from pivotal_tokens.schema import Label

DIGITS = 5
"""Significant digits of a number that is drawn."""


@dataclass(frozen=True)
class Cut:
    """How much of a graph is shown."""

    node: float = 0.8
    """Share of all node influence that is kept."""
    edge: float = 0.98
    """Share of all edge influence among the kept nodes."""
    by_contrast: bool = False
    """Weigh by influence on evil minus safe instead of the logits' probabilities."""
    max_nodes: int = 2000
    max_edges: int = 40_000


def pruned(opened: Opened, labels: Mapping[int, Label], cut: Cut) -> Pruned:
    """The graph at these thresholds, by circuit-tracer's rule or by the contrast."""
    seed = opened.seed(labels) if cut.by_contrast else None
    thresholds = {"node_threshold": cut.node, "edge_threshold": cut.edge}
    if seed is None:
        return prune(opened.graph, **thresholds)
    return prune_contrast(opened.graph, seed, method=opened.method, **thresholds)


def view_of(
    opened: Opened, labels: Mapping[int, Label], tokens: Sequence[str], cut: Cut
) -> dict[str, Any]:
    """The view as JSON values.

    Args:
        opened: The graph and its influences.
        labels: Token id -> label.
        tokens: Texts of the prompt's tokens.
        cut: What is shown; beyond its limits the weakest nodes and edges are left out.
    """
    graph, left = opened.graph, pruned(opened, labels, cut)
    nodes, edges, kept = _limited(graph, left, cut)
    contrast = opened.contrast(labels)
    where = torch.full((graph.layout.n_nodes,), -1, dtype=torch.int64)
    where[nodes] = torch.arange(len(nodes))
    return {
        "key": graph.header.key,
        "model": graph.header.model,
        "method": str(opened.method),
        "cut": {"node": cut.node, "edge": cut.edge, "by": "contrast" if cut.by_contrast else "p"},
        "layers": graph.header.n_layers,
        "tokens": list(tokens),
        "targets": targets_of(graph, labels),
        "contrast": contrast is not None,
        "features": {"nodes": len(graph.selected), "active": len(graph.active)},
        "left_out": {
            "nodes": int(left.node_mask.sum()) - len(nodes),
            "edges": len(left.edges) - int(kept.sum()),
        },
        "nodes": _nodes(graph, nodes)
        | {
            "contrast": None if contrast is None else rounded(contrast[nodes]),
            "share": rounded(left.cumulative[nodes]),
        },
        "edges": {
            "source": where[edges.sources[kept]].tolist(),
            "target": where[edges.targets[kept]].tolist(),
            "weight": rounded(edges.weights[kept]),
        },
    }


def targets_of(graph: AttributionGraph, labels: Mapping[int, Label]) -> list[dict[str, Any]]:
    """The logit nodes with their labels."""
    targets = graph.targets
    columns = (targets.token_ids.tolist(), targets.texts, targets.probabilities.tolist())
    return [
        {"token_id": token, "text": text, "probability": p, "label": labels.get(token)}
        for token, text, p in zip(*columns, strict=True)
    ]


def beyond(opened: Opened, labels: Mapping[int, Label], names: Sequence[str]) -> dict[str, Any]:
    """What the features of another view are in this graph: name -> [activation, contrast].

    An inactive feature has activation 0 and contrast 0; one that fires without being a node has a
    contrast of null: its edges are unknown.
    """
    graph, contrast = opened.graph, opened.contrast(labels)
    active = {tuple(place): i for i, place in enumerate(graph.active.tolist())}
    node_of = {int(i): node for node, i in enumerate(graph.selected.tolist())}
    found: dict[str, Any] = {}
    for name in names:
        place = tuple(int(part) for part in name.split("/"))
        i = active.get(place)
        if i is None:
            found[name] = [0, 0]
            continue
        node = node_of.get(i)
        value = None if node is None or contrast is None else float(contrast[node])
        found[name] = [_short(float(graph.activations[i])), value and _short(value)]
    return found


def rounded(values: Tensor) -> list[float]:
    """A column with as many digits as are drawn."""
    return [_short(value) for value in values.tolist()]


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _nodes(graph: AttributionGraph, nodes: Tensor) -> dict[str, Any]:
    activations = graph.selected_activations
    kinds = [graph.layout.kind(i) for i in nodes.tolist()]
    names = [graph.name_of(i) for i in nodes.tolist()]
    return {
        "name": names,
        "activation": [
            _short(float(activations[i])) if kind is NodeKind.FEATURE else None
            for i, kind in zip(nodes.tolist(), kinds, strict=True)
        ],
    }


def _limited(graph: AttributionGraph, left: Pruned, cut: Cut) -> tuple[Tensor, Any, Tensor]:
    """(nodes shown, edges, which of them are shown)."""
    layout, mask = graph.layout, left.node_mask.clone()
    inner = mask[layout.inner].nonzero()[:, 0]
    if len(inner) > cut.max_nodes:
        weakest = left.scores[inner].argsort(descending=True)[cut.max_nodes :]
        mask[inner[weakest]] = False
    edges = left.edges
    kept = mask[edges.targets] & mask[edges.sources]
    if int(kept.sum()) > cut.max_edges:
        strength = torch.where(kept, edges.weights.abs() / _row_scale(graph, edges.targets), 0)
        kept = torch.zeros_like(kept)
        kept[strength.argsort(descending=True)[: cut.max_edges]] = True
    return mask.nonzero()[:, 0], edges, kept


def _row_scale(graph: AttributionGraph, targets: Tensor) -> Tensor:
    """What an edge is compared with: all that flows into its target."""
    mass = graph.require_edges().row_mass
    return mass[graph.layout.rows_of(targets)].clamp(min=1e-12)
