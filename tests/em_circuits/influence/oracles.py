"""Slow and obvious versions of what `em_circuits.influence` computes."""

from __future__ import annotations

import torch
from torch import Tensor

from em_circuits.graphs.graph import AttributionGraph
from em_circuits.influence import Method


def scales(graph: AttributionGraph, matrix: Tensor, method: Method) -> Tensor:
    """d of every node (DESIGN: the row scale); infinite where nothing is passed on."""
    layout = graph.layout
    d = torch.full((layout.n_nodes,), torch.inf, dtype=torch.float64)
    match method:
        case Method.DIRECT:
            d[layout.logits] = 1
        case Method.TOTAL_EFFECT:
            d[layout.features] = graph.selected_activations.double()
            d[layout.logits] = 1
        case _:
            mass = matrix.double().abs().sum(1)
            d = torch.where(mass > 0, mass, torch.inf)
    return d


def by_powers(graph: AttributionGraph, weights: Tensor, method: Method) -> Tensor:
    """w M (I + P + P^2 + ...), which ends: exact also where an inverse is ill-conditioned."""
    layout, matrix = graph.layout, graph.edges.to_dense().double()
    if method is Method.ABSOLUTE:
        matrix = matrix.abs()
    scaled = matrix / scales(graph, matrix, method)[:, None]
    values = torch.zeros(len(weights), layout.n_nodes, dtype=torch.float64)
    step = weights @ scaled[layout.logits]
    while step.any():
        values += step
        step = step[:, layout.features] @ scaled[layout.features]
    values[:, layout.logits] = weights
    return values


def by_inverse(graph: AttributionGraph, weights: Tensor, method: Method) -> Tensor:
    """w M (I - P)^-1 with dense float64 matrices; M = diag(1/d) A, P the feature rows of M."""
    layout, matrix = graph.layout, graph.edges.to_dense().double()
    if method is Method.ABSOLUTE:
        matrix = matrix.abs()
    scaled = matrix / scales(graph, matrix, method)[:, None]
    inner = torch.zeros_like(scaled)
    inner[layout.features] = scaled[layout.features]
    identity = torch.eye(layout.n_nodes, dtype=torch.float64)
    values = weights @ scaled[layout.logits] @ torch.linalg.inv(identity - inner)
    values[:, layout.logits] = weights
    return values


def all_paths(
    graph: AttributionGraph, weights: Tensor, method: Method, source: int
) -> list[tuple[tuple[int, ...], float]]:
    """Every path from a source to a weighted logit with its product, by walking."""
    layout, matrix = graph.layout, graph.edges.to_dense().double()
    if method is Method.ABSOLUTE:
        matrix = matrix.abs()
    scaled = matrix / scales(graph, matrix, method)[:, None]
    found = []

    def walk(node: int, nodes: tuple[int, ...], product: float) -> None:
        if node == source:
            found.append((nodes, product))
            return
        for below in scaled[node].nonzero()[:, 0].tolist():
            walk(below, (below, *nodes), product * float(scaled[node, below]))

    for i, weight in enumerate(weights.tolist()):
        if weight:
            walk(layout.logit_index(i), (layout.logit_index(i),), weight)
    return found
