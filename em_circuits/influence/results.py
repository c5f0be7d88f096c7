"""Result models of ``influence`` and ``graphs paths|prune|scores``.

Nodes carry kind, layer, position and feature id; what does not apply is null; no number is NaN.

    InfluenceResult.of(graph, influence(graph, targets, Method.TOTAL_EFFECT), top=20)
    PathsResult.of(graph, top_paths(graph, source=17, targets=targets))
    PruneResult.of(graph, prune(graph))
    ScoresResult.of(graph)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from pydantic import Field

from em_circuits.graphs.graph import AttributionGraph
from em_circuits.graphs.layout import NodeKind
from em_circuits.influence.methods import Influence, Method, unit_of
from em_circuits.influence.paths import Paths
from em_circuits.influence.pruning import PrunedGraph
from em_circuits.influence.scores import error_direct_score, error_influence_share, graph_scores
from em_circuits.influence.targets import Targets, match
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen


class NodePlace(Frozen):
    """What and where a node is."""

    index: int
    kind: NodeKind
    layer: int | None
    position: int | None
    feature: int | None
    """Of an adapter's node: the rank."""
    module: str | None = None
    """Of an adapter's node: the LoRA module, such as ``down_proj``."""

    @property
    def name(self) -> str:
        """As commands take it; of a logit, its kind."""
        match self.kind:
            case NodeKind.FEATURE:
                module = f"{self.module}:" if self.module else ""
                return f"{module}{self.layer}/{self.position}/{self.feature}"
            case NodeKind.ERROR:
                return f"error:{self.layer}/{self.position}"
            case NodeKind.TOKEN:
                return f"token:{self.position}"
        return str(self.kind)


class NodeValues(NodePlace):
    """A node and its influence on each target."""

    values: list[float]


class NamedNode(NodePlace):
    """A node, with the id and text of the token that a token or logit node is of.

    The text of an input token is null: a graph has the ids of its prompt, not a tokenizer.
    """

    token_id: int | None
    """Null for a term of the graph's own target."""
    text: str | None

    @classmethod
    def of(cls, graph: AttributionGraph, i: int) -> NamedNode:
        """A node of a graph."""
        return cls(**_named(graph, i))


class ScoredNode(NamedNode):
    """A node that pruning leaves."""

    score: float
    """What nodes were ranked by."""
    cumulative: float
    """Share of all scores held by this node and those that rank above it."""


class TargetResult(Frozen):
    """One target: a logit with its token, a term of the graph's own target, or the weights (token
    id or term -> weight) over several."""

    index: int
    token_id: int | None
    text: str
    probability: float | None
    weights: dict[str, float] | None

    @classmethod
    def of(cls, graph: AttributionGraph, targets: Targets, i: int = 0) -> TargetResult:
        """The i-th of some targets of a graph."""
        own, logit = graph.targets, targets.logits[i]
        if logit is not None:
            token = _token_of(graph, logit)
            p = None if token is None else float(own.probabilities[logit])
            return cls(index=i, token_id=token, text=own.texts[logit], probability=p, weights=None)
        row = targets.weights[i]
        weights = {
            own.texts[j] if (token := _token_of(graph, j)) is None else str(token): float(row[j])
            for j in row.nonzero()[:, 0].tolist()
        }
        return cls(index=i, token_id=None, text=targets.names[i], probability=None, weights=weights)


class InfluenceResult(Frozen):
    """Influence of nodes on targets."""

    method: Method
    graph: str
    """Its key."""
    coverage: float | None
    """The least over the targets; null if it is not known."""
    unit: str
    """Of the values: ``logits`` or ``nats``, or ``share`` of what flows into each node."""
    targets: list[TargetResult]
    unmatched: list[int]
    """Requested tokens that are not targets of the graph."""
    nodes: list[NodeValues]

    @classmethod
    def of(
        cls, graph: AttributionGraph, influence: Influence, top: int | None = None
    ) -> InfluenceResult:
        """Every node in node order; or the `top` nodes with the largest absolute value over
        targets, largest first.

        Raises:
            RequestError: If the influence is of another graph.
        """
        if influence.graph_key != graph.header.key:
            raise RequestError(
                f"The influence is of graph {influence.graph_key[:12]}, not "
                f"{graph.header.short_key}."
            )
        coverage, targets = influence.coverage, influence.targets
        return cls(
            method=influence.method,
            graph=graph.header.key,
            coverage=float(coverage.min()) if coverage is not None and len(coverage) else None,
            unit=influence.unit,
            targets=[TargetResult.of(graph, targets, i) for i in range(len(targets))],
            unmatched=list(targets.unmatched),
            nodes=[
                NodeValues(**_place(graph, i), values=influence.values[:, i].tolist())
                for i in _largest(influence, top)
            ],
        )


