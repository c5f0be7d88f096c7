"""The attribution-graph JSON of circuit-tracer's page and Neuronpedia, read as a pruned graph.

A file holds what pruning left: nodes, signed links, labels (``clerp``), pinned nodes, supernodes.
Read back it is a graph of those nodes that says so (`GraphHeader.pruned`): its edges are those of
the file, so rows sum to less than in the whole graph; logits, ranks and gradient scores are absent.

    graph = import_json(Path("pad-thai.json"))
    graph.header.pruned, notes_of(graph.header).pinned

Schemas: `circuit_tracer.frontend.graph_models` (0.5.0), and Neuronpedia's
github.com/hijohnnylin/neuronpedia, apps/webapp/app/api/graph/graph-schema.json (1.0.0), restated.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, ValidationError
from torch import Tensor

from em_circuits.graphs.edges import Edges
from em_circuits.graphs.graph import AttributionGraph, LogitTargets
from em_circuits.graphs.header import FORMAT_VERSION, GraphHeader, NodePart, Selection
from em_circuits.graphs.interop import foreign_model, without_bos
from em_circuits.graphs.layout import NodeKind, NodeLayout
from pivotal_tokens.artefacts import content_key, sha256_file
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen, prompt_id

HEADER = "em_circuits_header"
"""Entry of `generation_settings` with the header of a graph that this package wrote."""
_NOTES = "notes"
_FEATURE, _ERROR, _TOKEN, _LOGIT = (
    "cross layer transcoder",
    "mlp reconstruction error",
    "embedding",
    "logit",
)
_RANK = re.compile(r"([a-z]\w*?)_(\d+)_(\d+)_(\d+)")
_PLACE = re.compile(r"(\w+?)_(\d+)_(\d+)(?:_\d+)?")
_OUTPUT = re.compile(r'Output "(.*)" \(p=[\d.]+\)', re.DOTALL)


class _Read(BaseModel):
    """Further fields are the writer's own, and pass."""

    model_config = ConfigDict(extra="ignore")


class GraphJsonNode(_Read):
    """A node."""

    node_id: str
    feature: int | None
    layer: str | int
    ctx_idx: int = Field(ge=0)
    feature_type: str
    clerp: str = ""
    token_prob: FiniteFloat = 0.0
    activation: FiniteFloat | None = None


class GraphJsonLink(_Read):
    """A signed direct effect."""

    source: str
    target: str
    weight: FiniteFloat


class GraphJsonView(_Read):
    """The saved view."""

    pinnedIds: list[str] = []
    supernodes: list[list[str]] = []
    """A name, then the members."""


class GraphJsonMetadata(_Read):
    """What the graph is of."""

    slug: str
    scan: str
    transcoder_list: list[str] = []
    prompt_tokens: list[str]
    prompt: str
    schema_version: int | None = None
    generation_settings: dict[str, JsonValue] = {}
    pruning_settings: dict[str, JsonValue] = {}


class GraphJson(_Read):
    """A file."""

    metadata: GraphJsonMetadata
    qParams: GraphJsonView
    nodes: list[GraphJsonNode]
    links: list[GraphJsonLink]


class NodeGroup(Frozen):
    """Nodes that someone takes together."""

    name: str
    members: tuple[str, ...]


class GraphNotes(Frozen):
    """What people wrote on a graph's nodes, by node name (`AttributionGraph.name_of`)."""

    labels: dict[str, str] = Field(default_factory=dict)
    pinned: tuple[str, ...] = ()
    groups: tuple[NodeGroup, ...] = ()
    node_threshold: float | None = None
    """Share of all node influence that was left, where the file says it."""
    edge_threshold: float | None = None


def notes_of(header: GraphHeader) -> GraphNotes:
    """The notes that a graph came with; empty where it had none."""
    return GraphNotes.model_validate(header.extra.get(_NOTES) or {})


def import_json(path: Path) -> AttributionGraph:
    """Read a viewer's JSON as a pruned graph.

    Args:
        path: The file.

    Raises:
        RequestError: If it is none, or its nodes or links contradict each other.
    """
    record = _read(path)
    try:
        return _Importer(path, record).graph()
    except RequestError as error:
        raise RequestError(f"{path} is not a usable graph: {error}") from error


def _read(path: Path) -> GraphJson:
    if not path.is_file():
        raise RequestError(f"No file {path}.")
    try:
        return GraphJson.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise RequestError(
            f"{path} is not an attribution graph of circuit-tracer's page or Neuronpedia: {where}: "
            f"{first['msg']}"
        ) from error


