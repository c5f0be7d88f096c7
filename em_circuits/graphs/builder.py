"""Packed edges from attribution rows, when the selection is not known until the end.

Attribution makes rows in its own order, over every *active* feature, and only then knows which were
selected. The builder stores of each row what the mask allows, so that no (node x node) matrix is
ever needed, and at the end drops the columns of the others, whose mass it records. Rows stay on the
device that made them, those of one stripe and batch in one piece, cut where fewer rows go on::

    piece: rows by position      |#######|#####|       |
                                 |#######|#####|#######|
                                 |#######|#####|#######|##
    segments (column x row)       rows 0..  0..   1..    2..

A segment is what a core's cache holds. Beyond the room on the device segments are offloaded to a
file, and used where they lie there.

    builder = EdgesBuilder(layers, positions, n_layers=4, n_pos=9, n_logits=10)
    builder.add_logits(torch.arange(10), logit_rows)
    builder.add_features(indices, rows)
    edges = builder.build(selected)
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from em_circuits.graphs.edges import Edges, Packer, exact_float32
from em_circuits.graphs.layout import NodeLayout
from em_circuits.graphs.memory import ROW_BYTES
from em_circuits.graphs.offload import Scratch, Slot
from em_circuits.graphs.structure import CHUNK, Block, Structure
from em_circuits.models.memory import available_bytes
from pivotal_tokens.errors import RequestError

_DEVICE_CHUNK = 1 << 24
"""Values of a segment on a GPU: a few products for a whole batch."""
_ROUNDING = 1e-12
"""Of two float64 sums over the same values."""
_LEAST_MASS = 1e-8
"""A row's mass counts as this at least (`circuit_tracer.graph.compute_partial_influences`)."""


class _Segment(NamedTuple):
    """Neighbouring columns of those rows of a piece that reach them.

    Attributes:
        start: The first column, among the stripe's.
        first: The first row, among the piece's.
        values: (column, row), or where they wait.
    """

    start: int
    first: int
    values: Float[Tensor, "column row"] | Slot


@dataclass(eq=False)
class _Piece:
    """Rows of one stripe, ascending: what their masks allow.

    Attributes:
        indices: Active features.
        segments: By column.
        masses: Sum of the magnitudes of each row.
        live: Which rows have not been replaced.
    """

    indices: Int64[Tensor, " row"]
    segments: list[_Segment]
    masses: Float64[Tensor, " row"]
    live: Bool[Tensor, " row"]


