"""Drawings of attribution graphs: nodes, edges, colours and coordinates, as plain numbers.

One drawing holds one graph of a prompt, or both models' side by side, their nodes aligned by name
(``LAYER/POSITION/ID``, ``error:LAYER/POSITION``, ``token:POSITION``, ``logit:TOKEN``). Everything a
page or a notebook shows of it is computed here:

    scores    by what nodes are ranked: the graph's own influence (`total_effect`), `direct`,
              `gradient`, and what is kept beside the graph, such as `measured`
    tone      colour of a node, -1 (safe) to 1 (evil): sign(v) sqrt(|v| / largest), v its score
              on evil minus safe, *largest* the 98.5th percentile of |v|; labelled logits -1 or 1
    strength  rank of an edge: |weight| times how much of the contrast hangs on its target
    places    tokens from left to right, layers from bottom to top; the nodes of one layer and
              position form a small block. Both models' nodes have places, so toggling moves nothing

    record = drawing({"merged": ScoredGraph.of(graph)}, labels, graph.header.tokens, Cut())
    svg(record, "merged", {"2/11/431": "opens the answer"})
"""

from __future__ import annotations

import contextlib
import html
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from em_circuits.contrast import Contrast
from em_circuits.graphs.graph import AttributionGraph, NodeName
from em_circuits.graphs.layout import NodeKind
from em_circuits.graphs.viewer_json import notes_of
from em_circuits.influence.methods import Method, influence
from em_circuits.influence.pruning import EdgeList, PrunedGraph, prune
from em_circuits.influence.targets import Targets
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Label

DIGITS = 5
"""Significant digits of a number that is drawn."""
STEP = 15.0
"""Between the nodes of a block, in the drawing's units."""
COLUMN_GAP, LEAST_COLUMN, BAND_GAP, WIDEST_GAP = 16.0, 26.0, 34.0, 170.0
_LARGEST = 0.985
_UNLABELLED_LOGIT, _NO_ACTIVATION = 0.02, 0.001
"""Pull of edges into a target that the contrast does not hang on; above 0, so that they rank."""


@dataclass(frozen=True)
class Cut:
    """How much of a graph is drawn."""

    node: float = 0.8
    """Share of all node influence that is shown."""
    edge: float = 0.98
    """Share of all edge influence among the shown nodes."""
    by_contrast: bool = False
    """Weigh by influence on evil minus safe instead of the logits' probabilities."""
    colour: str = ""
    """The score that colours nodes; empty for the graph's influence."""
    keep: tuple[str, ...] = ()
    """Names of nodes that are drawn whatever their share."""
    only_kept: bool = False
    """Draw these, the logits, and every edge among them; nothing else."""
    max_nodes: int = 2000
    max_edges: int = 40_000


KEPT_EDGES = 40
"""Edges, each way, of a node that is drawn though pruning left it out."""
Kept = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Model -> score -> node name -> its value on the contrast, where it is known."""

SMALL = Cut(node=0.6, edge=0.9, max_nodes=150, max_edges=800)
"""What a notebook's cell shows of a graph."""


@dataclass(frozen=True, eq=False)
class ScoredGraph:
    """A graph and the influence of each of its nodes on each of its logits."""

    graph: AttributionGraph
    method: Method
    """`total_effect`, or `signed_influence` where an activation is 0 (an imported graph's)."""
    values: Float64[Tensor, "logit node"]

    @classmethod
    def of(cls, graph: AttributionGraph) -> ScoredGraph:
        """Compute the influences.

        Raises:
            RequestError: If the graph keeps no edges.
        """
        graph.require_edges()
        activations = graph.selected_activations
        divisible = bool((activations.isfinite() & (activations != 0)).all())
        method = Method.TOTAL_EFFECT if divisible else Method.SIGNED
        return cls(graph, method, influence(graph, Targets.each(graph), method).values)

    def seed(self, labels: Mapping[int, Label]) -> Targets | None:
        """The target it was built for, else evil minus safe; None where a side has no target."""
        if self.graph.target is not None:
            return Targets.own(self.graph)
        try:
            return Targets.contrast(self.graph, Contrast.from_labels(labels))
        except RequestError:
            return None

    def contrast(self, labels: Mapping[int, Label]) -> Float64[Tensor, " node"] | None:
        """Influence of every node on the contrast; influence is linear in its target."""
        seed = self.seed(labels)
        return None if seed is None else (seed.weights @ self.values)[0]


