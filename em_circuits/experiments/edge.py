"""Edges of a stored graph: one split over what carries it, or all of them measured.

result = edge_in(work, graph, "1/9/88", "evil-safe", contrast=words)
result.models[0].parts[0]            # carrier="head 2.3 value" value=0.113
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from em_circuits.contrast import Contrast
from em_circuits.experiments.validate_edges import curved
from em_circuits.graphs import AttributionGraph, AttributionSettings, NodeKind
from em_circuits.graphs.edge_split import By, EdgeSplit, HeadPath, Kind, measured_from, split_edge
from em_circuits.graphs.full import computed_edges, part_record, parts_of
from em_circuits.graphs.gradient import demeaned_targets
from em_circuits.graphs.held import Nodes, captured
from em_circuits.influence.targets import Targets
from em_circuits.models import Model
from em_circuits.statistics import Agreement, agreement
from em_circuits.target import Columns
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen, ModelName

CONTRAST = "evil-safe"
OWN = "own"
"""The target that the graph was built for."""


class EdgePart(Frozen):
    """What one carrier contributes to an edge."""

    carrier: str
    """In words, as ``head 2.3 value``."""
    kind: Kind
    """``residual`` is the source's own write, ``norms`` the scale of the norms that read it."""
    layer: int | None
    head: int | None
    path: HeadPath | None
    """Of a head: its values (pattern constant), or the queries or keys of its pattern."""
    value: float
    """Positive raises the target."""


class EdgeOfModel(Frozen):
    """An edge in one model, among the graph's nodes that are active there."""

    model: ModelName
    why_not: str | None
    """Why there is no such edge in this model; then all else is null or empty."""
    n_nodes: int
    """Nodes held at their values."""
    full: float | None
    """The full edge, from a backward pass of its own."""
    measured: float | None
    """The target's change when the source is really removed and all other nodes are held; null for
    a token, which has no value to be removed to."""
    total: float | None
    """Sum of the parts."""
    parts: tuple[EdgePart, ...]
    """Those that are not 0, the largest first."""


class SplitResult(Frozen):
    """One edge of a graph, split over what carries it."""

    graph: str
    """Its key."""
    prompt_id: str
    source: str
    target: str
    by: By
    """The carrier that is named: the last before the target, or the first after the source."""
    kind: str
    """Of the stored graph's edges: ``frozen`` or ``full``. Parts are of the full edge."""
    unit: str
    """Of the edge: ``logits``, ``nats``, or ``activation`` where the target is a feature."""
    stored: float | None
    """The edge in the graph; null if it keeps none."""
    models: tuple[EdgeOfModel, ...]
    """The graph's own model first."""


