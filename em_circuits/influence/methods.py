"""Influence of every node on a target, by four measures.

Positive = the node's presence raises the target; removing it does minus that. With w the seed row
over the (demeaned) logits and d the row scale, `S = w A (I - diag(1/d) A)^-1`:

    direct              w A, one hop
    total_effect        d = activation, logits unscaled: a_s * d target / d a_s in the local
                        replacement model, through every path
    signed_influence    d = sum of abs(A[t, :]), logits too
    absolute_influence  the same of abs(A): circuit-tracer's, no sign

    result = influence(graph, Targets.each(graph), Method.TOTAL_EFFECT)
    result.values[target, node]
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from em_circuits.contrast import Contrast
from em_circuits.feature import Feature
from em_circuits.graphs.edges import Edges
from em_circuits.graphs.graph import AttributionGraph, NodeName
from em_circuits.influence.propagate import Flow, propagate
from em_circuits.influence.targets import Targets
from em_circuits.target import Target
from pivotal_tokens.errors import RequestError

if TYPE_CHECKING:
    from em_circuits.table import FeatureTable

UPSTREAM_FLOOR = 1e-10
"""circuit-tracer's least row sum (graph.py, normalize_matrix): a lighter row is divided by this."""


class Method(StrEnum):
    """The four measures."""

    DIRECT = "direct"
    TOTAL_EFFECT = "total_effect"
    SIGNED = "signed_influence"
    ABSOLUTE = "absolute_influence"


@dataclass(frozen=True, eq=False)
class Influence:
    """Values of every node for every target, with their evidence.

    Attributes:
        method: How they were measured.
        values: In units of the demeaned logit for `direct` and `total_effect`, shares of it for
            the normalised methods; a logit node's value is its seed weight.
        targets: Of what.
        graph_key: In which graph.
        coverage: Per target, of the absolute mass of the rows this influence ran through (each
            weighted by what it carried), the share whose source is in the graph: 1 if every active
            feature is a node. None if the graph does not say what was left out.
    """

    method: Method
    values: Float64[Tensor, "target node"]
    targets: Targets
    graph_key: str
    coverage: Float64[Tensor, " target"] | None
    names: tuple[NodeName, ...]
    """Of the feature nodes, which come first in `values`."""
    activations: Float[Tensor, " feature"]

    @property
    def unit(self) -> str:
        """Of the values: the targets', or ``share``."""
        return unit_of(self.method, self.targets)

    def table(self, target: int = 0) -> FeatureTable:
        """Influence of the features on one target (its row number), most positive first.

        Ranks of an adapter, where they are nodes, are rows with a `module`.
        """
        from em_circuits.table import FeatureTable  # pandas, which influence itself does not need

        values = self.values[target, : len(self.names)]
        modules = [name.module for name in self.names]
        unit = self.unit
        table = FeatureTable.of(
            [Feature(*name[1:]) for name in self.names],
            modules=modules if any(modules) else None,
            by=str(self.method),
            score="influence",
            unit=unit,
            about={"target": self.targets.names[target], "graph": self.graph_key},
            influence=values,
            activation=self.activations,
        )
        return table.sorted_by("influence")

    def top(self, n: int, target: int = 0) -> FeatureTable:
        """The n features that raise a target most."""
        return self.table(target).top(n)

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def __repr__(self) -> str:
        targets, nodes = self.values.shape
        return (
            f"Influence({self.method}, {self.graph_key[:12]}, {targets} targets, {nodes:,} nodes)"
        )


def influence(
    graph: AttributionGraph,
    targets: Targets | Contrast | Target,
    method: Method = Method.TOTAL_EFFECT,
) -> Influence:
    """Influence of every node on every target, through every path (`direct`: one hop).

    ``S = w A (I - P)^-1``, ``P = diag(1/d) A``; positive = the node's presence raises the target.

    Args:
        graph: The graph; its edges may lie in a memory-mapped file.
        targets: Weights over its logits, a contrast of tokens, or the target it was built for.
        method: Decides the row scale d.

    Returns:
        Values of shape (target, node): in logits for `direct` and `total_effect`, else shares.

    Raises:
        RequestError: If `total_effect` meets an activation that is 0 or not finite, or
            `absolute_influence` a negative seed weight.
        WorkFailed: If a value comes out NaN or infinite.
    """
    method, targets = Method(method), Targets.of(graph, targets)
    edges = graph.require_edges()
    if targets.weights.shape[1] != len(graph.targets):
        raise RequestError(
            f"The targets have weights over {targets.weights.shape[1]} logits, the graph has "
            f"{len(graph.targets)}."
        )
    if method is Method.ABSOLUTE and (targets.weights < 0).any():
        raise RequestError(
            "absolute_influence has no sign and takes no negative weights, so no contrast; use "
            "total_effect or signed_influence."
        )
    scale = row_scale(graph, method)
    flow = propagate(edges, targets.weights, scale, absolute=method is Method.ABSOLUTE)
    return Influence(
        method,
        flow.values,
        targets,
        graph.header.key,
        _coverage(graph, flow),
        graph.names(graph.selected_features),
        graph.selected_activations,
    )


def unit_of(method: Method, targets: Targets) -> str:
    """Unit of a method's values: the targets' own, or a share of what flows into a node."""
    return targets.unit if method in (Method.DIRECT, Method.TOTAL_EFFECT) else "share"


def row_scale(graph: AttributionGraph, method: Method) -> Float64[Tensor, " row"]:
    """1/d of every row, features then logits; 0 for a row that passes on no influence.

    Raises:
        RequestError: If `total_effect` meets an activation that is not finite, or 0.
    """
    edges = graph.require_edges()
    match method:
        case Method.DIRECT:
            scale = torch.zeros(graph.layout.n_rows, dtype=torch.float64)
            scale[graph.layout.logit_rows] = 1
            return scale
        case Method.TOTAL_EFFECT:
            activations = graph.selected_activations.double()
            _require_active(graph, activations)
            logits = torch.ones(graph.layout.n_logits, dtype=torch.float64)
            return torch.cat([1 / activations, logits])
        case Method.SIGNED:
            return mass_scale(edges)
        case Method.ABSOLUTE:
            return mass_scale(edges, floor=UPSTREAM_FLOOR)


def mass_scale(edges: Edges, *, floor: float = 0.0) -> Float64[Tensor, " row"]:
    """1 / max(sum of abs(A[t, :]), floor) of every row, 0 for an empty row."""
    mass = edges.row_mass
    return torch.where(mass > 0, 1 / mass.clamp(min=floor), 0.0)


def _require_active(graph: AttributionGraph, activations: Tensor) -> None:
    wrong = ~activations.isfinite() | (activations == 0)
    if wrong.any():
        node = int(wrong.nonzero()[0])
        raise RequestError(
            f"total_effect needs finite activations that are not 0: node {graph.name_of(node)} has "
            f"{float(activations[node])} ({int(wrong.sum())} such); use signed_influence."
        )


def _coverage(graph: AttributionGraph, flow: Flow) -> Float64[Tensor, " target"] | None:
    edges = graph.require_edges()
    if not graph.truncated or graph.edge_kind == "full":
        return torch.ones(len(flow.values), dtype=torch.float64)
    if edges.outside_mass is None:
        return None
    carried = flow.carried.abs()
    inside, outside = carried @ edges.row_mass, carried @ edges.outside_mass
    whole = inside + outside
    return torch.where(whole > 0, inside / whole, 1.0)
