"""Pruning: the nodes and edges that carry most of the influence on the targets.

circuit-tracer's rule (graph.py, prune_graph): keep the nodes with the largest influence until they
hold `node_threshold` of its sum, and every token and logit; in the graph of these nodes alone, keep
the edges with the largest edge influence until they hold `edge_threshold`; then drop features and
errors that are left without an edge out, and features without an edge in, until nothing changes.

    pruned = prune(graph)  # by absolute influence, seeded with the probabilities
    pruned = prune(graph, Contrast(evil, safe))  # by the size of signed influence
    pruned.node_mask, pruned.edges.targets
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from em_circuits.contrast import Contrast
from em_circuits.graphs.edges import Edges
from em_circuits.graphs.graph import AttributionGraph
from em_circuits.influence.methods import UPSTREAM_FLOOR, Method, mass_scale, row_scale
from em_circuits.influence.propagate import propagate
from em_circuits.influence.targets import Targets
from pivotal_tokens.errors import RequestError

NEAR = 1e-6
"""Nodes whose score differs from the threshold by less, relatively, could fall on either side."""


@dataclass(frozen=True, eq=False)
class EdgeList:
    """Edges that remain.

    Attributes:
        targets: Node indices.
        sources: Node indices.
        weights: Direct effects, as in the graph.
    """

    targets: Int64[Tensor, " edge"]
    sources: Int64[Tensor, " edge"]
    weights: Float32[Tensor, " edge"]

    def __len__(self) -> int:
        return len(self.weights)

    def where(self, chosen: Bool[Tensor, " edge"]) -> EdgeList:
        """Some of them."""
        return EdgeList(self.targets[chosen], self.sources[chosen], self.weights[chosen])

    @classmethod
    def joined(cls, parts: Sequence[EdgeList]) -> EdgeList:
        """All of several lists; an edge that is in two is taken once."""
        empty = torch.empty(0, dtype=torch.int64)
        targets, sources = (
            torch.cat([empty, *(getattr(part, name) for part in parts)])
            for name in ("targets", "sources")
        )
        weights = torch.cat([torch.empty(0), *(part.weights for part in parts)])
        ends = torch.stack([targets, sources])
        unique, inverse = ends.unique(dim=1, return_inverse=True)
        first = torch.full((unique.shape[1],), len(weights), dtype=torch.int64)
        first.scatter_reduce_(0, inverse, torch.arange(len(weights)), "amin")
        return cls(targets[first], sources[first], weights[first])


@dataclass(frozen=True, eq=False)
class PrunedGraph:
    """What is left of a graph.

    Attributes:
        node_mask: Nodes that are left, tokens and logits among them.
        edges: Edges that are left.
        scores: What nodes were ranked by, not negative; 0 for logits.
        cumulative: Share of the sum of scores held by a node and all that rank above it.
        near_threshold: Nodes so close to the node threshold that rounding decides.
        targets: One target, that influence was on.
        method: By which influence.
        node_threshold: Share of all node influence that was asked for.
        edge_threshold: Share of all edge influence among these nodes that was asked for.
    """

    node_mask: Bool[Tensor, " node"]
    edges: EdgeList
    scores: Float64[Tensor, " node"]
    cumulative: Float64[Tensor, " node"]
    near_threshold: Int64[Tensor, " near"]
    targets: Targets
    method: Method
    node_threshold: float
    edge_threshold: float

    def __repr__(self) -> str:
        n_nodes = int(self.node_mask.sum())
        return f"PrunedGraph({self.method}, {n_nodes:,} nodes, {len(self.edges):,} edges)"


def prune(
    graph: AttributionGraph,
    targets: Targets | Contrast | None = None,
    *,
    method: Method = Method.SIGNED,
    node_threshold: float = 0.8,
    edge_threshold: float = 0.98,
) -> PrunedGraph:
    """The nodes and edges that carry most of the influence on the targets.

    Without targets, circuit-tracer's rule (`circuit_tracer.graph.prune_graph`): absolute influence,
    seeded with the probabilities. With targets, the size of signed influence on them: paths that
    cancel each other do not count, and the row scale stays that of the whole graph, so that a score
    is the same number before and after another branch is pruned.

    Args:
        graph: The graph.
        targets: One target; None for circuit-tracer's rule.
        method: `signed_influence` or `total_effect`, where there is a target.
        node_threshold: Share of the sum of abs(influence) that the nodes hold, 0 to 1.
        edge_threshold: Share of the sum of abs(edge influence) that the edges among these nodes
            hold, 0 to 1.

    Returns:
        Masks and edges over the nodes of `graph`, which stays as it is.

    Raises:
        RequestError: If there is not exactly one target, the method has no sign or no hops, or a
            threshold is outside 0..1.
    """
    unsigned = targets is None
    if targets is None:
        targets, method = Targets.probabilities(graph), Method.ABSOLUTE
    elif method not in (Method.SIGNED, Method.TOTAL_EFFECT):
        raise RequestError(f"Pruning by targets takes signed_influence or total_effect: {method}.")
    targets = Targets.of(graph, targets)
    if len(targets) != 1:
        raise RequestError(f"Pruning is for one target, got {len(targets)}.")
    for name, value in (("node_threshold", node_threshold), ("edge_threshold", edge_threshold)):
        if not 0 <= value <= 1:
            raise RequestError(f"{name} must lie in 0..1, got {value}.")
    layout, edges = graph.layout, graph.require_edges()
    scale = row_scale(graph, method)
    scores = propagate(edges, targets.weights, scale, absolute=unsigned).values[0].abs()
    scores[layout.logits] = 0
    least = _threshold(scores, node_threshold)
    node_mask = scores >= least
    node_mask[layout.tokens] = node_mask[layout.logits] = True
    near = ((scores - least).abs() <= NEAR * least).nonzero()[:, 0]
    inner = edges.restricted(node_mask)
    nodes = layout.nodes_with(node_mask[layout.features].nonzero()[:, 0])
    if unsigned:  # rows are rescaled to the edges that are left
        inner_scale = mass_scale(inner, floor=UPSTREAM_FLOOR)
    else:
        rows = layout.rows_of(nodes)
        inner_scale = scale[rows[rows >= 0]]
    carried = propagate(inner, targets.weights, inner_scale, absolute=unsigned).carried[0].abs()
    strongest = _strongest(inner, carried, edge_threshold, nodes)
    node_mask, final_edges = _connected(graph, node_mask, strongest)
    return PrunedGraph(
        node_mask,
        final_edges,
        scores,
        _cumulative(scores),
        near,
        targets=targets,
        method=method,
        node_threshold=node_threshold,
        edge_threshold=edge_threshold,
    )


def _threshold(scores: Float64[Tensor, " item"], share: float) -> float:
    """The smallest score among the largest that together hold `share` of the sum.

    circuit-tracer sorts; here a histogram over the leading bits finds the one bucket the limit lies
    in, and only that is sorted. Scores are not negative, so their bits are ordered as they are.
    """
    total = scores.sum()
    if total <= 0:
        return torch.inf
    shift = 45  # sign, exponent and 7 leading bits of the mantissa are left
    mass = torch.zeros(1 << (64 - shift), dtype=torch.float64)
    for chunk in scores.split(1 << 18):
        buckets = chunk.view(torch.int64) >> shift
        mass += torch.bincount(buckets, chunk, minlength=len(mass))
    above = mass.flip(0).cumsum(0).flip(0)  # mass of a bucket and all higher ones
    goal = share * total
    reached = (above >= goal) & (mass > 0)
    bucket = int(reached.nonzero()[-1]) if reached.any() else int((mass > 0).nonzero()[0])
    inside = scores[(scores.view(torch.int64) >> shift) == bucket].sort(descending=True).values
    cumulative = inside.cumsum(0) + (above[bucket] - mass[bucket])
    index = int(torch.searchsorted(cumulative, goal))
    return float(inside[min(index, len(inside) - 1)])


def _strongest(
    edges: Edges, carried: Float64[Tensor, " row"], share: float, node_of: Int64[Tensor, " node"]
) -> EdgeList:
    """The edges that carry most; node indices are those of the whole graph."""
    layout = edges.layout
    scores = torch.empty(edges.values.numel(), dtype=torch.float64)
    for stripe in edges.structure.stripes():
        for block in stripe.blocks:
            into = block.view(scores).copy_(edges.block(block))
            into.abs_().mul_(carried[block.rows, None])
    logit_scores = edges.logit_values.double().abs() * carried[layout.logit_rows, None]
    extra_rows = layout.rows_of(edges.extra_index[:, 0])
    extra_scores = edges.extra_values.double().abs() * carried[extra_rows]
    least = _threshold(torch.cat([scores, logit_scores.flatten(), extra_scores]), share)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for stripe in edges.structure.stripes():
        for block in stripe.blocks:
            row, column = (block.view(scores) >= least).nonzero(as_tuple=True)
            weights = edges.block(block)[row, column].float()
            found.append((row + block.rows.start, stripe.columns[column], weights))
    row, column = (logit_scores >= least).nonzero(as_tuple=True)
    targets = layout.nodes_of(row + layout.logit_rows.start)
    found.append((targets, column, edges.logit_values[row, column].float()))
    strong = extra_scores >= least
    row, column = edges.extra_index[strong].unbind(1)
    found.append((row, column, edges.extra_values[strong]))
    targets, sources, weights = (torch.cat(part) for part in zip(*found, strict=True))
    return EdgeList(node_of[targets], node_of[sources], weights)


def _connected(
    graph: AttributionGraph, node_mask: Bool[Tensor, " node"], edges: EdgeList
) -> tuple[Bool[Tensor, " node"], EdgeList]:
    """Drop nodes without an edge out or, for features, in; until nothing changes."""
    layout = graph.layout
    mask, targets, sources, weights = node_mask.clone(), edges.targets, edges.sources, edges.weights
    while True:
        has_out = torch.zeros_like(mask).index_fill_(0, sources, True)
        has_in = torch.zeros_like(mask).index_fill_(0, targets, True)
        left = mask.clone()
        left[layout.inner] &= has_out[layout.inner]
        left[layout.features] &= has_in[layout.features]
        if torch.equal(left, mask):
            return mask, EdgeList(targets, sources, weights)
        mask = left
        keep = mask[targets] & mask[sources]
        targets, sources, weights = targets[keep], sources[keep], weights[keep]


def _cumulative(scores: Float64[Tensor, " node"]) -> Float64[Tensor, " node"]:
    ordered, order = torch.sort(scores, descending=True)
    cumulative = torch.zeros_like(scores)
    total = ordered.sum()
    if total > 0:
        cumulative[order] = ordered.cumsum(0) / total
    return cumulative