@dataclass(frozen=True)
class EdgeEnds:
    """Names of both ends, checked against a graph.

    Attributes:
        graph: Whose nodes they are.
        source: Name of a feature or token.
        target: Name of a feature or a logit, the contrast, or the graph's own target.
        contrast: Evil and safe tokens, where the target is their contrast.
    """

    graph: AttributionGraph
    source: str
    target: str
    contrast: Contrast | None = None

    def __post_init__(self) -> None:
        graph, layout = self.graph, self.graph.layout
        if graph.header.model not in ("base", "merged"):
            raise RequestError(
                f"graph {graph.header.short_key} is of a model named {graph.header.model!r}; only "
                "graphs that graphs build made can be split"
            )
        start = graph.node_named(self.source)
        if layout.kind(start) not in (NodeKind.FEATURE, NodeKind.TOKEN):
            raise RequestError(f"{self.source}: an edge begins at a feature or a token")
        if self.target == OWN:
            Targets.own(graph)
            return
        if self.target == CONTRAST:
            if graph.target is not None:
                raise RequestError(
                    f"graph {graph.header.short_key} is of {graph.target.name}, not of next "
                    f"tokens; give {OWN}, or a term (graphs show)"
                )
            (self.contrast or Contrast((), ())).require()
            return
        end = graph.node_named(self.target)
        if layout.kind(end) not in (NodeKind.FEATURE, NodeKind.LOGIT):
            raise RequestError(
                f"{self.target}: an edge ends at a feature, a logit, {CONTRAST} or {OWN}"
            )
        if layout.kind(end) is NodeKind.FEATURE and not self._is_before(start, end):
            raise RequestError(
                f"no edge leads from {self.source} to {self.target}: edges run to later layers, at "
                "the same or later positions"
            )

    def _is_before(self, start: int, end: int) -> bool:
        features, layout = self.graph.selected_features, self.graph.layout
        layer, position, _ = features[end].tolist()
        if layout.kind(start) is NodeKind.TOKEN:
            return layout.position_of(start) <= position
        return bool(features[start, 0] < layer and features[start, 1] <= position)

    @property
    def stored(self) -> float | None:
        """The edge as the graph keeps it."""
        graph = self.graph
        if graph.edges is None:
            return None
        start = graph.node_named(self.source)
        if self.target not in (CONTRAST, OWN):
            return float(graph.edges.row(graph.node_named(self.target))[start])
        if self.target == OWN:
            weights = Targets.own(graph).weights[0]
        else:
            assert self.contrast is not None
            weights = self.contrast.over(graph.targets.token_ids)
        return float(weights @ graph.edges.column(start)[-len(weights) :].to(weights))

    @property
    def unit(self) -> str:
        """Of the edge."""
        graph = self.graph
        if self.target not in (CONTRAST, OWN):
            end = graph.node_named(self.target)
            if graph.layout.kind(end) is NodeKind.FEATURE:
                return "activation"
        return graph.target.unit if graph.target is not None else "logits"

    def columns(self) -> tuple[Columns, Float64[Tensor, " target"]]:
        """Rows of targets, and the weight of each in the edge's; for a feature, any logit."""
        graph, d_vocab = self.graph, self.graph.header.d_vocab
        one = torch.ones(1, dtype=torch.float64)
        if self.target == CONTRAST and self.contrast is not None:
            return self.contrast.weights(d_vocab)[None], one
        own = graph.target
        if self.target == OWN and own is not None:
            return own.terms, own.over()
        end = graph.node_named(self.target)
        first = graph.layout.kind(end) is not NodeKind.LOGIT
        index = 0 if first else graph.layout.target_of(end)
        if own is not None:
            return own.terms[index : index + 1], one
        return demeaned_targets(graph.targets.token_ids[index][None], d_vocab), one


def edge_in(
    work: Workspace,
    graph: AttributionGraph,
    source: str,
    target: str,
    *,
    contrast: Contrast | None = None,
    by: By = "last",
) -> SplitResult:
    """Split an edge of a graph in its own model and in the other one.

    Nodes of the graph are held at their values in each model; parts are of full edges, also where
    the stored graph's edges are frozen.

    Args:
        work: Its models are loaded if they are not.
        graph: Of a model of that pair.
        source: Name of a feature or a token: ``1/9/88``, ``token:4``.
        target: Name of a feature or a logit, ``evil-safe``, or ``own``.
        contrast: What ``evil-safe`` means.
        by: See `em_circuits.graphs.edge_split`.

    Raises:
        RequestError: If the graph has no such ends, no edge can lead from the one to the other, or
            the graph is of other models.
    """
    ends = EdgeEnds(graph, source, target, contrast)
    own, pair = _model_of(work, graph).name, work.pair
    other = "base" if own == "merged" else "merged"
    return SplitResult(
        graph=graph.header.key,
        prompt_id=graph.header.prompt_id,
        source=source,
        target=target,
        by=by,
        kind=graph.edge_kind,
        unit=ends.unit,
        stored=ends.stored,
        models=tuple(_of_model(pair.model(name), ends, by) for name in (own, other)),
    )