def drawing(
    scored: Mapping[str, ScoredGraph],
    labels: Mapping[int, Label],
    tokens: Sequence[str],
    cut: Cut,
    kept: Kept | None = None,
) -> dict[str, Any]:
    """A drawing as JSON values.

    Args:
        scored: ``base``, ``merged`` or both.
        labels: Token id -> label.
        tokens: Texts of the prompt's tokens.
        cut: What is drawn; beyond its limits the weakest nodes and edges are left out.
        kept: Scores beside those that follow from the graphs.

    Returns:
        ``nodes`` (columns over the union of both models' nodes), ``views`` (by model, and
        ``difference`` where there are two: columns over the same nodes, and edges, the strongest
        first, as indices into them; ``value`` and ``tone`` are of the score that colours, all are
        in ``scores``), ``place``, ``tokens``, ``layers``, ``targets``, and ``target``
        (name and unit of what the graphs were built for; None for next tokens, whose labels make
        the contrast).
    """
    parts = {
        name: _Part(one, labels, cut, (kept or {}).get(name, {})) for name, one in scored.items()
    }
    nodes = _Union(parts, len(tokens))
    scores = {name: part.scores(nodes) for name, part in parts.items()}
    views = {name: part.view(nodes, scores[name]) for name, part in parts.items()}
    if {"base", "merged"} <= views.keys():
        both = scores["merged"].keys() & scores["base"].keys()
        scores["difference"] = {
            by: scores["merged"][by] - scores["base"][by] for by in scores["merged"] if by in both
        }
        views["difference"] = {
            "contrast": views["base"]["contrast"] and views["merged"]["contrast"],
            "edges": _differing_edges(views["base"]["edges"], views["merged"]["edges"]),
        }
    unknown = np.full(len(nodes), math.nan)
    values = {}
    for name, view in views.items():
        by = cut.colour if cut.colour in scores[name] else next(iter(scores[name]), "")
        values[name] = scores[name].get(by, unknown)
        view["by"], view["value"] = by, _rounded(values[name])
        view["scores"] = {own: _rounded(found) for own, found in scores[name].items()}
    targets = _targets(scored, labels)
    scales = (
        _largest([v for name, v in values.items() if name != "difference"], nodes),
        _largest([values["difference"]] if "difference" in values else [], nodes),
    )
    for name, view in views.items():
        view["tone"] = nodes.tones(values[name], scales[name == "difference"], targets)
    return {
        "tokens": list(tokens),
        "layers": nodes.n_layers,
        "contrast": any(view["contrast"] for view in views.values()),
        "target": _own_target(scored),
        "targets": targets,
        "nodes": nodes.columns(),
        "views": views,
        "place": nodes.places(targets),
    }


