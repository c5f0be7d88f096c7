"""How are attribution rows computed faster than upstream, over upstream's own model and context?

circuit-tracer runs its forward pass at batch size, then one backward pass of automatic
differentiation through *all* layers for every batch. Its local replacement model is linear in the
residual stream, so one forward pass of the prompt is enough: rows are carried back through it by
hand (`em_circuits.graphs.frozen`), each from the layer its row reads at, over the positions before
it only, and multiplied with what each source writes on the way

    row[t, s] = dec[s] . (gradient of the stream at layer(s), position(s))

one matrix product per (layer, position) of active features, which are sorted that way. Right for
per-layer transcoders, whose features write to one layer each. Besides the rows themselves a batch
takes four times (rows x positions x d_model) values.

    rows = LinearRows.of(replacement, context, input_ids)
    if rows is not None:
        rows.features(torch.arange(10))  # [10, source]
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from circuit_tracer.attribution.context_transformerlens import AttributionContext
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from em_circuits.graphs.frozen import FrozenModel, is_known

_CONTEXT_PARTS = (
    "activation_matrix",
    "decoder_locations",
    "decoder_vecs",
    "encoder_to_decoder_map",
    "encoder_vecs",
    "error_vectors",
    "token_vectors",
)


@dataclass(eq=False)
class LinearRows:
    """Attribution rows of one prompt over active features, errors and tokens, in node order.

    Attributes:
        replacement: circuit-tracer's TransformerLens replacement model.
        context: Its attribution context of the prompt.
        input_ids: The prompt.
    """

    replacement: Any
    context: Any
    input_ids: Int64[Tensor, " pos"]
    _kept: FrozenModel | None = field(default=None, repr=False)

    @classmethod
    def of(cls, replacement: Any, context: Any, input_ids: Tensor) -> LinearRows | None:
        """Rows of a prompt, or None where circuit-tracer's own way must be taken.

        That is nnsight, a cross-layer transcoder, or a circuit-tracer whose parts are not those
        this file knows.
        """
        if not (
            is_known(replacement)
            and type(context) is AttributionContext
            and all(hasattr(context, name) for name in _CONTEXT_PARTS)
            and _is_per_layer(context)
        ):
            return None
        return cls(replacement, context, input_ids)

    def __post_init__(self) -> None:
        self.n_layers, self.n_pos, _ = self.context.activation_matrix.shape
        self.n_active: int = self.context.activation_matrix._nnz()
        self.n_sources = self.n_active + (self.n_layers + 1) * self.n_pos
        locations = self.context.decoder_locations
        self.layers, self.positions = locations[0].cpu(), locations[1].cpu()
        self._bounds = _block_bounds(locations, self.n_layers, self.n_pos)

    def targets(
        self, vectors: Float[Tensor, "logit d_model"], *, batch_size: int = 128
    ) -> Float[Tensor, "logit source"]:
        """Rows of directions that the last position's final residual is multiplied by."""
        parts = []
        for part in vectors.split(batch_size):
            positions = torch.full((len(part),), self.n_pos - 1)
            parts.append(self._rows(self.n_layers, positions, part))
        return torch.cat(parts)

    def groups(
        self, indices: Int64[Tensor, " feature"], batch_size: int
    ) -> list[Int64[Tensor, " batch"]]:
        """Features in batches that are carried back together: one layer, positions ascending."""
        places = self.layers[indices] * self.n_pos + self.positions[indices]
        ordered = indices[torch.argsort(places, stable=True)]
        counts = self.layers[ordered].unique_consecutive(return_counts=True)[1]
        groups = ordered.split(counts.tolist())
        return [part for group in groups for part in group.split(batch_size)]

    def features(self, indices: Int64[Tensor, " feature"]) -> Float[Tensor, "feature source"]:
        """Rows of active features, all of one group of `groups`."""
        layer = int(self.layers[indices[0]])
        vectors = self.context.encoder_vecs[indices.to(self.context.encoder_vecs.device)]
        return self._rows(layer, self.positions[indices], vectors)

    def forget(self) -> None:
        """Let go of the recorded forward pass; it is made anew when needed."""
        self._kept = None

    @torch.no_grad()
    def _rows(self, layer: int, positions: Tensor, vectors: Tensor) -> Tensor:
        if self._kept is None:
            self._kept = FrozenModel.of(self.replacement, self.input_ids)
        frozen = self._kept
        assert frozen is not None  # `of` made sure
        context, length = self.context, int(positions.max()) + 1
        # Sources stand in rows meanwhile: each block then lies in one piece.
        made = context.decoder_vecs.new_zeros((self.n_sources, len(vectors)))
        gradient = frozen.enter(layer, positions, vectors, length=length)
        if layer < self.n_layers:
            frozen.through_attention(layer, gradient)
        for below in reversed(range(layer)):
            self._contract(below, gradient.to(made.dtype), made)
            frozen.through_mlp(below, gradient)
            frozen.through_attention(below, gradient)
        first = self.n_active + self.n_layers * self.n_pos
        vectors = context.token_vectors[:length]
        made[first : first + length] = _products(gradient.to(made.dtype), vectors)
        return made.T.contiguous()

    def _contract(self, layer: int, gradient: Tensor, made: Tensor) -> None:
        """What a layer's features and errors write, along the gradient."""
        length = len(gradient)
        for position, (start, end) in enumerate(self._bounds[layer][:length]):
            if end > start:
                vectors = self.context.decoder_vecs[start:end]
                torch.mm(vectors, gradient[position].T, out=made[start:end])
        first = self.n_active + layer * self.n_pos
        vectors = self.context.error_vectors[layer, :length]
        made[first : first + length] = _products(gradient, vectors)


def _is_per_layer(context: Any) -> bool:
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


def _products(gradients: Tensor, vectors: Tensor) -> Float[Tensor, "pos row"]:
    """Dot products of ``[pos, row, d_model]`` with ``[pos, d_model]``."""
    return torch.bmm(gradients, vectors.to(gradients)[:, :, None])[:, :, 0]


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
