"""Attribution graphs with full edges: everything that is not a node responds as in the real model.

Frozen edges hold attention patterns, norm scales and errors constant; in full edges only the chosen
nodes are held (see `em_circuits.graphs.held`), so that over any set of nodes

    total_effect = gradient, the first-order effect in the real model

and coverage is 1 by construction. Errors are no sources here: their response is in the edges. A row
is a derivative times an activation and does not sum to its target's value, so scores that rest on
such sums (replacement, completeness, the error score) stay with frozen edges.

    graph = attribute(model, prompt, words, edges="full", nodes=512)
    influence(graph, words).top(10)
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from em_circuits.bases import Part, transcoder_parts
from em_circuits.contrast import Contrast
from em_circuits.graphs.edges import Edges
from em_circuits.graphs.gradient import demeaned_targets
from em_circuits.graphs.held import Nodes, captured, choose_nodes, full_edges, site_gradients
from em_circuits.graphs.layout import NodeLayout
from em_circuits.models import Model
from em_circuits.progress import Progress, no_progress

NODES = 512
"""Default number of nodes of a graph with full edges."""


def full_parts(model: Model) -> tuple[Part, ...]:
    """The basis of a graph: features of the model's transcoders."""
    return transcoder_parts(model)


def active_nodes(
    model: Model, input_ids: Int64[Tensor, " pos"]
) -> tuple[Int64[Tensor, "active 3"], Float[Tensor, " active"]]:
    """(layer, position, id) of every active node, sorted so, and their activations."""
    parts = full_parts(model)
    places, values = [], []
    for part, x in zip(parts, captured(model, parts, input_ids), strict=True):
        activations = part.activations(x).clone()
        activations[: part.first_position] = 0
        place = activations.nonzero()
        values.append(activations[place[:, 0], place[:, 1]].float().cpu())
        places.append(torch.cat([torch.full_like(place[:, :1], part.layer), place], 1).cpu())
    return torch.cat(places), torch.cat(values)


def gradient_of_active(
    model: Model,
    input_ids: Int64[Tensor, " pos"],
    weights: Float[Tensor, "target vocab"],
    active: Int64[Tensor, "active 3"],
) -> Float[Tensor, "target active"]:
    """First-order effect of every active node on every target, in float32 on the CPU."""
    parts = full_parts(model)
    gradients = site_gradients(model, parts, input_ids, weights)
    reads = captured(model, parts, input_ids)
    scores = torch.empty(len(weights), len(active))
    for part, own, x in zip(parts, gradients, reads, strict=True):
        mine = active[:, 0] == part.layer
        every = part.scores(part.activations(x), own).cpu()
        scores[:, mine] = every[:, active[mine, 1], active[mine, 2]]
    return scores


def select(
    model: Model,
    input_ids: Int64[Tensor, " pos"],
    targets: Int64[Tensor, " logit"],
    contrast: Contrast | None,
    d_vocab: int,
    *,
    n: int,
) -> Nodes:
    """The n nodes of the largest gradient on the contrast, or without one on all targets."""
    weights = (
        demeaned_targets(targets, d_vocab)
        if contrast is None or not contrast.is_defined
        else contrast.weights(d_vocab)[None]
    )
    return choose_nodes(model, full_parts(model), input_ids, weights, n=n)


def edges_among(
    model: Model,
    nodes: Nodes,
    input_ids: Int64[Tensor, " pos"],
    targets: Int64[Tensor, " logit"],
    d_vocab: int,
    *,
    progress: Progress = no_progress,
) -> Edges:
    """Full edges in the packed form that graphs are stored in; error columns are 0."""
    weights = demeaned_targets(targets, d_vocab)
    found = full_edges(model, nodes, input_ids, weights, progress=progress)
    layers = torch.tensor([part.layer for part in nodes.parts])[nodes.part]
    layout = NodeLayout(
        n_features=len(nodes),
        n_layers=model.sites.n_layers,
        n_pos=len(input_ids),
        n_logits=len(targets),
    )
    matrix = torch.zeros(layout.n_rows, layout.n_sources)
    matrix[:, layout.features] = found.values[:, : len(nodes)]
    matrix[:, layout.tokens] = found.values[:, len(nodes) :]
    return Edges.from_dense(matrix, layout, layers, nodes.position)