class PathResult(Frozen):
    """One path."""

    product: float
    sign: int
    share: float
    """Of the sum of absolute products of all paths."""
    nodes: list[NamedNode]


class PathsResult(Frozen):
    """The best paths from one node to one target, largest abs(product) first."""

    graph: str
    method: Method
    source: NamedNode = Field(alias="from")
    target: TargetResult
    unit: str
    """Of products and totals: ``logits`` or ``nats``, or ``share``."""
    unmatched: list[int]
    total: float
    """Sum of the products of all paths: the node's influence."""
    absolute_total: float
    paths: list[PathResult]

    @classmethod
    def of(cls, graph: AttributionGraph, paths: Paths) -> PathsResult:
        """Paths of a graph."""
        return cls(
            graph=graph.header.key,
            method=paths.method,
            **{"from": NamedNode.of(graph, paths.source)},
            target=TargetResult.of(graph, paths.targets),
            unit=unit_of(paths.method, paths.targets),
            unmatched=list(paths.targets.unmatched),
            total=paths.total,
            absolute_total=paths.absolute_total,
            paths=[
                PathResult(
                    product=path.product,
                    sign=(path.product > 0) - (path.product < 0),
                    share=path.share,
                    nodes=[NamedNode.of(graph, i) for i in path.nodes],
                )
                for path in paths.paths
            ],
        )


class NodeCounts(Frozen):
    """How many nodes of each kind, and edges."""

    features: int
    errors: int
    tokens: int
    logits: int
    edges: int

    @classmethod
    def of(cls, graph: AttributionGraph, nodes: Iterable[int], n_edges: int) -> NodeCounts:
        """Count some nodes of a graph."""
        kinds = [graph.layout.kind(i) for i in nodes]
        return cls(edges=n_edges, **{f"{kind}s": kinds.count(kind) for kind in NodeKind})


class EdgeResult(Frozen):
    """An edge that pruning leaves, by node indices."""

    source: int
    target: int
    weight: float
    measured: float | None = None
    """The edge's real effect, where the graph has it: its source removed, all other nodes held."""


class PruneResult(Frozen):
    """What pruning leaves: nodes by score, largest first, and edges by size."""

    graph: str
    method: Method
    target: TargetResult
    unmatched: list[int]
    node_threshold: float
    edge_threshold: float
    kept: NodeCounts
    of_all: NodeCounts = Field(alias="of")
    near_threshold: list[int]
    """Nodes so close to the threshold that rounding decides."""
    nodes: list[ScoredNode]
    edges: list[EdgeResult]

    @classmethod
    def of(cls, graph: AttributionGraph, pruned: PrunedGraph) -> PruneResult:
        """A pruned graph."""
        mask = pruned.node_mask.nonzero()[:, 0]
        left = mask[pruned.scores[mask].argsort(descending=True, stable=True)].tolist()
        edges = pruned.edges
        order = edges.weights.abs().argsort(descending=True, stable=True)
        ends = (edges.sources[order], edges.targets[order], edges.weights[order])
        measured: list[float | None] = [None] * len(order)
        if graph.measured is not None:
            tokens = ~graph.layout.is_feature(ends[0])  # an embedding has nothing to be removed to
            real = graph.measured.at(ends[1], ends[0]).tolist()
            measured = [
                None if token else value for token, value in zip(tokens.tolist(), real, strict=True)
            ]
        everything = range(graph.layout.n_nodes)
        return cls(
            graph=graph.header.key,
            method=pruned.method,
            target=TargetResult.of(graph, pruned.targets),
            unmatched=list(pruned.targets.unmatched),
            node_threshold=pruned.node_threshold,
            edge_threshold=pruned.edge_threshold,
            kept=NodeCounts.of(graph, left, len(edges)),
            **{"of": NodeCounts.of(graph, everything, len(graph.require_edges()))},
            near_threshold=pruned.near_threshold.tolist(),
            nodes=[
                ScoredNode(
                    **_named(graph, i),
                    score=float(pruned.scores[i]),
                    cumulative=float(pruned.cumulative[i]),
                )
                for i in left
            ],
            edges=[
                EdgeResult(source=source, target=target, weight=weight, measured=real)
                for source, target, weight, real in zip(
                    *(end.tolist() for end in ends), measured, strict=True
                )
            ],
        )


