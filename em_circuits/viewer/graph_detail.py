"""Details of one node: inputs, outputs, influence on each logit.

detail(opened, labels, "2/11/431")
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from em_circuits.graphs import AttributionGraph, Edges, NodeKind
from em_circuits.graphs.graph import NodeName
from em_circuits.influence import Method, Targets, influence, top_paths
from em_circuits.influence.drawing import ScoredGraph, rounded
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Label

STRONGEST = 12
"""Inputs and outputs listed, each way."""
_LOGIT = re.compile(r"logit:(\d{1,9})")
_NODE = re.compile(r"(?:([a-z][a-z0-9_]{0,40}):)?(\d{1,9})/(\d{1,9})/(\d{1,9})")


def detail(
    opened: ScoredGraph,
    labels: Mapping[int, Label],
    name: str,
    kept: Mapping[str, float | None],
) -> dict[str, Any]:
    """Details of one node of one graph; a feature that is not a node says so.

    Args:
        opened: The graph.
        labels: Token id -> label.
        name: Of the node.
        kept: Score -> what is kept of it beside the graph.

    Raises:
        RequestError: If the name names nothing in this graph and is no feature either.
    """
    graph = opened.graph
    if found := _NODE.fullmatch(name):
        place = NodeName(found[1] or "", *(int(part) for part in found.groups()[1:]))
        state, activation = _state(graph, place)
        firing = [] if place.module else _firing(graph, place)
        if state != "node":
            alone = {"gradient": _gradient(opened, labels, place), **kept}
            return {
                "name": name,
                "state": state,
                "activation": activation,
                "firing": firing,
                "scores": _known(alone) if state == "active" else {},
            }
    else:
        place, activation, firing = None, None, []
    node = graph.node_named(name)
    contrast = opened.contrast(labels)
    is_logit = graph.layout.kind(node) is NodeKind.LOGIT
    scores: dict[str, float | None] = {}
    if contrast is not None and not is_logit:
        seed = opened.seed(labels)
        assert seed is not None
        direct = influence(graph, seed, Method.DIRECT).values[0, node]
        scores = {
            str(opened.method): float(contrast[node]),
            str(Method.DIRECT): float(direct),
            "gradient": None if place is None else _gradient(opened, labels, place),
            **kept,
        }
    return {
        "name": name,
        "state": "node",
        "activation": activation,
        "firing": firing,
        "influence": None if is_logit else rounded(opened.values[:, node]),
        "contrast": None if contrast is None or is_logit else float(contrast[node]),
        "scores": _known(scores),
        "inputs": _strongest(graph, node, inputs=True),
        "outputs": [] if is_logit else _strongest(graph, node, inputs=False),
    }


def paths(
    opened: ScoredGraph, labels: Mapping[int, Label], name: str, target: str, k: int
) -> dict[str, Any]:
    """The strongest signed paths from a node to a logit or to the contrast.

    Raises:
        RequestError: If there is no such node or target, or no contrast.
    """
    graph = opened.graph
    seed = _seed(opened, labels, target)
    found = top_paths(graph, source=graph.node_named(name), targets=seed, k=k, method=opened.method)
    return {
        "from": name,
        "to": target,
        "method": str(opened.method),
        "total": found.total,
        "paths": [
            {
                "nodes": [graph.name_of(i) for i in path.nodes],
                "product": path.product,
                "share": path.share,
            }
            for path in found.paths
        ],
    }


def _strongest(graph: AttributionGraph, node: int, *, inputs: bool) -> list[dict[str, Any]]:
    """The largest edges by magnitude, with their signs, their share of the whole, and what each is
    when its source is really removed, where the graph has that."""

    def of(edges: Edges) -> Tensor:
        return edges.row(node) if inputs else edges.column(node)

    weights = of(graph.require_edges())
    real = None if graph.measured is None else of(graph.measured)
    order = weights.abs().argsort(descending=True)[:STRONGEST]
    whole = float(weights.abs().sum())
    removable = graph.layout.is_feature(order if inputs else torch.full_like(order, node))
    measured = dict(zip(order.tolist(), removable.tolist(), strict=True))
    return [
        {
            "name": graph.name_of(i),
            "weight": float(weights[i]),
            "share": abs(float(weights[i])) / whole,
            "measured": None if real is None or not measured[i] else float(real[i]),
        }
        for i in order.tolist()
        if weights[i] != 0
    ]


def _state(graph: AttributionGraph, place: NodeName) -> tuple[str, float]:
    """("node", "active" without being one, or "inactive"; its activation)."""
    i = graph.active_index(place)
    if i is None:
        return "inactive", 0.0
    selected = bool((graph.selected == i).any())
    return ("node" if selected else "active"), float(graph.activations[i])


def _gradient(opened: ScoredGraph, labels: Mapping[int, Label], place: NodeName) -> float | None:
    """First-order effect of a feature on the contrast in the real model, where it is kept."""
    graph, seed = opened.graph, opened.seed(labels)
    i = graph.active_index(place)
    if graph.gradient is None or seed is None or i is None:
        return None
    return float(seed.weights[0].double() @ graph.gradient[:, i].double())


def _known(scores: Mapping[str, float | None]) -> dict[str, float]:
    return {by: value for by, value in scores.items() if value is not None}


def _firing(graph: AttributionGraph, place: NodeName) -> list[list[Any]]:
    """(position, activation) of the same feature everywhere in the prompt."""
    same = graph.firing(place.layer, place.id)
    return [
        [position, value]
        for position, value in zip(
            graph.active[same, 1].tolist(), rounded(graph.activations[same]), strict=True
        )
    ]


def _seed(opened: ScoredGraph, labels: Mapping[int, Label], target: str) -> Targets:
    if target == "contrast":
        seed = opened.seed(labels)
        if seed is None:
            raise RequestError("no contrast: no target is labelled evil, or none safe")
        return seed
    found = _LOGIT.fullmatch(target)
    if found is None:
        raise RequestError(f"{target!r} is no target; give contrast or logit:TOKEN_ID")
    node = opened.graph.node_named(target)
    return Targets.rows(opened.graph, [opened.graph.layout.target_of(node)])