class _Part:
    """One model's pruned graph."""

    def __init__(
        self,
        scored: ScoredGraph,
        labels: Mapping[int, Label],
        cut: Cut,
        kept: Mapping[str, Mapping[str, float]],
    ) -> None:
        self.scored, self.graph, self.cut, self.kept = scored, scored.graph, cut, kept
        self.contrast = scored.contrast(labels)
        self.seed = scored.seed(labels)
        self.pruned = prune(
            self.graph,
            self.seed if cut.by_contrast else None,
            method=scored.method,
            node_threshold=cut.node,
            edge_threshold=cut.edge,
        )
        self.nodes, self.edges, self.n_left_out = self._limited()
        self.names = [self.graph.name_of(i) for i in self.nodes.tolist()]

    def _limited(self) -> tuple[Tensor, EdgeList, tuple[int, int]]:
        """(nodes shown, edges shown, how many of each pruning kept that are not shown)."""
        graph, cut = self.graph, self.cut
        named = torch.tensor(_indices_of(graph, cut.keep), dtype=torch.int64)
        if cut.only_kept:
            mask = torch.zeros_like(self.pruned.node_mask)
            mask[named] = mask[graph.layout.logits] = True
            nodes = mask.nonzero()[:, 0]
            return nodes, _among(graph, nodes, nodes), (0, 0)
        mask, edges = self.pruned.node_mask.clone(), self.pruned.edges
        inner = mask[graph.layout.inner].nonzero()[:, 0]
        if len(inner) > cut.max_nodes:
            weakest = self.pruned.scores[inner].argsort(descending=True)[cut.max_nodes :]
            mask[inner[weakest]] = False
        drawn = mask[edges.targets] & mask[edges.sources]
        if int(drawn.sum()) > cut.max_edges:
            # What an edge is compared with: all that flows into its target.
            mass = graph.require_edges().row_mass[graph.layout.rows_of(edges.targets)]
            strength = torch.where(drawn, edges.weights.abs() / mass.clamp(min=1e-12), 0)
            drawn = torch.zeros_like(drawn)
            drawn[strength.argsort(descending=True)[: cut.max_edges]] = True
        left_out = (int((self.pruned.node_mask & ~mask).sum()), len(edges) - int(drawn.sum()))
        left = replace(self.pruned, node_mask=mask, edges=edges.where(drawn))
        left = keeping(left, graph, cut.keep)
        return left.node_mask.nonzero()[:, 0], left.edges, left_out

    def scores(self, nodes: _Union) -> dict[str, np.ndarray]:
        """Score -> its value on the contrast, of every node of a drawing; NaN where unknown.

        A feature that is inactive here has 0; of one that fires without being a node of the graph
        the gradient alone is known, since its edges are not.
        """
        if self.contrast is None:
            return {}
        assert self.seed is not None
        at, active = nodes.indices(self)
        direct = influence(self.graph, self.seed, Method.DIRECT).values[0]
        found = {
            str(self.scored.method): _taken(self.contrast, at),
            str(Method.DIRECT): _taken(direct, at),
        }
        if self.graph.gradient is not None:
            gradient = self.seed.weights[0].double() @ self.graph.gradient.double()
            found["gradient"] = _taken(gradient, active)
        for by, own in self.kept.items():
            found[by] = np.array([own.get(name, math.nan) for name in nodes.index])
        inactive = nodes.activations(self) == 0
        for values in found.values():
            values[np.isnan(values) & inactive] = 0.0
        return found

    def view(self, nodes: _Union, scores: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The columns of this model over a drawing's nodes."""
        graph, edges = self.graph, self.edges
        shown = np.zeros(len(nodes), dtype=bool)
        at = nodes.index_of(self.names)
        shown[at] = True
        share = np.full(len(nodes), math.nan)
        share[at] = self.pruned.cumulative[self.nodes].numpy()
        activation = nodes.activations(self)
        where = np.full(graph.layout.n_nodes, -1)
        where[self.nodes.numpy()] = at
        weight = edges.weights.double().numpy()
        source, target = (where[ends.numpy()] for ends in (edges.sources, edges.targets))
        influences = scores.get(str(self.scored.method), np.full(len(nodes), math.nan))
        strength = np.abs(weight) * self._pull(nodes, influences, activation)[target]
        order = np.argsort(-strength, kind="stable")
        return {
            "key": graph.header.key,
            "method": str(self.scored.method),
            "edge_kind": graph.edge_kind,
            "cut": {
                "node": self.cut.node,
                "edge": self.cut.edge,
                "by": "contrast" if self.cut.by_contrast else "p",
            },
            "contrast": self.contrast is not None,
            "targets": graph.targets.token_ids.tolist(),
            "features": {"nodes": len(graph.selected), "active": graph.n_active},
            "left_out": dict(zip(("nodes", "edges"), self.n_left_out, strict=True)),
            "shown": shown.tolist(),
            "activation": _rounded(activation),
            "share": _rounded(share),
            "edges": _edges(source[order], target[order], weight[order], strength[order]),
        }

    def _pull(self, nodes: _Union, values: np.ndarray, activation: np.ndarray) -> np.ndarray:
        """How much of the contrast hangs on a unit of each node's input.

        An edge's weight times this is what it contributes. Without a contrast, edges are compared
        by weight alone.
        """
        if self.contrast is None:
            return np.ones(len(nodes))
        with np.errstate(divide="ignore", invalid="ignore"):
            pull = np.abs(values / activation)
        pull[~np.isfinite(pull) | (activation == 0)] = _NO_ACTIVATION
        assert self.seed is not None
        own = self.graph.targets.token_ids.tolist()
        weight = dict(zip(own, self.seed.weights[0].abs().tolist(), strict=True))
        for i in nodes.of_kind(NodeKind.LOGIT):
            pull[i] = weight.get(nodes.token[i]) or _UNLABELLED_LOGIT
        return pull


class _Union:
    """The nodes of a drawing: those of every part, aligned by name."""

    def __init__(self, parts: Mapping[str, _Part], n_tokens: int) -> None:
        self.n_tokens = n_tokens
        self.n_layers = max(part.graph.header.n_layers for part in parts.values())
        self._rows: dict[_Part, np.ndarray] = {}
        self.index: dict[str, int] = {}
        self.kind: list[NodeKind] = []
        self.layer: list[int] = []
        self.position: list[int] = []
        self.feature: list[int | None] = []
        self.module: list[str | None] = []
        self.token: list[int | None] = []
        for part in parts.values():
            for name, i in zip(part.names, part.nodes.tolist(), strict=True):
                if name not in self.index:
                    self.index[name] = len(self.index)
                    self._add(part.graph, i)

    def __len__(self) -> int:
        return len(self.index)

    def _add(self, graph: AttributionGraph, i: int) -> None:
        kind, layout = graph.layout.kind(i), graph.layout
        feature = token = module = None
        match kind:
            case NodeKind.FEATURE:
                place = graph.feature_name(i)
                layer, position, feature, module = *place[1:], place.module or None
            case NodeKind.ERROR:
                layer, position = layout.error_coordinates(i)
            case NodeKind.TOKEN:
                layer, position = -1, layout.position_of(i)
            case NodeKind.LOGIT:
                layer, position = self.n_layers, self.n_tokens - 1
                token = int(graph.targets.token_ids[layout.target_of(i)])
        self.kind.append(kind)
        self.layer.append(layer)
        self.position.append(position)
        self.feature.append(feature)
        self.module.append(module)
        self.token.append(token)

    def of_kind(self, kind: NodeKind) -> list[int]:
        """Indices of the nodes of one kind."""
        return [i for i, own in enumerate(self.kind) if own is kind]

    def index_of(self, names: Sequence[str]) -> np.ndarray:
        """Index of each name."""
        return np.array([self.index[name] for name in names], dtype=np.int64)

    def columns(self) -> dict[str, Any]:
        """What every node is."""
        return {
            "name": list(self.index),
            "kind": [str(kind) for kind in self.kind],
            "layer": self.layer,
            "position": self.position,
            "feature": self.feature,
            "module": self.module,
            "token": self.token,
        }

    def activations(self, part: _Part) -> np.ndarray:
        """Activation of every feature in one graph, shown there or not; NaN for other kinds."""
        features, rows = self._active_rows(part)
        own = np.zeros(len(features))
        own[rows >= 0] = part.graph.activations.numpy()[rows[rows >= 0]]
        found = np.full(len(self), math.nan)
        found[features] = own
        return found

    def indices(self, part: _Part) -> tuple[np.ndarray, np.ndarray]:
        """Of every node, its index among a graph's nodes and among its active ones; -1: none."""
        graph = part.graph
        at, active = (np.full(len(self), -1) for _ in range(2))
        features, active_rows = self._active_rows(part)
        active[features] = active_rows
        at[self.index_of(part.names)] = part.nodes.numpy()
        nodes = {place: i for i, place in enumerate(graph.names(graph.selected_features))}
        for i in features:
            if at[i] < 0:
                at[i] = nodes.get(self._place(i), -1)
        return at, active

    def _active_rows(self, part: _Part) -> tuple[list[int], np.ndarray]:
        """The features of the drawing, and the row of each among a graph's active ones, or -1."""
        features = self.of_kind(NodeKind.FEATURE)
        if part not in self._rows:
            places = [self._place(i) for i in features]
            self._rows[part] = part.graph.active_indices(places).numpy()
        return features, self._rows[part]

    def _place(self, i: int) -> NodeName:
        feature = self.feature[i]
        assert feature is not None
        return NodeName(self.module[i] or "", self.layer[i], self.position[i], feature)

    def tones(
        self, values: np.ndarray, largest: float, targets: Sequence[Mapping[str, Any]]
    ) -> list[float]:
        """Colour of every node, -1 to 1."""
        known = np.nan_to_num(values)
        tone = np.sign(known) * np.minimum(1.0, np.sqrt(np.abs(known) / largest))
        label = {target["token_id"]: target["label"] for target in targets}
        for i in self.of_kind(NodeKind.LOGIT):
            tone[i] = {"evil": 1.0, "safe": -1.0}.get(str(label.get(self.token[i])), 0.0)
        return [round(float(value), 3) for value in tone]

    def places(self, targets: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Positions of nodes: x, and the height above the first row of their band.

        Bands are the tokens, the layers, the logits; their distance is the reader's (`y_of`).
        """
        n_bands = self.n_layers + 2
        cells: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, kind in enumerate(self.kind):
            if kind is not NodeKind.LOGIT:
                cells[self.layer[i] + 1, self.position[i]].append(i)
        most = [1] * self.n_tokens
        for (_, column), members in cells.items():
            most[column] = max(most[column], len(members))
        across = [max(1, math.ceil(math.sqrt(n * 1.7))) for n in most]
        width = [max(LEAST_COLUMN, k * STEP + COLUMN_GAP) for k in across]
        left = np.concatenate([[0.0], np.cumsum(width)])
        rows = [1] * n_bands
        x, rise = np.zeros(len(self)), np.zeros(len(self))
        for (band, column), members in cells.items():
            k = across[column]
            rows[band] = max(rows[band], math.ceil(len(members) / k))
            members.sort(key=lambda i: (self.kind[i] is NodeKind.ERROR, self.feature[i] or 0))
            for n, i in enumerate(members):
                in_row = min(k, len(members) - n // k * k)
                x[i] = left[column] + width[column] / 2 + (n % k - (in_row - 1) / 2) * STEP
                rise[i] = n // k * STEP
        room = self._place_logits(x, float(left[-1]), targets)
        return {
            "width": float(left[-1]),
            "room": room,
            "columns": [
                {"x": float(at) + w / 2, "width": w} for at, w in zip(left[:-1], width, strict=True)
            ],
            "heights": [n * STEP for n in rows],
            "x": _rounded(x),
            "rise": _rounded(rise),
            "band": [
                n_bands - 1 if kind is NodeKind.LOGIT else layer + 1
                for kind, layer in zip(self.kind, self.layer, strict=True)
            ],
        }

    def _place_logits(
        self, x: np.ndarray, total: float, targets: Sequence[Mapping[str, Any]]
    ) -> float:
        """Evil from the right end, then unlabelled, then safe; returns the room of each."""
        about = {target["token_id"]: target for target in targets}
        side = {"safe": 0, "evil": 2}

        def order(i: int) -> tuple[int, float]:
            target = about[self.token[i]]
            return side.get(target["label"], 1), max((target["value"] or target["p"]).values())

        logits = sorted(self.of_kind(NodeKind.LOGIT), key=order)
        room = total / max(len(logits), 1)
        for n, i in enumerate(logits):
            x[i] = room * (n + 0.5)
        return room


def keeping(pruned: PrunedGraph, graph: AttributionGraph, names: Sequence[str]) -> PrunedGraph:
    """What is left of a graph, and some nodes that pruning may have left out, each with its
    strongest edges to and from the others."""
    mask = pruned.node_mask.clone()
    named = torch.tensor(_indices_of(graph, names), dtype=torch.int64)
    forced = named[~mask[named]].unique()
    if not len(forced):
        return pruned
    before = mask.nonzero()[:, 0]
    mask[forced] = True
    into = _among(graph, forced, mask.nonzero()[:, 0], most=KEPT_EDGES)
    out = _among(graph, before, forced, most=KEPT_EDGES)
    return replace(pruned, node_mask=mask, edges=EdgeList.joined([pruned.edges, into, out]))


def _among(
    graph: AttributionGraph,
    targets: Int64[Tensor, " into"],
    sources: Int64[Tensor, " from"],
    most: int | None = None,
) -> EdgeList:
    """Edges from some nodes to others; the strongest of each end of the smaller side alone."""
    edges, by_row = graph.require_edges(), len(targets) <= len(sources)
    found = []
    for node in (targets if by_row else sources).tolist():
        if by_row and graph.layout.rows_of(torch.tensor([node]))[0] < 0:
            continue  # tokens and errors have nothing that flows in
        others = sources if by_row else targets
        weights = (edges.row(node) if by_row else edges.column(node))[others]
        best = weights.abs().argsort(descending=True)[:most]
        best = best[weights[best] != 0]
        own, other = torch.full_like(best, node), others[best]
        ends = (own, other) if by_row else (other, own)
        found.append(EdgeList(*ends, weights[best].float()))
    return EdgeList.joined(found)


def _indices_of(graph: AttributionGraph, names: Sequence[str]) -> list[int]:
    """Indices of those of some names that are nodes of a graph."""
    found = []
    for name in names:
        with contextlib.suppress(RequestError):  # a node of the other model's graph, or of neither
            found.append(graph.node_named(name))
    return found


def _taken(values: Tensor, at: np.ndarray) -> np.ndarray:
    """Values at some indices; NaN at -1."""
    found = np.full(len(at), math.nan)
    found[at >= 0] = values.double().numpy()[at[at >= 0]]
    return found


def picture(
    graph: AttributionGraph,
    contrast: Contrast | None = None,
    cut: Cut = SMALL,
    names: Mapping[str, str] | None = None,
) -> str:
    """A graph as SVG, coloured by its influence on a contrast: one given, or its own, if any.

    Args:
        graph: With edges.
        contrast: Evil and safe tokens.
        cut: What is drawn.
        names: Node name -> what it is called; those that the graph came with otherwise.
    """
    contrast = graph.header.contrast if contrast is None else contrast
    labels = contrast.labels if contrast is not None else {}
    tokens = graph.header.tokens or [f"#{i}" for i in graph.input_ids.tolist()]
    record = drawing({graph.header.model: ScoredGraph.of(graph)}, labels, tokens, cut)
    names = notes_of(graph.header).labels if names is None else names
    return svg(record, graph.header.model, names, title=graph.header.text)


def y_of(place: Mapping[str, Any], aspect: float) -> tuple[list[float], float]:
    """(y of each band's first row, height of the drawing), y growing downwards from 0.

    Args:
        place: Of a drawing.
        aspect: Width by height that the drawing is to fill; bands move apart for it.
    """
    heights = place["heights"]
    natural = sum(heights) + BAND_GAP * (len(heights) - 1)
    spare = (place["width"] / aspect - natural) / (len(heights) - 1)
    gap = BAND_GAP + max(0.0, min(WIDEST_GAP, spare))
    base, y = [], 0.0
    for height in heights:
        base.append(y)
        y -= height + gap
    return base, -base[-1]


def svg(
    record: Mapping[str, Any],
    view: str,
    names: Mapping[str, str],
    *,
    aspect: float = 1.6,
    title: str = "",
) -> str:
    """A drawing as a static SVG picture, readable on light and dark backgrounds.

    Beside a node stands what it is called; where nobody named one, of the strongest who they are.
    """
    place, nodes, shown = record["place"], record["nodes"], record["views"][view]
    base, height = y_of(place, aspect)
    margin = 60.0
    visible = shown.get("shown") or [True] * len(nodes["name"])
    at = [
        (x, base[band] - rise)
        for x, rise, band in zip(place["x"], place["rise"], place["band"], strict=True)
    ]
    edges, lines = shown["edges"], []
    n = len(edges["weight"])
    for k in range(n - 1, -1, -1):  # the strongest last, above the others
        (x1, y1), (x2, y2) = at[edges["source"][k]], at[edges["target"][k]]
        level, middle = (1 - k / n) ** 3, (y1 + y2) / 2
        lines.append(
            f'<path d="M{x1:.1f} {y1:.1f}C{x1:.1f} {middle:.1f} {x2:.1f} {middle:.1f} '
            f'{x2:.1f} {y2:.1f}" stroke="{UP if edges["weight"][k] >= 0 else DOWN}" '
            f'stroke-opacity="{0.05 + 0.6 * level:.2f}" stroke-width="{0.5 + level:.2f}"/>'
        )
    target = {one["token_id"]: one for one in record["targets"]}
    marks = []
    for i, name in enumerate(nodes["name"]):
        if visible[i]:
            marks.append(_mark(nodes, i, name, at[i], shown["tone"][i], target, view))
    features = [i for i, kind in enumerate(nodes["kind"]) if kind == "feature" and visible[i]]
    called = {i: names[nodes["name"][i]] for i in features if names.get(nodes["name"][i])}
    strongest = sorted(features, key=lambda i: -abs(shown["tone"][i]))[:NAMED]
    for i, text in (called or {i: nodes["name"][i] for i in strongest}).items():
        x, y = at[i]
        text = text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}…"
        marks.append(
            f'<text x="{x + 8:.1f}" y="{y + 3:.1f}" font-size="9" paint-order="stroke" '
            f'stroke="#fbfaf8" stroke-width="3">{_escape(text, spaces=False)}</text>'
        )
    for token, column in zip(record["tokens"], place["columns"], strict=True):
        marks.append(
            f'<text x="{column["x"]:.1f}" y="24" text-anchor="end" font-size="10" '
            f'transform="rotate(-50 {column["x"]:.1f} 24)">{_escape(token)}</text>'
        )
    box = (-margin, -height - margin, place["width"] + 2 * margin, height + 3 * margin)
    size = " ".join(f"{value:.0f}" for value in box)
    x, y, width, tall = (f"{value:.0f}" for value in box)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" style="max-width:100%" '
        f'font-family="monospace"><title>{_escape(title)}</title>'
        f'<rect x="{x}" y="{y}" width="{width}" height="{tall}" fill="#fbfaf8"/>'
        f'<g fill="none">{"".join(lines)}</g><g fill="#23211d">{"".join(marks)}</g></svg>'
    )


NAMED = 8
"""Nodes whose place is written beside them where no node has a label."""
LONGEST_NAME = 28
UP, DOWN, MIDDLE = "#b3480f", "#1f6fb2", "#e6e2da"
"""Towards evil, towards safe, neither: legible to colour-blind readers."""


def _mark(
    nodes: Mapping[str, Any],
    i: int,
    name: str,
    at: tuple[float, float],
    tone: float,
    target: Mapping[int, Mapping[str, Any]],
    view: str,
) -> str:
    x, y = at
    if nodes["kind"][i] == NodeKind.LOGIT:
        one = target[nodes["token"][i]]
        return (
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" font-size="11" '
            f'fill="{_mixed(tone) if tone else "#23211d"}">{_escape(one["text"])} '
            f"{_reading(one, view)}</text>"
        )
    r, look = 3 + 3.4 * abs(tone), f'fill="{_mixed(tone)}" stroke="#8b857a" stroke-width=".8"'
    about = f"<title>{_escape(name)}</title>"
    if nodes["module"][i]:
        up, down, side = y - 1.2 * r, y + 0.8 * r, 1.1 * r
        corners = f"{x:.1f},{up:.1f} {x + side:.1f},{down:.1f} {x - side:.1f},{down:.1f}"
        return f'<polygon points="{corners}" {look}>{about}</polygon>'
    if nodes["kind"][i] == NodeKind.FEATURE:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" {look}>{about}</circle>'
    turned = f' transform="rotate(45 {x:.1f} {y:.1f})"' if nodes["kind"][i] == "error" else ""
    return (
        f'<rect x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r:.1f}" height="{2 * r:.1f}"'
        f"{turned} {look}>{about}</rect>"
    )


def _reading(target: Mapping[str, Any], view: str) -> str:
    """A next token's probability, or a term's value."""
    shown = target["value"] or target["p"]
    number = shown.get(view, max(shown.values()))
    return f"{number:.2f}" if target["value"] else f"{number:.1%}"


def _mixed(tone: float) -> str:
    """Between the middle colour and the end that the tone's sign says."""
    ends = [tuple(int(c[k : k + 2], 16) for k in (1, 3, 5)) for c in (MIDDLE, UP, DOWN)]
    end, share = ends[1 if tone >= 0 else 2], min(1.0, abs(tone))
    return "#" + "".join(
        f"{round(a + (b - a) * share):02x}" for a, b in zip(ends[0], end, strict=True)
    )


def _escape(text: str, *, spaces: bool = True) -> str:
    """Text of a model inside a picture: escaped, without invisible characters."""
    from pivotal_tokens.review.display import visible

    return html.escape(visible(text, spaces=spaces))


def _targets(
    scored: Mapping[str, ScoredGraph], labels: Mapping[int, Label]
) -> list[dict[str, Any]]:
    """The logit nodes with their labels and each model's probability.

    Terms of a target of its own have each model's value too, their weight for a probability, and
    the side that they stand on for a label.
    """
    found: dict[int, dict[str, Any]] = {}
    for name, one in scored.items():
        targets, own = one.graph.targets, one.graph.target
        columns = (targets.token_ids.tolist(), targets.texts, targets.probabilities.tolist())
        for i, (token, text, p) in enumerate(zip(*columns, strict=True)):
            label = labels.get(token)
            if own is not None:
                label = "evil" if own.weights[i] > 0 else "safe"
            new = {"token_id": token, "text": text, "label": label, "p": {}, "value": {}}
            found.setdefault(token, new)["p"][name] = p
            if own is not None and targets.logits is not None:
                found[token]["value"][name] = float(targets.logits[i])
    return list(found.values())


def _own_target(scored: Mapping[str, ScoredGraph]) -> dict[str, Any] | None:
    """Name and unit of what the graphs were built for; None for next tokens."""
    found = next((one.graph.header.target for one in scored.values()), None)
    return None if found is None else found.model_dump()


def _edges(
    source: np.ndarray, target: np.ndarray, weight: np.ndarray, strength: np.ndarray
) -> dict[str, list[Any]]:
    return {
        "source": source.tolist(),
        "target": target.tolist(),
        "weight": _rounded(weight),
        "strength": _rounded(strength),
    }


def _differing_edges(
    base: Mapping[str, list[Any]], merged: Mapping[str, list[Any]]
) -> dict[str, list[Any]]:
    """Merged minus base of every edge that is drawn in either."""
    columns = ("source", "target", "weight", "strength")
    source, target, weight, strength = (
        np.concatenate([np.asarray(edges[name], dtype=float) for edges in (merged, base)])
        for name in columns
    )
    sign = np.where(np.arange(len(weight)) < len(merged["weight"]), 1.0, -1.0)
    ends, same = np.unique(np.stack([source, target]).astype(int), axis=1, return_inverse=True)
    total, pull = (
        np.bincount(same.ravel(), sign * values, ends.shape[1])
        for values in (weight, np.copysign(strength, weight))
    )
    order = np.argsort(-np.abs(pull), kind="stable")
    return _edges(ends[0, order], ends[1, order], total[order], np.abs(pull)[order])


def _largest(values: Sequence[np.ndarray], nodes: _Union) -> float:
    """The 98.5th percentile of the magnitudes that are not 0; 1 without any."""
    inner = np.array([kind is not NodeKind.LOGIT for kind in nodes.kind], dtype=bool)
    sizes = [np.abs(v[inner]) for v in values]
    known = np.sort(np.concatenate([s[np.isfinite(s) & (s > 0)] for s in sizes] or [np.empty(0)]))
    return float(known[math.floor(len(known) * _LARGEST)]) if len(known) else 1.0


def rounded(values: Tensor) -> list[float]:
    """A column with as many digits as are drawn."""
    return [float(f"{value:.{DIGITS}g}") for value in values.tolist()]


def _rounded(values: np.ndarray) -> list[float | None]:
    """A column with as many digits as are drawn; None for NaN."""
    return [None if v != v else float(f"{v:.{DIGITS}g}") for v in values.tolist()]
