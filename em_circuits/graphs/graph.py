"""One attribution graph: a prompt, a model, nodes and edges.

Feature node i is the active feature `active[selected[i]]` = (part, position, id), with activation
`activations[selected[i]]`. A part is a layer, unless the graph's header lists others: ranks of
LoRA modules stand beside features, each module a part of its own. Every value is checked when the
graph is made, so that code that holds a graph need not check again.

    graph  # AttributionGraph(merged, 44a71bc74c37, 1,204 features, 10 logits, frozen edges)
    graph.layout.features  # slice of node indices
    graph.feature_name(i)  # NodeName(module="", layer=2, position=11, id=431)
    graph.name_of(i), graph.node_named("2/11/431"), graph.node_named("down_proj:1/11/0")
    graph.targets.probabilities  # float32 softmax of the logits the graph was made from
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from em_circuits.coordinates import row_keys
from em_circuits.feature import AdapterRank, Feature
from em_circuits.graphs.edges import Edges
from em_circuits.graphs.header import GraphHeader
from em_circuits.graphs.layout import NodeKind, NodeLayout
from em_circuits.graphs.structure import Structure
from em_circuits.target import Target
from pivotal_tokens.errors import RequestError

_NODE = re.compile(
    r"error:(?P<error>\d{1,9}/\d{1,9})|token:(?P<token>\d{1,9})|logit:(?P<logit>\d{1,9})"
    r"|(?:[a-z][a-z0-9_]{0,40}:)?\d{1,9}/-?\d{1,9}/\d{1,9}",
    re.ASCII,
)


MODULES_SHOWN = 8
"""Of an adapter, in a message."""


@dataclass(frozen=True, eq=False)
class LogitTargets:
    """The targets of a graph: one row each.

    Attributes:
        token_ids: Vocabulary ids; an id of d_vocab or more is a virtual target.
        texts: Decoded tokens, or labels of virtual targets.
        probabilities: float32 softmax of the captured logits over the whole vocabulary; of a
            virtual target, the weight it was given.
        logits: Captured raw logits; None in a graph of a tool that does not keep them.
        ranks: 1-based rank over the whole vocabulary, ties by token id; None as for `logits`.
    """

    token_ids: Int64[Tensor, " logit"]
    texts: tuple[str, ...]
    probabilities: Float32[Tensor, " logit"]
    logits: Float32[Tensor, " logit"] | None = None
    ranks: Int64[Tensor, " logit"] | None = None

    def __post_init__(self) -> None:
        n = len(self.texts)
        for name in ("token_ids", "probabilities", "logits", "ranks"):
            tensor = getattr(self, name)
            if tensor is not None and tensor.shape != (n,):
                raise RequestError(
                    f"Targets: {name} must have shape ({n},) like texts, got {tuple(tensor.shape)}."
                )
        _require(bool((self.token_ids >= 0).all()), "Targets: token_ids must not be negative.")
        _require(
            bool((self.probabilities.isfinite() & (self.probabilities >= 0)).all()),
            "Targets: probabilities must be finite and not negative.",
        )
        if self.logits is not None:
            _require(bool(self.logits.isfinite().all()), "Targets: logits must be finite.")
        if self.ranks is not None:
            _require(bool((self.ranks >= 1).all()), "Targets: ranks start at 1.")

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return f"LogitTargets({len(self)} tokens: {', '.join(map(repr, self.texts))})"

    def index_of(self, token_id: int) -> int | None:
        """Index of a token among the targets (its first, if it occurs twice); else None."""
        found = (self.token_ids == token_id).nonzero()
        return int(found[0]) if found.numel() else None


class NodeName(NamedTuple):
    """What an active node is, and where: the same in every graph that it occurs in."""

    module: str
    """Of an adapter's rank; empty for a feature."""
    layer: int
    position: int
    id: int

    def __str__(self) -> str:
        own = (self.layer, self.position, self.id)
        return str(AdapterRank(self.module, *own) if self.module else Feature(*own))


