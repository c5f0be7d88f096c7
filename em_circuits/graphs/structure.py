"""Structural mask of an adjacency matrix: which entries can be non-zero, and where each is packed.

A feature of part q (a layer, where every layer has one) at position p reads only from features and
errors of parts below q and from tokens, all at positions up to p. Rows of one (q, p) therefore
share their columns, and in position-major order those are a *prefix* of the sources below q: rows
and columns form one contiguous block, which needs no index. Packed values are the blocks, one after
another::

    Stripe: the rows of one part           columns (sources below it), by position
                                            position 0 | position 1  | position 2
      Block of position 0:  rows 7..8      |###########|
      Block of position 1:  rows 9..11     |###########|#############|
                                           |###########|#############|
      Block of position 2:  row 12         |###########|#############|############|

    values = [block 0 | block 1 | block 2 | blocks of the next part ...]
             `---- Span: about CHUNK values in a row ----'
                        its pieces: blocks cut to the span, their offsets within it

    structure = Structure(layout, feature_parts, feature_positions)
    for stripe in structure.stripes():  # parts, from the last to the first
        for block in stripe.blocks:  # positions; columns stripe.columns[: block.n_columns]
            ...
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from em_circuits.graphs.layout import NodeKind, NodeLayout
from pivotal_tokens.errors import RequestError

CHUNK = 1 << 17
"""Values that are worked on at once: 1 MB as float64, small enough for a core's cache."""


class Block(NamedTuple):
    """The rows of one (part, position), or some of them.

    Attributes:
        rows: Feature indices of the rows.
        n_columns: The block's columns are the first `n_columns` of its stripe's.
        offset: Where the block starts in the packed values, or in those of a span.
    """

    rows: slice
    n_columns: int
    offset: int

    @property
    def n_rows(self) -> int:
        """How many rows."""
        return self.rows.stop - self.rows.start

    @property
    def size(self) -> int:
        """How many packed values."""
        return self.n_rows * self.n_columns

    def view(self, values: Tensor) -> Tensor:
        """The block in packed (contiguous) values, (rows x columns), without a copy."""
        shape, steps = (self.n_rows, self.n_columns), (self.n_columns, 1)
        return values.as_strided(shape, steps, values.storage_offset() + self.offset)


class Span(NamedTuple):
    """Neighbouring packed values, about `CHUNK` of them, and the blocks cut to them."""

    start: int
    stop: int
    pieces: tuple[Block, ...]


@dataclass(frozen=True, eq=False)
class Stripe:
    """All rows of one part.

    Attributes:
        part: Its index.
        rows: Feature indices of the rows.
        columns: Node indices of every source below the part, position-major.
        blocks: The blocks, by position.
    """

    part: int
    rows: slice
    columns: Tensor
    blocks: tuple[Block, ...]

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """The same rows, cut into pieces of a size to work on."""
        return _spans(self.blocks)


