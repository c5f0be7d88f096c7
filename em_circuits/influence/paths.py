"""Signed paths from a node to a target, and the influence along each.

A path s -> f1 -> ... -> logit carries the product of its edges, each divided by the row scale of
the feature it leaves behind, times the seed weight: the sum over all paths is the node's influence.
The k paths with the largest absolute product are found exactly: one pass up gives every node the
best it can still reach, then a best-first search goes down from the logits, led by that bound.

    found = top_paths(graph, source=17, targets=Contrast(evil, safe), k=5)
    found.paths[0].nodes, found.paths[0].product, found.paths[0].share
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from em_circuits.contrast import Contrast
from em_circuits.graphs.edges import Edges
from em_circuits.graphs.graph import AttributionGraph
from em_circuits.graphs.layout import NodeKind
from em_circuits.influence.methods import Method, row_scale
from em_circuits.influence.propagate import is_regular, propagate
from em_circuits.influence.targets import Targets
from pivotal_tokens.errors import RequestError


@dataclass(frozen=True)
class SignedPath:
    """One path.

    Attributes:
        nodes: Node indices from the source to the logit.
        product: What it carries, in units of the method; positive = raises the target.
        share: abs(product) over the sum of abs(product) of all paths, in 0..1.
    """

    nodes: tuple[int, ...]
    product: float
    share: float


@dataclass(frozen=True)
class Paths:
    """The best paths of one source and target.

    Attributes:
        source: Node index.
        targets: One target.
        method: Whose row scale.
        paths: Largest abs(product) first; fewer than asked for if there are fewer.
        total: Sum of the products of *all* paths: the source's influence.
        absolute_total: Sum of their absolute values.
    """

    source: int
    targets: Targets
    method: Method
    paths: tuple[SignedPath, ...]
    total: float
    absolute_total: float

    def __repr__(self) -> str:
        sums = f"total {self.total:.4g}, absolute {self.absolute_total:.4g}"
        return f"Paths({len(self.paths)} from node {self.source} to {self.targets}, {sums})"


def top_paths(
    graph: AttributionGraph,
    *,
    source: int,
    targets: Targets | Contrast,
    k: int = 10,
    method: Method = Method.TOTAL_EFFECT,
) -> Paths:
    """The k paths from a node to a target with the largest absolute product.

    Args:
        graph: The graph.
        source: Node index of a feature, error or token (`graph.node_named`).
        targets: One target (one row): a logit or a contrast.
        k: Number of paths.
        method: Decides the row scale; absolute_influence drops the signs.

    Raises:
        RequestError: If the source is no source, there is not exactly one target, or the graph's
            edges do not run from layer to layer.
    """
    edges, layout, targets = graph.require_edges(), graph.layout, Targets.of(graph, targets)
    if layout.kind(source) is NodeKind.LOGIT:
        raise RequestError(f"The source of a path is a feature, error or token, not logit {source}")
    if len(targets) != 1 or k < 1:
        raise RequestError(
            f"Paths lead to one target, k at least 1: got {len(targets)} targets, k={k}; name one "
            "token id, or evil-safe."
        )
    if not is_regular(edges):
        raise RequestError("Paths need edges that run from lower layers to higher ones.")
    scale = row_scale(graph, method)
    absolute = method is Method.ABSOLUTE
    total = propagate(edges, targets.weights, scale, absolute=absolute).values[0, source]
    every = propagate(edges, targets.weights.abs(), scale, absolute=True).values[0, source]
    reach = _reach(edges, source, scale)
    found = _search(edges, source, targets.weights[0], scale=scale, reach=reach, k=k)
    whole = float(every)
    paths = tuple(
        SignedPath(nodes, abs(p) if absolute else p, min(abs(p) / whole, 1.0)) for nodes, p in found
    )
    return Paths(source, targets, method, paths, float(total), whole)


def _reach(edges: Edges, source: int, scale: Float64[Tensor, " row"]) -> Float64[Tensor, " source"]:
    """Of every node, the largest abs(product) of a path from the source up to and including it.

    Including it: a feature's own row scale is part of its reach, so that reach times what stands
    above the node bounds every path through it, and is met by the best.
    """
    layout = edges.layout
    reach = torch.zeros(layout.n_sources, dtype=torch.float64)
    reach[source] = 1.0
    for stripe in reversed(list(edges.structure.stripes())):
        below = reach[stripe.columns]
        if not below.any():
            continue
        for span in stripe.spans:
            wide = edges.values[span.start : span.stop].to(torch.float64, copy=True).abs_()
            for piece in span.pieces:
                best = (piece.view(wide) * below[: piece.n_columns]).amax(1)
                reach[piece.rows] = torch.maximum(reach[piece.rows], best * scale[piece.rows])
        for target, origin, value in _extras(edges, stripe.rows):
            reach[target] = max(reach[target], abs(value) * reach[origin] * scale[target])
    return reach


def _extras(edges: Edges, rows: slice) -> list[tuple[int, int, float]]:
    mine = (edges.extra_index[:, 0] >= rows.start) & (edges.extra_index[:, 0] < rows.stop)
    index, values = edges.extra_index[mine].tolist(), edges.extra_values[mine].tolist()
    return [(target, origin, value) for (target, origin), value in zip(index, values, strict=True)]


def _search(
    edges: Edges,
    source: int,
    weights: Float64[Tensor, " logit"],
    *,
    scale: Float64[Tensor, " row"],
    reach: Float64[Tensor, " source"],
    k: int,
) -> list[tuple[tuple[int, ...], float]]:
    """Best-first from the logits down; a path leaves the queue in the order of its product."""
    layout = edges.layout
    ties = itertools.count()
    queue: list[tuple[float, int, float, tuple[int, ...]]] = []

    def expand(above: float, nodes: tuple[int, ...]) -> None:
        carried = above * edges.row(nodes[0])[layout.sources].double()
        bound = carried.abs() * reach
        # No more than k paths are wanted, so no more than k ways down from here can matter.
        best, where = bound.topk(min(k, len(bound)))
        for size, node, value in zip(
            best.tolist(), where.tolist(), carried[where].tolist(), strict=True
        ):
            if size > 0:
                heapq.heappush(queue, (-size, next(ties), value, (node, *nodes)))

    starts = (weights * scale[layout.logit_rows]).tolist()
    for i, above in enumerate(starts):
        if above:
            expand(above, (layout.logit_index(i),))
    found: list[tuple[tuple[int, ...], float]] = []
    while queue and len(found) < k:
        _, _, value, nodes = heapq.heappop(queue)
        if nodes[0] == source:
            found.append((nodes, value))
        else:
            expand(value * float(scale[nodes[0]]), nodes)
    return found