class ErrorScores(Frozen):
    """How much reaches the targets from error nodes."""

    tokens: list[int] | None
    """Which targets; null for all."""
    unmatched: list[int]
    direct_mean: float
    direct_ratio: float
    multi_hop: float | None


class ScoresResult(Frozen):
    """Replacement, completeness, and the error scores over all targets or over some."""

    graph: str
    prompt_id: str
    model: str
    replacement: float | None
    completeness: float | None
    errors: ErrorScores

    @classmethod
    def of(cls, graph: AttributionGraph, token_ids: Sequence[int] | None = None) -> ScoresResult:
        """Scores of a graph.

        Raises:
            RequestError: If none of the tokens is a target.
        """
        scores = graph_scores(graph)
        return cls(
            graph=graph.header.key,
            prompt_id=graph.header.prompt_id,
            model=graph.header.model,
            replacement=scores.replacement,
            completeness=scores.completeness,
            errors=ErrorScores(
                tokens=None if token_ids is None else list(token_ids),
                unmatched=list(match(graph, token_ids or ())[1]),
                direct_mean=error_direct_score(graph, mode="mean", token_ids=token_ids),
                direct_ratio=error_direct_score(graph, mode="ratio", token_ids=token_ids),
                multi_hop=error_influence_share(graph, token_ids=token_ids),
            ),
        )


def _place(graph: AttributionGraph, i: int) -> dict[str, Any]:
    """The fields of a `NodePlace`."""
    layout, kind = graph.layout, graph.layout.kind(i)
    layer = position = feature = module = None
    if kind is NodeKind.FEATURE:
        found = graph.feature_name(i)
        layer, position, feature, module = *found[1:], found.module or None
    elif kind is NodeKind.ERROR:
        layer, position = layout.error_coordinates(i)
    elif kind is NodeKind.TOKEN:
        position = layout.position_of(i)
    return {
        "index": i,
        "kind": kind,
        "layer": layer,
        "position": position,
        "feature": feature,
        "module": module,
    }


def _named(graph: AttributionGraph, i: int) -> dict[str, Any]:
    """The fields of a `NamedNode`."""
    place, layout, token_id, text = _place(graph, i), graph.layout, None, None
    if place["kind"] is NodeKind.TOKEN:
        token_id = int(graph.input_ids[layout.position_of(i)])
    elif place["kind"] is NodeKind.LOGIT:
        target = layout.target_of(i)
        token_id, text = _token_of(graph, target), graph.targets.texts[target]
    return {**place, "token_id": token_id, "text": text}


def _token_of(graph: AttributionGraph, target: int) -> int | None:
    """Vocabulary id of a target; None for a virtual one."""
    token = int(graph.targets.token_ids[target])
    return token if token < graph.header.d_vocab else None


def _largest(influence: Influence, top: int | None) -> list[int]:
    n_nodes = influence.values.shape[1]
    if top is None:
        return list(range(n_nodes))
    if top < 0:
        raise RequestError(f"--top must be at least 0, got {top}.")
    if not len(influence.values):
        return list(range(min(top, n_nodes)))
    largest = influence.values.abs().amax(0)
    return torch.argsort(largest, descending=True, stable=True)[:top].tolist()