@dataclass(frozen=True, eq=False)
class Structure:
    """The mask of a graph.

    Attributes:
        layout: The node order.
        feature_parts: Part of every feature (its layer, in a graph of one basis), ascending.
        feature_positions: Position of every feature, ascending within a part.
    """

    layout: NodeLayout
    feature_parts: Int64[Tensor, " feature"]
    feature_positions: Int64[Tensor, " feature"]

    def __post_init__(self) -> None:
        layout, parts, positions = self.layout, self.feature_parts, self.feature_positions
        for name, values, size in (
            ("feature_parts", parts, layout.n_parts),
            ("feature_positions", positions, layout.n_pos),
        ):
            if values.shape != (layout.n_features,):
                raise RequestError(
                    f"{name} must have shape ({layout.n_features},), got {tuple(values.shape)}."
                )
            if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < size:
                found = f"{int(values.min())}..{int(values.max())}"
                raise RequestError(f"{name} must lie in 0..{size - 1}, got {found}.")
        steps = layout.places(parts, positions).diff()
        if (steps < 0).any():
            first = int((steps < 0).nonzero()[0])
            raise RequestError(
                f"Features must be sorted by (part, position); {first + 1} belongs before {first}."
            )

    def __repr__(self) -> str:
        return f"Structure({self.layout})"

    @classmethod
    def of(cls, layout: NodeLayout, features: Int64[Tensor, "feature 3"]) -> Structure:
        """The mask of features given by (part, position, id)."""
        return cls(layout, features[:, 0].contiguous(), features[:, 1].contiguous())

    def with_features(self, features: Int64[Tensor, " chosen"]) -> Structure:
        """The mask of a graph with some of the features alone."""
        return Structure(
            self.layout.with_features(len(features)),
            self.feature_parts[features],
            self.feature_positions[features],
        )

    def same_as(self, other: Structure) -> bool:
        """Whether two structures describe the same mask."""
        return (
            self.layout == other.layout
            and torch.equal(self.feature_parts, other.feature_parts)
            and torch.equal(self.feature_positions, other.feature_positions)
        )

    @cached_property
    def n_values(self) -> int:
        """Packed values of the feature rows."""
        return sum(block.size for block in self.blocks())

    def stripes(self) -> Iterator[Stripe]:
        """The parts that have rows, from the last to the first."""
        return reversed(self._stripes)

    def blocks(self) -> Iterator[Block]:
        """Every block, in the order of the rows."""
        return (block for stripe in self._stripes for block in stripe.blocks)

    def locate(self, feature: int) -> tuple[Stripe, Block]:
        """The stripe and block of a feature's row."""
        for stripe in self._stripes:
            if stripe.rows.start <= feature < stripe.rows.stop:
                for block in stripe.blocks:
                    if block.rows.start <= feature < block.rows.stop:
                        return stripe, block
        raise RequestError(f"No feature {feature}: the graph has {self.layout.n_features}.")

    def describe(self, node: int) -> str:
        """A node in words, for messages: kind, index and coordinates."""
        layout, kind = self.layout, self.layout.kind(node)
        if kind is NodeKind.FEATURE:
            part, pos = int(self.feature_parts[node]), int(self.feature_positions[node])
            name = "layer" if layout.parts is None else "part"
            return f"feature node {node} ({name} {part}, position {pos})"
        if kind is NodeKind.ERROR:
            layer, pos = layout.error_coordinates(node)
            return f"error node {node} (layer {layer}, position {pos})"
        number = layout.position_of(node) if kind is NodeKind.TOKEN else layout.target_of(node)
        return f"{kind} node {node} ({kind} {number})"

    @cached_property
    def _stripes(self) -> tuple[Stripe, ...]:
        parts = self.layout.source_parts(self.feature_parts)
        positions = self.layout.source_positions(self.feature_positions)
        by_position = torch.argsort(positions, stable=True)
        parts, positions = parts[by_position], positions[by_position]
        stripes: list[Stripe] = []
        start = offset = 0
        for part in self.feature_parts.unique_consecutive().tolist():
            below = parts < part
            columns = by_position[below]
            stop = int(torch.searchsorted(self.feature_parts, part, right=True))
            here, counts = self.feature_positions[start:stop].unique_consecutive(return_counts=True)
            widths = torch.searchsorted(positions[below], here, right=True)
            blocks, row = [], start
            for count, width in zip(counts.tolist(), widths.tolist(), strict=True):
                blocks.append(Block(slice(row, row + count), width, offset))
                row += count
                offset += count * width
            stripes.append(Stripe(part, slice(start, stop), columns, tuple(blocks)))
            start = stop
        return tuple(stripes)


def _spans(blocks: Sequence[Block]) -> tuple[Span, ...]:
    spans: list[Span] = []
    pieces: list[Block] = []
    start = end = blocks[0].offset
    for block in blocks:
        step = max(1, CHUNK // max(block.n_columns, 1))
        for first in range(block.rows.start, block.rows.stop, step):
            rows = slice(first, min(first + step, block.rows.stop))
            size = (rows.stop - rows.start) * block.n_columns
            if pieces and end + size - start > CHUNK:
                spans.append(Span(start, end, tuple(pieces)))
                pieces, start = [], end
            pieces.append(Block(rows, block.n_columns, end - start))
            end += size
    return (*spans, Span(start, end, tuple(pieces)))