class _Importer:
    """One file on its way to a graph."""

    def __init__(self, path: Path, record: GraphJson) -> None:
        self.path, self.record = path, record
        kinds = Counter(node.feature_type for node in record.nodes)
        if unknown := kinds.keys() - {_FEATURE, _ERROR, _TOKEN, _LOGIT}:
            raise RequestError(
                f"nodes of type {sorted(unknown)[0]!r} have no place in a graph here"
            )
        twice = [i for i, n in Counter(node.node_id for node in record.nodes).items() if n > 1]
        if twice:
            raise RequestError(
                f"two nodes are called {twice[0]}, so links to them say nothing (circuit-tracer "
                "names errors like features of layer 0); write it again with em-circuits graphs "
                "export"
            )
        self.nodes = {kind: [n for n in record.nodes if n.feature_type == kind] for kind in kinds}
        self.n_pos = len(record.metadata.prompt_tokens)
        if late := [node.node_id for node in record.nodes if node.ctx_idx >= self.n_pos]:
            raise RequestError(f"node {late[0]} stands behind the {self.n_pos} prompt tokens")

    def graph(self) -> AttributionGraph:
        """The graph."""
        own = self._own_header()
        placed = [(self._place(node, own), node) for node in self.nodes.get(_FEATURE, ())]
        placed.sort(key=lambda pair: pair[0])
        active = torch.tensor([place for place, _ in placed], dtype=torch.int64).reshape(-1, 3)
        logits = self.nodes.get(_LOGIT, [])
        if not logits:
            raise RequestError("it has no logit nodes")
        graph = AttributionGraph(
            header=own or self._foreign_header(active),
            input_ids=self._input_ids(),
            active=active,
            activations=torch.tensor([node.activation or 0.0 for _, node in placed]),
            selected=torch.arange(len(active)),
            targets=LogitTargets(
                token_ids=torch.tensor([self._token_of(node) for node in logits]),
                texts=tuple(_text_of(node) for node in logits),
                probabilities=torch.tensor([node.token_prob for node in logits]),
            ),
        )
        index = self._index(graph.layout, [node for _, node in placed])
        notes = self._notes({name: graph.name_of(i) for name, i in index.items()})
        kept: dict[str, JsonValue] = {
            _NOTES: notes.model_dump(mode="json"),
            "imported_from": self.path.name,
        }
        return replace(
            graph,
            header=graph.header.model_copy(update={"extra": graph.header.extra | kept}),
            edges=Edges.from_dense(
                self._rows(index, graph.layout),
                graph.layout,
                active[:, 0].contiguous(),
                active[:, 1].contiguous(),
            ),
        )

    def _index(self, layout: NodeLayout, features: list[GraphJsonNode]) -> dict[str, int]:
        """Node id -> index in the graph."""
        index = {node.node_id: i for i, node in enumerate(features)}
        for node in self.nodes.get(_ERROR, ()):
            index[node.node_id] = layout.error_index(int(node.layer), node.ctx_idx)
        for node in self.nodes.get(_TOKEN, ()):
            index[node.node_id] = layout.token_index(node.ctx_idx)
        for i, node in enumerate(self.nodes[_LOGIT]):
            index[node.node_id] = layout.logit_index(i)
        return index

    def _rows(self, index: dict[str, int], layout: NodeLayout) -> Float[Tensor, "row source"]:
        links = self.record.links
        if absent := {end for link in links for end in (link.source, link.target)} - index.keys():
            raise RequestError(f"a link names {sorted(absent)[0]}, which is no node")
        targets = torch.tensor([index[link.target] for link in links], dtype=torch.int64)
        sources = torch.tensor([index[link.source] for link in links], dtype=torch.int64)
        rows = layout.rows_of(targets)
        wrong = ((rows < 0) | ~layout.is_source(sources)).nonzero()[:, 0]
        if len(wrong):
            link = links[int(wrong[0])]
            raise RequestError(f"a link runs from {link.source} to {link.target}, the wrong way")
        matrix = torch.zeros(layout.n_rows, layout.n_sources)
        matrix.index_put_((rows, sources), torch.tensor([link.weight for link in links]), True)
        return matrix

    def _own_header(self) -> GraphHeader | None:
        """The header that this package wrote into the file."""
        written = self.record.metadata.generation_settings.get(HEADER)
        if not isinstance(written, dict):
            return None
        try:
            header = GraphHeader.model_validate(written | self._identity())
        except ValidationError as error:
            raise RequestError(f"{HEADER}: {error.errors()[0]['msg']}") from error
        return header

    def _foreign_header(self, active: Tensor) -> GraphHeader:
        data = self.record.metadata
        layers = [int(node.layer) for node in self.nodes.get(_ERROR, ())]
        layers += active[:, 0].tolist()
        # Logits stand two above the last layer; other writers put them elsewhere.
        last = [int(node.layer) - 1 for node in self.nodes[_LOGIT] if str(node.layer).isdecimal()]
        named = tuple(data.transcoder_list) or data.scan
        return GraphHeader.model_validate(
            {
                "model": foreign_model(data.scan),
                "transcoders": None,
                "n_layers": max([*(layer + 1 for layer in layers), *last[:1]]),
                "scan": named,
                "dtype": "float32",
                "selection": Selection(select_by="all"),
                "d_vocab": 1 + max(self._token_of(node) for node in self.nodes[_LOGIT]),
                **self._identity(),
            }
        )

    def _identity(self) -> dict[str, Any]:
        text = without_bos(self.record.metadata.prompt)
        return {
            "key": content_key(
                {"imported": sha256_file(self.path), "format_version": FORMAT_VERSION}
            ),
            "prompt_id": prompt_id(text),
            "text": text,
            "tokens": tuple(self.record.metadata.prompt_tokens),
            "pruned": True,
        }

    def _place(self, node: GraphJsonNode, own: GraphHeader | None) -> tuple[int, int, int]:
        """(part, position, id) of a feature, neuron or adapter rank."""
        parts = own.node_parts if own else ()
        if rank := _RANK.fullmatch(node.node_id):
            module, layer, number = rank[1], int(rank[2]), int(rank[3])
            found = [i for i, p in enumerate(parts) if (p.module, p.layer) == (module, layer)]
            if not found:
                raise RequestError(f"node {node.node_id} is of no module that is known")
            return found[0], node.ctx_idx, number
        try:
            layer = int(node.layer)
        except ValueError as error:
            raise RequestError(f"node {node.node_id} has no layer: {node.layer!r}") from error
        number = _feature_id(node, layer, paired=self.record.metadata.schema_version == 1)
        return _part_of_layer(parts, layer), node.ctx_idx, number

    def _input_ids(self) -> Tensor:
        """Token ids by position; -1 where the file does not say one."""
        ids = torch.full((self.n_pos,), -1)
        for node in self.nodes.get(_TOKEN, ()):
            named = _PLACE.fullmatch(node.node_id)
            if named is not None and named[1] == "E":
                ids[node.ctx_idx] = int(named[2])
        return ids

    @staticmethod
    def _token_of(node: GraphJsonNode) -> int:
        named = _PLACE.fullmatch(node.node_id)
        token = node.feature if named is None else int(named[2])
        if token is None or token < 0:
            raise RequestError(f"logit node {node.node_id} names no token")
        return token

    def _notes(self, names: dict[str, str]) -> GraphNotes:
        view, pruning = self.record.qParams, self.record.metadata.pruning_settings
        labels = {
            names[node.node_id]: node.clerp
            for node in self.record.nodes
            if node.clerp and node.feature_type != _LOGIT and node.clerp != names[node.node_id]
        }

        def known(ids: list[str]) -> tuple[str, ...]:
            return tuple(names[one] for one in ids if one in names)

        shares = {
            name: float(value)
            for name in ("node_threshold", "edge_threshold")
            if isinstance(value := pruning.get(name), int | float)
        }
        return GraphNotes(
            labels=labels,
            pinned=known(view.pinnedIds),
            groups=tuple(
                NodeGroup(name=group[0], members=known(group[1:]))
                for group in view.supernodes
                if group
            ),
            **shares,
        )


