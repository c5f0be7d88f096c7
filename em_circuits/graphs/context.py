"""How are attribution rows computed faster than upstream, through upstream's own classes?

circuit-tracer contracts the gradient at a layer's MLP output with every active decoder row by
gathering a (batch, features, d_model) copy and taking dot products. Active features are sorted by
(layer, position), so the same numbers are one matrix product per (layer, position) over a
contiguous block of the buffer, without a copy:

    buffer[rows of (l, p), :] = decoder_vecs[rows of (l, p)] @ gradient[:, p].T

Right for per-layer transcoders, whose features write to one layer each.

    context = blocked_context(attribution_context(replacement, input_ids))
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from circuit_tracer.attribution.context_transformerlens import AttributionContext
from jaxtyping import Float64, Int64
from torch import Tensor


class BlockedContext(AttributionContext):
    """circuit-tracer's attribution context with block products in its backward hooks."""

    def _make_attribution_hooks(self, feature_output_hook: str) -> list[tuple[str, Callable]]:
        n_layers, n_pos, _ = self.activation_matrix.shape
        n_active = self.activation_matrix._nnz()
        bounds = _block_bounds(self.decoder_locations, n_layers, n_pos)
        proxy = weakref.proxy(self)  # upstream's way: the hooks must not keep the context alive

        def layer_hook(layer: int) -> Callable:
            errors = slice(n_active + layer * n_pos, n_active + (layer + 1) * n_pos)

            def hook(grads: Tensor, hook: Any) -> None:
                buffer = proxy._batch_buffer
                grads = grads.to(proxy.decoder_vecs.dtype)
                for position, (start, end) in enumerate(bounds[layer]):
                    if end > start:
                        torch.matmul(
                            proxy.decoder_vecs[start:end],
                            grads[:, position].T,
                            out=buffer[start:end],
                        )
                buffer[errors] = _row_products(grads, proxy.error_vectors[layer])

            return hook

        def token_hook(grads: Tensor, hook: Any) -> None:
            tokens = slice(n_active + n_layers * n_pos, n_active + (n_layers + 1) * n_pos)
            vectors = proxy.token_vectors
            proxy._batch_buffer[tokens] = _row_products(grads.to(vectors.dtype), vectors)

        hooks = [
            (f"blocks.{layer}.{feature_output_hook}", layer_hook(layer))
            for layer in range(n_layers)
        ]
        return [*hooks, ("hook_embed", token_hook)]


def blocked_context(context: Any) -> Any:
    """The same context with block products, where that is upstream's per-layer TransformerLens
    context; any other (nnsight's, a cross-layer transcoder's) is returned as it came."""
    if type(context) is not AttributionContext or not _is_per_layer(context):
        return context
    return BlockedContext(
        activation_matrix=context.activation_matrix,
        error_vectors=context.error_vectors,
        token_vectors=context.token_vectors,
        decoder_vecs=context.decoder_vecs,
        encoder_vecs=context.encoder_vecs,
        encoder_to_decoder_map=context.encoder_to_decoder_map,
        decoder_locations=context.decoder_locations,
        logits=context.logits,
    )


def _is_per_layer(context: AttributionContext) -> bool:
    """Every active feature writes once, in its own layer, in the order of the buffer's rows."""
    n_active = context.activation_matrix._nnz()
    order = torch.arange(n_active, device=context.encoder_to_decoder_map.device)
    return torch.equal(context.encoder_to_decoder_map, order) and torch.equal(
        context.decoder_locations, context.activation_matrix.indices()[:2]
    )


def _block_bounds(locations: Tensor, n_layers: int, n_pos: int) -> list[list[tuple[int, int]]]:
    """First and past-last row of each (layer, position) among the sorted active features."""
    places = (locations[0] * n_pos + locations[1]).cpu()
    edges = torch.searchsorted(places, torch.arange(n_layers * n_pos + 1)).tolist()
    return [
        [(edges[layer * n_pos + p], edges[layer * n_pos + p + 1]) for p in range(n_pos)]
        for layer in range(n_layers)
    ]


def _row_products(grads: Tensor, vectors: Tensor) -> Tensor:
    """Dot products of ``[batch, pos, d_model]`` with ``[pos, d_model]``: ``[pos, batch]``."""
    return torch.einsum("bpd,pd->pb", grads, vectors)


@dataclass
class RowMasses:
    """Sum of absolute edges into each node, over *all* active sources, as attribution made them.

    circuit-tracer keeps the columns of selected features only; the mass that the others carried
    is what a truncated graph does not cover.
    """

    targets: list[Tensor] = field(default_factory=list)
    """Per batch of targets, float64 ``[batch]``, in the targets' order."""
    features: dict[int, float] = field(default_factory=dict)
    """Active feature index -> mass of its row."""

    def outside(
        self, selected: Int64[Tensor, " feature"], kept: Float64[Tensor, " row"]
    ) -> Float64[Tensor, " row"]:
        """Mass of sources that were active but not selected, per row: features, then targets.

        Args:
            selected: Active indices of the feature nodes, in row order.
            kept: Sum of absolute edges of the same rows in the finished graph.
        """
        features = torch.tensor([self.features[i] for i in selected.tolist()], dtype=torch.float64)
        total = torch.cat([features, *self.targets])
        # The two sums run over the same float32 values; below their rounding there is nothing.
        rest = total - kept
        return torch.where(rest > 1e-12 * total, rest, torch.zeros_like(rest))


class _NotedRows:
    """Rows of a matrix; remembers which were asked for last."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows
        self.asked: list[int] | None = None

    def __getitem__(self, index: Tensor) -> Tensor:
        self.asked = index.tolist()
        return self._rows[index]


@contextlib.contextmanager
def recorded_masses(context: Any) -> Iterator[RowMasses]:
    """Note every attribution row's mass while `context` is used inside the block.

    Works with either backend's context: circuit-tracer asks ``encoder_vecs[indices]`` for the
    features whose rows it then computes; for targets it asks for none.
    """
    masses, encoder, compute = RowMasses(), context.encoder_vecs, context.compute_batch
    noted = _NotedRows(encoder)

    def compute_batch(*args: Any, **kwargs: Any) -> Tensor:
        rows = compute(*args, **kwargs)
        mass = rows.double().abs().sum(1).cpu()
        asked, noted.asked = noted.asked, None
        if asked is None:
            masses.targets.append(mass)
        else:
            masses.features.update(zip(asked, mass.tolist(), strict=True))
        return rows

    context.encoder_vecs, context.compute_batch = noted, compute_batch
    try:
        yield masses
    finally:
        context.encoder_vecs = encoder
        del context.compute_batch
