"""Propagation of target weights to every node, in one pass over the edges.

For seed weights w on the logits and a reciprocal row scale 1/d, the values are

    S = w A (I - P)^-1,   P = diag(1/d) A on feature rows, else 0

Rows of layer l read only from layers below l. So once the layers above are done, S on layer l is
final: visiting layers from the last to the first adds each edge exactly once. It is the vector
that is scaled, not the matrix, and packed values are widened to float64 a cache-sized chunk at a
time.

    flow = propagate(edges, seeds, scale)
    flow.values[target, node]
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from em_circuits.graphs.edges import Edges
from em_circuits.graphs.structure import CHUNK, Stripe
from pivotal_tokens.errors import WorkFailed


class Flow(NamedTuple):
    """What a pass leaves behind.

    Attributes:
        values: S of every node; a logit's is its seed weight.
        carried: What each row was multiplied by: S/d on feature rows, w/d on logit rows.
    """

    values: Float64[Tensor, "target node"]
    carried: Float64[Tensor, "target row"]


def propagate(
    edges: Edges,
    seeds: Float64[Tensor, "target logit"],
    scale: Float64[Tensor, " row"],
    *,
    absolute: bool = False,
) -> Flow:
    """Carry seed weights from the logits down to every node.

    Args:
        edges: Rows targets, columns sources.
        seeds: w, one row per target.
        scale: 1/d of every row, features then logits; 0 for a row that carries nothing on.
        absolute: Use abs(A).

    Raises:
        WorkFailed: If edges run in a circle, or a value is not finite; the message names the node.
    """
    layout = edges.layout
    values = torch.zeros(len(seeds), layout.n_nodes, dtype=torch.float64)
    carried = torch.zeros(len(seeds), layout.n_rows, dtype=torch.float64)
    values[:, layout.logits] = seeds
    from_logits = seeds * scale[layout.logit_rows]
    carried[:, layout.logit_rows] = from_logits
    widest = max(CHUNK, layout.n_sources)
    buffer = torch.empty(widest, dtype=torch.float64)
    for i, row in enumerate(edges.logit_values):
        wide = _widen(row, buffer, absolute)
        values[:, layout.sources].addmm_(from_logits[:, i, None], wide[None])
    if not is_regular(edges):
        _one_by_one(edges, values, carried, scale, absolute)
        _refuse_non_finite(edges, values)
        return Flow(values, carried)
    for stripe in edges.structure.stripes():
        here = values[:, stripe.rows] * scale[stripe.rows]
        carried[:, stripe.rows] = here
        if here.any():
            values.index_add_(1, stripe.columns, _below(edges, stripe, here, buffer, absolute))
            _add_extra(edges, stripe, here, values, absolute)
    _refuse_non_finite(edges, values)
    return Flow(values, carried)


def _below(
    edges: Edges, stripe: Stripe, here: Tensor, buffer: Tensor, absolute: bool
) -> Float64[Tensor, "target column"]:
    """What one layer's rows pass on to the sources below it, in the stripe's column order."""
    out = torch.zeros(len(here), len(stripe.columns), dtype=torch.float64)
    first = stripe.rows.start
    for span in stripe.spans:
        wide = _widen(edges.values[span.start : span.stop], buffer, absolute)
        for piece in span.pieces:
            weights = here[:, piece.rows.start - first : piece.rows.stop - first]
            # addmm_(x, B) and not B.T @ x.T, which takes ten times as long.
            out[:, : piece.n_columns].addmm_(weights, piece.view(wide))
    return out


def _widen(packed: Tensor, buffer: Tensor, absolute: bool) -> Tensor:
    wide = buffer[: packed.numel()].copy_(packed)
    return wide.abs_() if absolute else wide


def _add_extra(edges: Edges, stripe: Stripe, here: Tensor, values: Tensor, absolute: bool) -> None:
    targets = edges.extra_index[:, 0]
    mine = (targets >= stripe.rows.start) & (targets < stripe.rows.stop)
    if mine.any():
        weights = edges.extra_values[mine].double()
        weights = weights.abs() if absolute else weights
        passed = here[:, targets[mine] - stripe.rows.start] * weights
        values.index_add_(1, edges.extra_index[mine, 1], passed)


def _one_by_one(
    edges: Edges, values: Tensor, carried: Tensor, scale: Tensor, absolute: bool
) -> None:
    """The same pass, row by row, for a graph whose edges do not all run from layer to layer."""
    for row in _topological(edges):
        weights = edges.row(row).double()
        here = values[:, row] * scale[row]
        carried[:, row] = here
        values.addmm_(here[:, None], (weights.abs() if absolute else weights)[None])


def is_regular(edges: Edges) -> bool:
    """Whether layers are an order in which one pass is right; packed rows always are.

    Raises:
        WorkFailed: If an error or a token has inputs, or a logit is a source.
    """
    if not len(edges.extra_index):
        return True
    layout, structure = edges.layout, edges.structure
    targets, sources = edges.extra_index.unbind(1)
    wrong = (layout.rows_of(targets) < 0) | ~layout.is_source(sources)
    if wrong.any():
        source, target = edges.extra_index[wrong.nonzero()[0, 0]].flip(0).tolist()
        raise WorkFailed(
            f"The edge {structure.describe(source)} -> {structure.describe(target)} cannot be: "
            "only features and logits have inputs, and a logit is no input. This is not an "
            "attribution graph."
        )
    between, parts = layout.is_feature(sources), structure.feature_parts
    return bool((parts[sources[between]] < parts[targets[between]]).all())


def _topological(edges: Edges) -> list[int]:
    """Feature rows of an irregular graph, every target before its sources (Kahn's algorithm).

    Raises:
        WorkFailed: If there is no such order; the message names a feature on a cycle.
    """
    features = edges.layout.features
    reads = edges.to_dense()[features, features] != 0
    waiting = reads.sum(0)
    ready = (waiting == 0).nonzero()[:, 0].tolist()
    order = []
    while ready:
        row = ready.pop()
        order.append(row)
        sources = reads[row].nonzero()[:, 0]
        waiting[sources] -= 1
        ready += sources[waiting[sources] == 0].tolist()
    if len(order) < len(reads):
        node = int((waiting > 0).nonzero()[0])
        raise WorkFailed(
            f"The edges run in a circle through {edges.structure.describe(node)}: this is not an "
            "attribution graph."
        )
    return order


def _refuse_non_finite(edges: Edges, values: Tensor) -> None:
    bad = ~values.isfinite()
    if bad.any():
        target, node = bad.nonzero()[-1].tolist()
        raise WorkFailed(
            f"The influence of {edges.structure.describe(node)} on target {target} is "
            f"{float(values[target, node])}: its edges are NaN or too large for float64. Check the "
            "graph with 'em-circuits graphs verify' and build it again."
        )