class EdgesBuilder:
    """Rows of active features and of targets, in any order; a row given twice replaces itself."""

    def __init__(
        self,
        active_layers: Int64[Tensor, " active"],
        active_positions: Int64[Tensor, " active"],
        *,
        n_layers: int,
        n_pos: int,
        n_logits: int,
        scratch: Scratch | None = None,
    ) -> None:
        """Start without rows; `scratch` is the file for rows that are too many for memory, which
        nobody else writes to meanwhile: in the system's temporary folder if not given."""
        layout = NodeLayout(len(active_layers), n_layers, n_pos, n_logits)
        self._structure = Structure(layout, active_layers, active_positions)
        self._scratch, self._room = scratch or Scratch(), ROW_BYTES
        self._device: torch.device | None = None
        self._spare = torch.empty(0, dtype=torch.uint8)
        self._wide = torch.empty(0, dtype=torch.float64)
        self._stripes = list(self._structure.stripes())
        self._on: dict[int, tuple[torch.device, Tensor]] = {}
        self._pieces: list[list[_Piece]] = [[] for _ in self._stripes]
        self._logits: dict[int, Tensor] = {}
        self._extra: dict[int, tuple[Tensor, Tensor]] = {}
        self._stripe_of = torch.empty(layout.n_features, dtype=torch.int64)
        self._width = torch.empty(layout.n_features, dtype=torch.int64)  # columns its mask allows
        for number, stripe in enumerate(self._stripes):
            self._stripe_of[stripe.rows] = number
            for block in stripe.blocks:
                self._width[block.rows] = block.n_columns
        self._where = torch.full((layout.n_features, 2), -1)  # (piece, row) of each with a row

    @property
    def visited(self) -> Int64[Tensor, " feature"]:
        """Active indices of the features with rows, ascending."""
        return (self._where[:, 0] >= 0).nonzero()[:, 0]

    def add_features(
        self,
        indices: Int64[Tensor, " batch"],
        rows: Float[Tensor, "batch column"],
        *,
        causal: bool = False,
    ) -> None:
        """Take rows of features.

        Args:
            indices: Which active feature each row belongs to.
            rows: Over all active features, errors and tokens; columns beyond are not looked at.
                Those whose transpose is contiguous are taken fastest.
            causal: Nothing stands outside the mask, by construction: it is not searched.

        Raises:
            RequestError: If a row is too short, or of a feature that is not active.
        """
        across = self._sources(rows)
        known = self._structure.layout.n_features
        for index in indices.tolist():
            if not 0 <= index < known:
                raise RequestError(f"No active feature {index}: there are {known}.")
        last = {index: row for row, index in enumerate(indices.tolist())}  # the last row given
        distinct = torch.tensor(sorted(last), dtype=torch.int64)
        for number in self._stripe_of[distinct].unique().tolist():
            mine = distinct[self._stripe_of[distinct] == number]
            picked = torch.tensor([last[index] for index in mine.tolist()])
            first = int(picked[0])
            in_order = bool((picked.diff() == 1).all())
            chosen = slice(first, first + len(picked)) if in_order else picked.to(across.device)
            self._add(number, mine, across[:, chosen], causal=causal)

    def _add(self, number: int, indices: Tensor, across: Tensor, *, causal: bool) -> None:
        """Take rows of one stripe, over (source, row)."""
        columns, widths = self._columns(number, across.device), self._width[indices].tolist()
        for index in indices.tolist():
            self._extra.pop(index, None)
        if not causal:
            across = self._inside(columns, indices, across)
        for piece, row in self._where[indices].tolist():
            if piece >= 0:
                self._pieces[number][piece].live[row] = False
        cuts = list(_cuts(widths, CHUNK if across.device.type == "cpu" else _DEVICE_CHUNK))
        sizes = [(stop - start) * (len(widths) - first) for start, stop, first in cuts]
        keep = sum(sizes) * across.element_size() <= self._room_on(across.device)
        masses = across.new_zeros(len(widths), dtype=torch.float64)
        segments = []
        for (start, stop, first), size in zip(cuts, sizes, strict=True):
            out = None if keep else self._reused(size, across).view(stop - start, -1)
            values = torch.index_select(across[:, first:], 0, columns[start:stop], out=out)
            masses[first:] += self._magnitudes(values).sum(0)
            self._room -= values.nbytes if keep else 0
            segments.append(_Segment(start, first, values if keep else self._scratch.put(values)))
        live = torch.ones(len(indices), dtype=torch.bool)
        self._where[indices, 0] = len(self._pieces[number])
        self._where[indices, 1] = torch.arange(len(indices))
        self._pieces[number].append(_Piece(indices, segments, masses.cpu(), live))

    def _inside(self, columns: Tensor, indices: Tensor, across: Tensor) -> Tensor:
        """The rows without their entries outside the mask, which are kept apart."""
        for row, width in enumerate(self._width[indices].tolist()):
            allowed, values = columns[:width], across[:, row]
            if values.count_nonzero() == values[allowed].count_nonzero():
                continue
            rest = values.clone()
            rest[allowed] = 0
            where = rest.nonzero()[:, 0]
            self._extra[int(indices[row])] = (where.cpu(), exact_float32(rest[where]).cpu())
            across = across.clone()
            across[where, row] = 0
        return across

    def add_logits(
        self, indices: Int64[Tensor, " batch"], rows: Float[Tensor, "batch column"]
    ) -> None:
        """Take rows of targets; see `add_features`."""
        for index, row in zip(indices.tolist(), self._sources(rows).T.cpu(), strict=True):
            self._logits[index] = row.clone()

    def influence(self, weights: Float64[Tensor, " logit"]) -> Float64[Tensor, " source"]:
        """Absolute row-normalised influence of every source on the targets, through the rows here.

        circuit-tracer's partial influence. Stripes from the last to the first: each row is complete
        when its turn comes, so every edge is visited once; rows of a stripe wait for none of their
        own, and are taken a piece at a time.

        Args:
            weights: Of the targets, not negative.
        """
        total = torch.zeros(self._structure.layout.n_sources, dtype=torch.float64)
        for index, row in self._logits.items():
            mass = max(float(row.abs().sum()), _LEAST_MASS)
            total.add_(row.double().abs() / mass, alpha=float(weights[index]))
        for stripe, pieces in zip(self._stripes, self._pieces, strict=True):
            ahead: Tensor | None = None
            for piece in pieces:
                outside = [self._extra.get(index) for index in piece.indices.tolist()]
                masses = piece.masses + torch.tensor(
                    [0.0 if one is None else float(one[1].double().abs().sum()) for one in outside]
                )
                shares = total[piece.indices] * piece.live / masses.clamp(min=_LEAST_MASS)
                for start, first, values in self._segments(piece):
                    if ahead is None:
                        ahead = values.new_zeros(len(stripe.columns), dtype=torch.float64)
                    into = ahead[start : start + len(values)]
                    into.addmv_(self._magnitudes(values), shares[first:].to(values.device))
                for share, one in zip(shares.tolist(), outside, strict=True):
                    if one is not None:
                        total.index_add_(0, one[0], one[1].double().abs(), alpha=share)
            if ahead is not None:
                total.index_add_(0, stripe.columns, ahead.cpu())
        return total

    def build(self, selected: Int64[Tensor, " feature"]) -> Edges:
        """Pack the rows of the selected features, and let go of them.

        Args:
            selected: Active indices, ascending.

        Raises:
            RequestError: If a selected feature or a target has no row.
            NonFiniteEdges: If a value is NaN or infinite; the message names the edge.
        """
        self._require(selected)
        active, structure = self._structure.layout, self._structure.with_features(selected)
        layout = structure.layout
        remaining = active.nodes_with(selected)[layout.sources]
        new_index = torch.full((active.n_sources,), -1)  # of every source; -1 if not selected
        new_index[remaining] = torch.arange(len(remaining))
        new_row = torch.full((active.n_features,), -1)
        new_row[selected] = torch.arange(len(selected))
        packer = Packer(structure)
        outside = torch.zeros(layout.n_rows, dtype=torch.float64)
        blocks = _block_of_row(structure)
        for stripe, pieces in zip(self._stripes, self._pieces, strict=True):
            kept = (new_index[stripe.columns] >= 0).nonzero()[:, 0]
            for piece in pieces:
                wanted = piece.live & (new_row[piece.indices] >= 0)
                inside = self._chosen(piece, kept)
                left = piece.masses - inside.double().abs().sum(1)
                # The two sums run over the same values; below their rounding there is nothing.
                left = torch.where(left > _ROUNDING * piece.masses, left, 0.0)
                for row in wanted.nonzero()[:, 0].tolist():
                    into = int(new_row[piece.indices[row]])
                    block = blocks[into]
                    packer.add_row(block, into, inside[row, : block.n_columns])
                    outside[into] = left[row]
            pieces.clear()
        for row, index in enumerate(selected.tolist()):
            if index in self._extra:
                sources, values = self._extra.pop(index)
                chosen = new_index[sources] >= 0
                targets = torch.full_like(sources[chosen], row)
                packer.add_extra(targets, new_index[sources[chosen]], values[chosen])
        if layout.n_logits:
            logits = torch.stack([self._logits[i] for i in range(layout.n_logits)])
            outside[layout.logit_rows] = logits[:, new_index < 0].double().abs().sum(1)
            packer.add_logits(logits[:, remaining])
        self._logits.clear()
        self._where.fill_(-1)
        self._scratch.clear()
        return packer.finish(outside)

    def _columns(self, number: int, device: torch.device) -> Int64[Tensor, " column"]:
        """A stripe's columns, on a device."""
        if self._on.get(number, (None,))[0] != device:
            self._on[number] = (device, self._stripes[number].columns.to(device))
        return self._on[number][1]

    def _segments(self, piece: _Piece) -> Iterator[tuple[int, int, Tensor]]:
        """Start, first row and values of a piece's segments; what waits is there for its turn."""
        for start, first, values in piece.segments:
            here = self._scratch.mapped(values) if isinstance(values, Slot) else values
            yield start, first, here

    def _chosen(self, piece: _Piece, kept: Int64[Tensor, " kept"]) -> Float[Tensor, "row inside"]:
        """A piece's values in some of its stripe's columns, ascending; on the CPU."""
        parts = []
        for start, first, values in self._segments(piece):
            ends = torch.searchsorted(kept, torch.tensor([start, start + len(values)])).tolist()
            inside = values[(kept[slice(*ends)] - start).to(values.device)].cpu()
            parts.append(torch.nn.functional.pad(inside, (first, 0)))
        return torch.cat(parts).T.contiguous() if parts else torch.zeros(len(piece.indices), 0)

    def _magnitudes(self, values: Float[Tensor, "column row"]) -> Float64[Tensor, "column row"]:
        """Of every value, in float64; overwritten at the next call."""
        if self._wide.device != values.device or self._wide.numel() < values.numel():
            self._wide = values.new_empty(values.numel(), dtype=torch.float64)
        return self._wide[: values.numel()].view(values.shape).copy_(values).abs_()

    def _reused(self, size: int, like: Tensor) -> Float[Tensor, " value"]:
        """Memory for one segment on its way to the file, the same every time: the system takes
        longer to give fresh pages than their values to be written."""
        n = size * like.element_size()
        if self._spare.device != like.device or len(self._spare) < n:
            self._spare = torch.empty(n, dtype=torch.uint8, device=like.device)
        return self._spare[:n].view(like.dtype)

    def _room_on(self, device: torch.device) -> int:
        """Bytes of rows that may still stay where they were made."""
        if self._device != device:
            self._device = device
            self._room = ROW_BYTES if device.type == "cpu" else available_bytes(device) // 2
        return self._room

    def _require(self, selected: Tensor) -> None:
        missing = selected[self._where[selected, 0] < 0].tolist()
        absent = [i for i in range(self._structure.layout.n_logits) if i not in self._logits]
        if missing or absent:
            raise RequestError(
                f"{len(missing)} selected features (first {missing[:1]}) and {len(absent)} targets "
                f"(first: {absent[:1]}) have no row; add them before build()."
            )

    def _sources(self, rows: Tensor) -> Float[Tensor, "source row"]:
        sources = self._structure.layout.sources
        if rows.shape[1] < sources.stop:
            raise RequestError(
                f"Rows must have {sources.stop} columns or more, got {rows.shape[1]}."
            )
        return rows.detach()[:, sources].T


def _cuts(widths: Sequence[int], most: int) -> Iterator[tuple[int, int, int]]:
    """First column, the one behind the last, and first row of a piece's segments.

    Args:
        widths: Columns of each row, ascending.
        most: Values of a segment, unless one column has more.
    """
    start = 0
    while start < widths[-1]:
        first = bisect_right(widths, start)
        stop = min(widths[-1], start + max(1, most // (len(widths) - first)))
        yield start, stop, first
        start = stop


def _block_of_row(structure: Structure) -> list[Block]:
    """The block of every feature row."""
    return [block for block in structure.blocks() for _ in range(block.n_rows)]
