"""How do rows of an adjacency matrix get into their packed place, with nothing rounded or lost?

Values become bfloat16 if every one of them is bfloat16-exact, else float32. An entry outside the
mask goes into a list of (target, source, value). Each row's mass, the sum of its absolute values,
is taken in float64: no float32 sum can overflow, and a NaN cannot hide.

    packer = Packer(structure)
    packer.add_block(block, stripe.columns, rows)
    packer.add_logits(rows)
    packed = packer.finish()
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from em_circuits.graphs.structure import Block, Structure
from pivotal_tokens.errors import RequestError


class Packed(NamedTuple):
    """Packed values; `em_circuits.graphs.edges.Edges` says what each is."""

    values: Tensor
    logit_values: Tensor
    extra_index: Tensor
    extra_values: Tensor
    row_mass: Tensor


class Packer:
    """Fills packed values block by block, then measures them."""

    def __init__(self, structure: Structure) -> None:
        layout = structure.layout
        self._structure = structure
        self._values = torch.empty(structure.n_values)
        self._logits = torch.zeros(layout.n_logits, layout.n_sources)
        self._extra: list[tuple[Tensor, Tensor, Tensor]] = []

    def add_block(self, block: Block, columns: Tensor, rows: Tensor) -> None:
        """Take a block's rows, given over all sources or all nodes."""
        kept = exact_float32(rows[:, columns[: block.n_columns]])
        block.view(self._values).copy_(kept)
        if int(rows.count_nonzero()) != int(kept.count_nonzero()):
            rest = rows.clone()
            rest[:, columns[: block.n_columns]] = 0
            self._add_nonzero(rest, block.rows.start)

    def add_row(self, block: Block, row: int, values: Tensor) -> None:
        """Take one feature's row, given over its block's columns."""
        block.view(self._values)[row - block.rows.start] = exact_float32(values)

    def add_logits(self, rows: Tensor) -> None:
        """Take the logit rows, given over all sources or all nodes."""
        n_sources = self._structure.layout.n_sources
        self._logits.copy_(exact_float32(rows[:, :n_sources]))
        if rows[:, n_sources:].count_nonzero():
            rest = rows.clone()
            rest[:, :n_sources] = 0
            self._add_nonzero(rest, self._structure.layout.logits.start)

    def add_empty_rows(self, rows: Tensor) -> None:
        """Take the rows of errors and tokens, which hold nothing as a rule."""
        if rows.count_nonzero():
            self._add_nonzero(rows, self._structure.layout.n_features)

    def add_extra(self, targets: Tensor, sources: Tensor, values: Tensor) -> None:
        """Take entries outside the mask, by node index."""
        self._extra.append((targets, sources, values))

    def finish(self) -> Packed:
        """Choose the type and measure the rows."""
        index, extra = torch.empty(0, 2, dtype=torch.int64), torch.empty(0)
        if self._extra:
            targets, sources, extra = (torch.cat(t) for t in zip(*self._extra, strict=True))
            index = torch.stack([targets, sources], 1)
        values, logits = self._values, self._logits
        if bfloat16_exact(values) and bfloat16_exact(logits):
            values, logits = values.bfloat16(), logits.bfloat16()
        mass = row_mass(self._structure, values, logits)
        add_extra_mass(mass, self._structure, index, extra)
        return Packed(values, logits, index, extra, mass)

    def _add_nonzero(self, rows: Tensor, first: int) -> None:
        targets, sources = rows.nonzero(as_tuple=True)
        self.add_extra(targets + first, sources, exact_float32(rows[targets, sources]))


def row_mass(
    structure: Structure, values: Float[Tensor, " value"], logits: Float[Tensor, "logit source"]
) -> Float64[Tensor, " row"]:
    """Sum of abs(value) over each packed row, features then logits."""
    mass = torch.zeros(structure.layout.n_rows, dtype=torch.float64)
    for stripe in structure.stripes():
        for span in stripe.spans:
            wide = values[span.start : span.stop].to(torch.float64, copy=True).abs_()
            for piece in span.pieces:
                torch.sum(piece.view(wide), dim=1, out=mass[piece.rows])
    for row, value in enumerate(logits):
        mass[structure.layout.n_features + row] = value.double().abs_().sum()
    return mass


def add_extra_mass(mass: Tensor, structure: Structure, index: Tensor, values: Tensor) -> None:
    """Add entries outside the mask to their rows' mass, in place."""
    layout = structure.layout
    targets = index[:, 0]
    rows = torch.where(
        targets < layout.n_features, targets, targets - layout.logits.start + layout.n_features
    )
    has_row = (targets < layout.n_features) | (targets >= layout.logits.start)
    mass.index_add_(0, rows[has_row], values[has_row].double().abs())


def exact_float32(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The values as float32.

    Raises:
        RequestError: If a float64 value would be rounded.
    """
    single = values.float()
    if values.dtype == torch.float64 and not torch.equal(single.double(), values):
        lost = (single.double() != values) & ~values.isnan()
        if lost.any():
            raise RequestError(
                f"{int(lost.sum())} float64 values are not float32-exact, packing would round "
                "them; pass a float32 matrix."
            )
    return single


def bfloat16_exact(values: Float[Tensor, "*shape"]) -> bool:
    """Whether every float32 value has a bfloat16 of the same value: its low 16 bits are zero."""
    bits = values.reshape(-1).view(torch.int32)
    return not any(bool((chunk & 0xFFFF).any()) for chunk in bits.split(1 << 20))
