"""Circuit search on a graph: the nodes that by themselves bring most of a target.

Put every node but a circuit C to its reference: its activation in another model, or nothing. To
first order each changes by a share r of its activation,

    r_s = -(a_s - ref_s) / a_s                   outside C
    r_t = sum over s of P[t, s] r_s              in C,  P = A[t, s] / a_t

and the faithfulness of C is ``1 - w . r / (w . r of the empty circuit)`` with w the target's row.
From all nodes on, the one whose leaving costs least faithfulness leaves, until `size` are left. A
leaving node's own r falls to that of the outside, and what that does to the target runs through
members alone: ``G_v = w_v + sum over t in C of G_t P[t, v]``. (Growing from nothing instead would
never start where two nodes are needed together.)

    found = search_circuit(graph, words, size=20)
    found.nodes, found.faithfulness              # the last to leave first

Nodes with alike input and output profiles make a supernode: average linkage on the cosine distance
of the two profiles together, as many clusters as give the largest mean silhouette (Rousseeuw 1987).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from em_circuits.contrast import Contrast
from em_circuits.graphs.graph import AttributionGraph
from em_circuits.influence.targets import Targets
from em_circuits.target import Target
from pivotal_tokens.errors import RequestError, WorkFailed

_CANCELS = 1e-3
"""Share of all that nodes do to the target below which their sum is nothing."""
MOST_NODES = 8192
"""Nodes of a graph that is searched: its edges are held as one matrix."""


@dataclass(frozen=True, eq=False)
class CircuitSearch:
    """A circuit of a graph, found by first-order faithfulness.

    Attributes:
        nodes: Indices into the graph's features, the last to leave first.
        faithfulness: Of the first 1, 2, ... of them; predicted.
    """

    nodes: Int64[Tensor, " member"]
    faithfulness: Float64[Tensor, " member"]


def search_circuit(
    graph: AttributionGraph,
    targets: Targets | Contrast | Target,
    *,
    size: int,
    reference: Float[Tensor, " feature"] | None = None,
) -> CircuitSearch:
    """Drop nodes one by one, for the faithfulness that the others have together.

    Args:
        graph: With full edges: those of frozen ones are of another model.
        targets: One target.
        size: Nodes wanted; the circuit is smaller if the graph is.
        reference: Activations that nodes outside the circuit are put to; None ablates them.

    Raises:
        RequestError: The graph's edges are frozen, there are several targets, or too many nodes.
        WorkFailed: The nodes' writes do not move the target.
    """
    targets = Targets.of(graph, targets)
    if graph.edge_kind != "full":
        raise RequestError(
            f"graph {graph.header.short_key} has frozen edges; a circuit is searched on full ones: "
            "em-circuits graphs build PROMPT --edges full"
        )
    if len(targets) != 1:
        raise RequestError(f"a circuit is searched for one target, got {len(targets)}")
    layout = graph.layout
    n = layout.n_features
    if n > MOST_NODES:
        raise RequestError(f"the graph has {n:,} nodes; a search takes {MOST_NODES:,} at most")
    edges = graph.require_edges()
    among = edges.to_dense()[layout.features, layout.features].double()
    scaled = among / graph.selected_activations.double()[:, None]
    logits = edges.logit_rows()[:, layout.features].double()
    weights = (targets.weights.double() @ logits)[0]
    change = torch.ones(n, dtype=torch.float64)
    if reference is not None:
        change -= reference.double() / graph.selected_activations.double()
    total = float(weights @ change)
    if abs(total) <= _CANCELS * float((weights * change).abs().sum()):
        raise WorkFailed("what the nodes write cancels on this target: nothing can be faithful")
    inside = torch.arange(n)
    left: list[int] = []
    faithfulness = [1.0]
    while len(inside) > 1:
        # Members' P is strictly lower triangular: edges run from lower to higher index.
        members = torch.eye(len(inside), dtype=torch.float64) - scaled[inside][:, inside]
        outside = torch.ones(n, dtype=torch.bool)
        outside[inside] = False
        driven = -(scaled[inside][:, outside] @ change[outside])
        response = torch.linalg.solve_triangular(members, driven[:, None], upper=False)[:, 0]
        gain = torch.linalg.solve_triangular(members.T, weights[inside, None], upper=True)[:, 0]
        cost = (change[inside] + response) * gain / total
        out = int(cost.argmin())
        left.append(int(inside[out]))
        faithfulness.append(faithfulness[-1] - float(cost[out]))
        inside = torch.cat([inside[:out], inside[out + 1 :]])
    order = [int(inside[0]), *reversed(left)][:size]
    faithfulness = faithfulness[::-1][:size]
    return CircuitSearch(torch.tensor(order), torch.tensor(faithfulness, dtype=torch.float64))


def profiles(graph: AttributionGraph, nodes: Int64[Tensor, " member"]) -> Float64[Tensor, "m d"]:
    """Where members get their activation from and what they write into, as one unit vector each.

    Input: edges from every node and token. Output: edges to every node and logit. Each part counts
    alike, but for one that is a thousand times shorter than the longest: that is rounding (the
    first layer's nodes may have no edge in at all).
    """
    dense = graph.require_edges().to_dense().double()
    parts = []
    for part in (dense[nodes], dense[:, nodes].T):
        length = part.norm(dim=1, keepdim=True)
        heard = length > _CANCELS * length.max()
        parts.append(torch.where(heard, part / length.clamp_min(1e-30), 0.0))
    return torch.nn.functional.normalize(torch.cat(parts, 1), dim=1)


def supernodes(vectors: Float64[Tensor, "member d"]) -> tuple[list[list[int]], float | None]:
    """Clusters of members by their profiles, and the mean silhouette that decided how many.

    Returns:
        Members of each cluster, largest first; every member by itself, and None, where there are
        fewer than three or no grouping has a positive silhouette.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    n = len(vectors)
    alone = [[i] for i in range(n)]
    if n < 3:
        return alone, None
    distance = (1 - vectors @ vectors.T).clamp_min(0)
    upper = torch.triu_indices(n, n, offset=1)
    tree = linkage(distance[upper[0], upper[1]].numpy(), method="average")
    best: tuple[float, list[int]] = (0.0, [])
    for k in range(2, n):
        labels = fcluster(tree, k, criterion="maxclust").tolist()
        found = _silhouette(distance, labels)
        if found > best[0]:
            best = found, labels
    if not best[1]:
        return alone, None
    groups: dict[int, list[int]] = {}
    for i, label in enumerate(best[1]):
        groups.setdefault(label, []).append(i)
    return sorted(groups.values(), key=lambda group: (-len(group), group)), best[0]


def _silhouette(distance: Float64[Tensor, "member member"], labels: list[int]) -> float:
    """Mean silhouette; a member by itself counts 0."""
    label = torch.tensor(labels)
    values = []
    for i in range(len(label)):
        same = label == label[i]
        same[i] = False
        if not same.any():
            values.append(0.0)
            continue
        near = float(distance[i, same].mean())
        others = [
            float(distance[i, label == other].mean())
            for other in label.unique().tolist()
            if other != label[i]
        ]
        far = min(others, default=near)
        values.append((far - near) / max(far, near) if max(far, near) else 0.0)
    return sum(values) / len(values)