class MeasuredGraph(Frozen):
    """A stored graph whose every edge was measured."""

    key: str
    prompt_id: str
    model: str
    nodes: int
    """Each was really removed once, all others held."""
    reused: bool
    """It was measured before."""
    agreement: Agreement
    """Of full edges, from node to node, with measured ones."""
    curved: float
    """Share of edges, those to targets included, where full and measured differ by more than half
    of the larger."""

    @classmethod
    def of(cls, graph: AttributionGraph, *, reused: bool) -> MeasuredGraph:
        """What measuring found."""
        assert graph.measured is not None
        layout = graph.layout
        full, real = (e.to_dense() for e in (graph.require_edges(), graph.measured))
        among = (layout.features, layout.features)
        there = (full[among] != 0) & (real[among] != 0)
        rows = [full[:, layout.features], real[:, layout.features]]
        either = (rows[0] != 0) | (rows[1] != 0)
        found = curved(*(values[either] for values in rows)).double()
        return cls(
            key=graph.header.key,
            prompt_id=graph.header.prompt_id,
            model=graph.header.model,
            nodes=len(graph.selected),
            reused=reused,
            agreement=agreement(full[among][there], real[among][there]),
            curved=float(found.mean()) if len(found) else 0.0,
        )


def require_measurable(graph: AttributionGraph) -> None:
    """Refuse a graph beside whose edges none can be measured.

    Raises:
        RequestError: Saying why.
    """
    header = graph.header
    if header.edge_kind != "full" or header.pruned:
        raise RequestError(
            f"graph {header.short_key} has {header.edges_shown} edges; measured ones stand beside "
            f"full ones: em-circuits graphs build {header.prompt_id} --edges measured"
        )
    graph.require_edges()


def measure_graph(
    work: Workspace, graph: AttributionGraph, settings: AttributionSettings
) -> MeasuredGraph:
    """Measure every edge of a stored graph, and write it again with both kinds.

    Args:
        work: Its models are loaded if they are not.
        graph: Of a model of that pair, with full edges.
        settings: In what batches and memory.

    Raises:
        RequestError: If it has no full edges, or is of other models.
    """
    require_measurable(graph)
    if graph.measured is not None:
        return MeasuredGraph.of(graph, reused=True)
    model, header = _model_of(work, graph), graph.header
    nodes = held_nodes(model, graph)
    if len(nodes) < len(graph.selected):
        raise RequestError(
            f"graph {header.short_key} has {len(graph.selected)} nodes, {len(nodes)} of them are "
            f"active in the model as it is loaded; give --dtype {header.dtype}, as it was built"
        )
    own = graph.target
    columns: Columns = (
        demeaned_targets(graph.targets.token_ids, header.d_vocab) if own is None else own.terms
    )
    measured = computed_edges(
        model,
        nodes,
        graph.input_ids,
        columns,
        settings,
        "measured",
        scratch=(work.graphs.root, header.key),
        progress=work.progress,
    )
    header = header.model_copy(update={"measured": True})
    graph = replace(graph, header=header, measured=measured)
    work.graphs.add_measured(graph)
    return MeasuredGraph.of(graph, reused=False)


def _model_of(work: Workspace, graph: AttributionGraph) -> Model:
    """The loaded model that a graph is of.

    Raises:
        RequestError: If another one is loaded.
    """
    own = graph.header.model
    if (
        own not in ("base", "merged")
        or work.pair.model(own).fingerprint != graph.header.fingerprint
    ):
        raise RequestError(
            f"graph {graph.header.short_key} is of another {own} model; name its models by --base "
            "and --adapter or --merged"
        )
    return work.pair.model(own)