@dataclass(frozen=True, eq=False)
class AttributionGraph:
    """One prompt, one model: nodes, edges and scores.

    Attributes:
        header: What it is of.
        input_ids: Prompt tokens, BOS included.
        active: (part, position, id) of every active feature, sorted so; of those of the largest
            effects and the nodes alone, where there are fewer of them than `n_active`.
        activations: Activation of every active feature.
        selected: Indices into `active` of the feature nodes, ascending.
        targets: The logit nodes.
        edges: Direct effects; None if only scores were stored.
        measured: Beside full edges, what each edge is when its source is really removed and all
            other nodes are held; None if they were not measured.
        gradient: Gradient score of every active feature for every (demeaned) target; positive =
            the feature's presence raises the target. None if not computed.
    """

    header: GraphHeader
    input_ids: Int64[Tensor, " pos"]
    active: Int64[Tensor, "active 3"]
    activations: Float32[Tensor, " active"]
    selected: Int64[Tensor, " feature"]
    targets: LogitTargets
    edges: Edges | None = None
    gradient: Float32[Tensor, "logit active"] | None = None
    measured: Edges | None = None

    def __post_init__(self) -> None:
        self._check_header()
        self._check_active()
        self._check_selected()
        if self.gradient is not None:
            expected = (len(self.targets), len(self.active))
            _require(
                self.gradient.shape == expected,
                f"Graph: gradient must have shape {expected}, got {tuple(self.gradient.shape)}.",
            )
            _require_finite("gradient", self.gradient)
        for edges in (self.edges, self.measured):
            if edges is not None and not edges.structure.same_as(self.structure):
                raise RequestError(
                    f"Graph: the edges are of other features or sizes: {edges.layout}, "
                    f"expected {self.layout}."
                )

    @cached_property
    def layout(self) -> NodeLayout:
        """The node order."""
        return self.header.layout(
            n_features=len(self.selected), n_pos=len(self.input_ids), n_logits=len(self.targets)
        )

    @cached_property
    def structure(self) -> Structure:
        """The mask of the edges."""
        return Structure.of(self.layout, self.selected_features)

    @cached_property
    def selected_features(self) -> Int64[Tensor, "feature 3"]:
        """(part, position, id) of every feature node."""
        return self.active[self.selected]

    @cached_property
    def has_adapter_nodes(self) -> bool:
        """Whether ranks of an adapter are among the nodes."""
        return any(part.module for part in self.header.parts)

    def names(self, coordinates: Int64[Tensor, "node 3"]) -> tuple[NodeName, ...]:
        """What nodes are, from rows of `active` or `selected_features`."""
        parts = self.header.node_parts
        return tuple(
            NodeName(parts[part].module, parts[part].layer, position, number)
            for part, position, number in coordinates.numpy().tolist()  # 20 times torch's
        )

    def feature_name(self, node: int) -> NodeName:
        """What a feature node is."""
        return self._feature_names[node]

    @cached_property
    def _feature_names(self) -> tuple[NodeName, ...]:
        return self.names(self.selected_features)

    def active_index(self, place: NodeName) -> int | None:
        """Row of `active`; None if nothing is active there."""
        row = int(self.active_indices([place])[0])
        return None if row < 0 else row

    def active_indices(self, places: Sequence[NodeName]) -> Int64[Tensor, " place"]:
        """Row of `active` of each place, all different; -1 where nothing is active.

        One pass over a million active neurons, whatever the number of places.
        """
        rows = torch.full((len(places),), -1)
        parts = [self._parts_at.get((place.module, place.layer)) for place in places]
        known = [i for i, part in enumerate(parts) if part is not None]
        if not known or not len(self.active):
            return rows
        wanted = [[parts[i], places[i].position, places[i].id] for i in known]
        active, named = row_keys(self.active, torch.tensor(wanted))
        ordered, of = named.sort()
        at = torch.searchsorted(ordered, active).clamp(max=len(ordered) - 1)
        found = (ordered[at] == active).nonzero()[:, 0]
        rows[torch.tensor(known)[of[at[found]]]] = found
        return rows

    def firing(self, layer: int, feature: int) -> Int64[Tensor, " active"]:
        """Rows of `active` of one feature of a layer, by position."""
        part = self._parts_at.get(("", layer), -1)
        return ((self.active[:, 0] == part) & (self.active[:, 2] == feature)).nonzero()[:, 0]

    @cached_property
    def features(self) -> tuple[Int64[Tensor, "feature 3"], Bool[Tensor, " active"]]:
        """(layer, position, id) of every active feature, ranks of an adapter left out; which rows
        of `active` they are."""
        parts = self.header.node_parts
        is_feature = torch.tensor([not part.module for part in parts])[self.active[:, 0]]
        own = self.active[is_feature]
        layers = torch.tensor([part.layer for part in parts])[own[:, 0]]
        return torch.cat([layers[:, None], own[:, 1:]], 1), is_feature

    @cached_property
    def _parts_at(self) -> dict[tuple[str, int], int]:
        return {(p.module, p.layer): i for i, p in enumerate(self.header.node_parts)}

    @cached_property
    def selected_activations(self) -> Float32[Tensor, " feature"]:
        """Activation of every feature node."""
        return self.activations[self.selected]

    @property
    def n_active(self) -> int:
        """Active features of the prompt, stored or not."""
        return len(self.active) if self.header.n_active is None else self.header.n_active

    @property
    def truncated(self) -> bool:
        """Whether some active features are not nodes, so that paths through them are missing."""
        return len(self.selected) < self.n_active

    @property
    def edge_kind(self) -> str:
        """``frozen`` (circuit-tracer's) or ``full`` (`em_circuits.graphs.held`)."""
        return self.header.edge_kind

    @cached_property
    def target(self) -> Target | None:
        """What it was built for, term by term its logit nodes; None for next tokens."""
        own = self.header.target
        if own is None:
            return None
        terms = self.header.terms
        return Target.from_record(terms, d_vocab=self.header.d_vocab, unit=own.unit, label=own.name)

    def __repr__(self) -> str:
        header = self.header
        sizes = f"{len(self.selected):,} features, {len(self.targets)} logits"
        edges = "scores only" if self.edges is None else f"{header.edges_shown} edges"
        return f"AttributionGraph({header.model}, {header.short_key}, {sizes}, {edges})"

    def _repr_html_(self) -> str:
        """The picture of the graph page, for notebooks; scores alone have no picture."""
        if self.edges is None:
            return html.escape(repr(self))
        # Imported when shown: drawings build on influence, which builds on graphs.
        from em_circuits.influence.drawing import picture

        return picture(self)

    def name_of(self, node: int) -> str:
        """A node's name: ``2/11/431``, ``down_proj:1/11/0``, ``error:2/11``, ``token:11`` or
        ``logit:TOKEN_ID``.

        Never by index: node i is another feature in every graph.
        """
        layout, kind = self.layout, self.layout.kind(node)
        match kind:
            case NodeKind.FEATURE:
                return str(self.feature_name(node))
            case NodeKind.ERROR:
                layer, position = layout.error_coordinates(node)
                return f"error:{layer}/{position}"
            case NodeKind.TOKEN:
                return f"token:{layout.position_of(node)}"
            case NodeKind.LOGIT:
                return f"logit:{int(self.targets.token_ids[layout.target_of(node)])}"

    def node_named(self, name: str) -> int:
        """Index of the node of a name that `name_of` gives.

        Raises:
            RequestError: If the name has none of the four forms, or the graph has no such layer,
                position, target or node; the message distinguishes a feature that fires without
                being a node from one that does not fire.
        """
        text = name.strip()
        if (match := _NODE.fullmatch(text)) is None:
            raise RequestError(
                f"{name!r} names no node: give LAYER/POSITION/ID, error:LAYER/POSITION, "
                "token:POSITION or logit:TOKEN_ID"
            )
        error, token, logit = match["error"], match["token"], match["logit"]
        if error and not self.header.with_errors:
            raise RequestError(
                f"{text}: graph {self.header.short_key} has full edges and no error nodes: what "
                "errors do is in the edges; only graphs with frozen edges have error nodes"
            )
        if error:
            return self.layout.error_index(*map(int, error.split("/")))
        if token:
            return self.layout.token_index(int(token))
        if logit:
            target = self.targets.index_of(int(logit))
            if target is None:
                raise RequestError(f"token {logit} is no target of this graph")
            return self.layout.logit_index(target)
        module = text.partition(":")[0] if ":" in text else ""
        feature = Feature.parse(text.rpartition(":")[2]).at(self.layout.n_pos)
        return self._index_of(NodeName(module, *feature))

    def _index_of(self, place: NodeName) -> int:
        if (place.module, place.layer) not in self._parts_at:
            modules = [f"{p.module} of layer {p.layer}" for p in self.header.parts if p.module]
            known = ", ".join(modules[:MODULES_SHOWN]) or "none"
            known += ", ..." if modules[MODULES_SHOWN:] else ""
            what = f"module {place.module} in" if place.module else "features of"
            raise RequestError(
                f"node {place}: graph {self.header.short_key} has no {what} layer {place.layer} "
                f"({self.header.n_layers} layers, adapter modules: {known})"
            )
        index = self.active_index(place)
        if index is not None:
            found = (self.selected == index).nonzero()[:, 0]
            if len(found):
                return int(found[0])
        more = "--nodes" if self.edge_kind == "full" else "--max-features"
        reason = (
            "does not fire there, so it has no effect"
            if index is None
            else f"fires there but is no node, so its edges are unknown; build with a higher {more}"
        )
        raise RequestError(f"feature {place} of graph {self.header.short_key} {reason}")

    def without_edges(self) -> AttributionGraph:
        """The same with its scores alone."""
        header = self.header.model_copy(update={"measured": False})
        return replace(self, header=header, edges=None, measured=None)

    def require_edges(self) -> Edges:
        """The edges.

        Raises:
            RequestError: If only scores were stored.
        """
        if self.edges is None:
            raise RequestError(
                f"Graph {self.header.short_key} keeps its scores but no edges; build it again with "
                f"'em-circuits graphs build {self.header.prompt_id}'."
            )
        return self.edges

    def _check_header(self) -> None:
        header, n_pos = self.header, len(self.input_ids)
        _require(
            len(header.tokens) in (0, n_pos),
            f"Graph: {len(header.tokens)} texts of {n_pos} tokens.",
        )
        n_parts = len(header.node_parts)
        _require(
            n_parts == self.layout.n_parts,
            f"Graph: {n_parts} parts, expected {self.layout.n_parts}.",
        )
        for part in header.parts:
            _require(
                0 <= part.layer < header.n_layers,
                f"Graph: a part of layer {part.layer} in a model of {header.n_layers} layers.",
            )
        _require(
            header.n_active is None or header.n_active >= len(self.active),
            f"Graph: n_active is {header.n_active}, but {len(self.active)} active nodes are here.",
        )

    def _check_active(self) -> None:
        n = len(self.active)
        _require(
            self.active.shape == (n, 3),
            f"Graph: active must have shape ({n}, 3), got {tuple(self.active.shape)}.",
        )
        _require(
            self.activations.shape == (n,),
            f"Graph: activations must have shape ({n},), one for each row of active, got "
            f"{tuple(self.activations.shape)}.",
        )
        _require_finite("activations", self.activations)
        sizes = (self.layout.n_parts, len(self.input_ids), None)
        names = ("part" if self.header.parts else "layer", "position", "feature id")
        for name, size, values in zip(names, sizes, self.active.unbind(1), strict=True):
            if n and (int(values.min()) < 0 or (size is not None and int(values.max()) >= size)):
                limit = "0 or more" if size is None else f"0..{size - 1}"
                raise RequestError(
                    f"Graph: active has {name} {int(values.min())}..{int(values.max())}, "
                    f"expected {limit}."
                )
        layer, pos, feature = self.active.unbind(1)
        place = self.layout.places(layer, pos)
        step, ids = place.diff(), feature.diff()
        unsorted = ((step < 0) | ((step == 0) & (ids <= 0))).nonzero()
        if unsorted.numel():
            i = int(unsorted[0])
            raise RequestError(
                "Graph: active must be sorted by (part, position, id) without repeats; row "
                f"{i + 1} {tuple(self.active[i + 1].tolist())} follows "
                f"{tuple(self.active[i].tolist())}."
            )

    def _check_selected(self) -> None:
        ascending = bool((self.selected.diff() > 0).all())
        _require(ascending, "Graph: selected must be ascending without repeats.")
        if self.selected.numel():
            low, high = int(self.selected[0]), int(self.selected[-1])
            _require(
                low >= 0 and high < len(self.active),
                f"Graph: selected must lie in 0..{len(self.active) - 1}, got {low}..{high}.",
            )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise RequestError(message)


def _require_finite(name: str, values: Tensor) -> None:
    bad = (~values.isfinite()).nonzero()
    if bad.numel():
        raise RequestError(
            f"Graph: {name} must be finite, got {float(values[tuple(bad[0])])} at "
            f"{bad[0].tolist()} ({len(bad)} in all)."
        )