def _part_of_layer(parts: tuple[NodePart, ...], layer: int) -> int:
    """The part of a layer's features; the layer itself where every layer has one and no more."""
    for i, part in enumerate(parts):
        if not part.module and part.layer == layer:
            return i
    return layer


def _feature_id(node: GraphJsonNode, layer: int, *, paired: bool) -> int:
    """A feature's id: from the node's name, else from its number."""
    named = _PLACE.fullmatch(node.node_id)
    if named is not None and named[1] == str(layer):
        return int(named[2])
    if node.feature is None or node.feature < 0:
        raise RequestError(f"node {node.node_id} says no feature id")
    if not paired:
        return node.feature
    # Cantor's pairing of layer and id, undone.
    whole = (math.isqrt(8 * node.feature + 1) - 1) // 2
    return node.feature - whole * (whole + 1) // 2


def _text_of(node: GraphJsonNode) -> str:
    found = _OUTPUT.fullmatch(node.clerp)
    return found[1] if found else node.clerp or node.node_id


KINDS = {
    NodeKind.FEATURE: _FEATURE,
    NodeKind.ERROR: _ERROR,
    NodeKind.TOKEN: _TOKEN,
    NodeKind.LOGIT: _LOGIT,
}
"""The viewers' names of the kinds of node."""