def held_nodes(model: Model, graph: AttributionGraph) -> Nodes:
    """A graph's nodes as far as a model has them and they are active there."""
    ids, records = graph.input_ids, graph.header.node_parts
    bases: Any = dict.fromkeys(record.basis for record in records)
    parts = parts_of(model, tuple(bases))
    at = {part_record(part): i for i, part in enumerate(parts)}
    place = torch.tensor([at.get(record, -1) for record in records], dtype=torch.int64)
    coordinates = graph.selected_features.clone()
    coordinates[:, 0] = place[coordinates[:, 0]]
    coordinates = coordinates[coordinates[:, 0] >= 0]
    activations = torch.zeros(len(coordinates))
    for i, (part, x) in enumerate(zip(parts, captured(model, parts, ids), strict=True)):
        mine = coordinates[:, 0] == i
        here = coordinates[mine, 1:].to(x.device)
        activations[mine] = part.activations(x)[here[:, 0], here[:, 1]].float().cpu()
    active = activations != 0
    return Nodes.of(parts, coordinates[active], activations[active])


def _of_model(model: Model, ends: EdgeEnds, by: By) -> EdgeOfModel:
    graph, ids, nodes = ends.graph, ends.graph.input_ids, held_nodes(model, ends.graph)
    name: ModelName = "base" if model.name == "base" else "merged"
    rows = {end: _row(nodes, graph, end) for end in (ends.source, ends.target)}
    for end, row in rows.items():
        if row is None:
            why = f"{end} is not active there"
            return EdgeOfModel(
                model=name,
                why_not=why,
                n_nodes=len(nodes),
                full=None,
                measured=None,
                total=None,
                parts=(),
            )
    source, target = (row for row in rows.values() if row is not None)
    columns, weights = ends.columns()
    rows_of_target = range(target, target + len(weights))
    split = _summed(
        [
            split_edge(model, nodes, ids, columns, target=row, source=source, by=by)
            for row in rows_of_target
        ],
        weights,
    )
    measured = None
    if source < len(nodes):
        real = measured_from(model, nodes, ids, columns, source=source)
        measured = float(weights @ real[list(rows_of_target)].double())
    return EdgeOfModel(
        model=name,
        why_not=None,
        n_nodes=len(nodes),
        full=float(split.edge[0]),
        measured=measured,
        total=float(split.values[:, 0].double().sum()),
        parts=tuple(_parts(split)),
    )


def _summed(splits: Sequence[EdgeSplit], weights: Float64[Tensor, " target"]) -> EdgeSplit:
    """The split of a weighted sum of targets, from that of each."""
    carriers = tuple(dict.fromkeys(carrier for one in splits for carrier in one.carriers))
    values = torch.zeros(len(carriers), splits[0].values.shape[1], dtype=torch.float64)
    edge = torch.zeros(splits[0].edge.shape, dtype=torch.float64)
    for one, weight in zip(splits, weights.tolist(), strict=True):
        values[[carriers.index(c) for c in one.carriers]] += weight * one.values.double()
        edge += weight * one.edge.double()
    return EdgeSplit(carriers, values.float(), edge)


def _row(nodes: Nodes, graph: AttributionGraph, name: str) -> int | None:
    """Row (or column) of a node among held ones; None if it is not active."""
    if name in (CONTRAST, OWN):
        return len(nodes)
    node = graph.node_named(name)
    match graph.layout.kind(node):
        case NodeKind.LOGIT:
            return len(nodes)
        case NodeKind.TOKEN:
            return len(nodes) + graph.layout.position_of(node)
    own, position, number = graph.selected_features[node].tolist()
    records = [part_record(part) for part in nodes.parts]
    if graph.header.node_parts[own] not in records:
        return None
    part = records.index(graph.header.node_parts[own])
    found = (nodes.part == part) & (nodes.position == position) & (nodes.id == number)
    return int(found.nonzero()[0]) if found.any() else None


def _parts(split: EdgeSplit) -> list[EdgePart]:
    return [
        EdgePart(
            carrier=str(carrier),
            kind=carrier.kind,
            layer=carrier.layer,
            head=carrier.head,
            path=carrier.path,
            value=value,
        )
        for carrier, value in split.largest()
    ]
