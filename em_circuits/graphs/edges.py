"""Edges of a graph, packed without the zeros that the model's structure implies.

Feature rows lie packed over the structural mask (`em_circuits.graphs.structure`), block after
block and without any index; logit rows stand apart, whole, in node order, so that they can be read
alone. Nothing is rounded: values become bfloat16 if every one of them is bfloat16-exact, else
float32. An entry outside the mask goes into a list of (target, source, value). Each row's mass, the
sum of its absolute values, is taken in float64: no float32 sum can overflow, and a NaN cannot hide.
What a file holds can be memory-mapped and used as it lies.

    edges = Edges.from_dense(adjacency, layout, feature_parts, feature_positions)
    assert torch.equal(edges.to_dense(), adjacency)
    direct = edges.logit_rows()[:, layout.features]
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from em_circuits.graphs.layout import NodeKind, NodeLayout
from em_circuits.graphs.structure import Block, Structure
from pivotal_tokens.errors import RequestError, WorkFailed


class NonFiniteEdges(WorkFailed):
    """Edges are NaN or infinite."""


@contextmanager
def computed_in(*dtypes: str) -> Iterator[None]:
    """Name the precision that edges were computed in where they are not finite.

    Args:
        dtypes: Every precision that took part, such as ``float16`` or ``torch.float16``.
    """
    try:
        yield
    except NonFiniteEdges as error:
        names = list(dict.fromkeys(name.removeprefix("torch.") for name in dtypes))
        why = "em-circuits doctor says how large the models' activations are"
        if "float16" in names:
            why = "float16 ends at 65,504: attribute again in bfloat16 or float32"
        raise NonFiniteEdges(f"{error}; computed in {' and '.join(names)}; {why}") from error


@dataclass(frozen=True, eq=False)
class Edges:
    """Edges of a graph, packed.

    Attributes:
        structure: The mask.
        values: Feature rows, block after block: float32 or bfloat16. May be a memory map.
        logit_values: Logit rows over all sources in node order, of the same type.
        extra_index: (target node, source node) of entries outside the mask; empty as a rule.
        extra_values: Their values.
        row_mass: Sum of abs(value) over each row, features then logits.
        outside_mass: Sum of abs(value) over sources that were active but not selected, per row;
            None where it is not known.
    """

    structure: Structure
    values: Float[Tensor, " value"]
    logit_values: Float[Tensor, "logit source"]
    extra_index: Int64[Tensor, "extra 2"]
    extra_values: Float32[Tensor, " extra"]
    row_mass: Float64[Tensor, " row"]
    outside_mass: Float64[Tensor, " row"] | None = None

    def __post_init__(self) -> None:
        layout = self.layout
        # First what is cheap: sizes that no tensor bears out would fill the memory.
        expected = {
            "logit_values": (layout.n_logits, layout.n_sources),
            "extra_index": (self.extra_values.numel(), 2),
            "row_mass": (layout.n_rows,),
            "outside_mass": (layout.n_rows,),
        }
        for name, shape in expected.items():
            self._require_shape(name, shape)
        self._require_shape("values", (self.structure.n_values,))
        index = self.extra_index
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < layout.n_nodes:
            raise RequestError(
                f"Edges: extra_index must lie below {layout.n_nodes}, got "
                f"{int(index.min())}..{int(index.max())}."
            )
        if self.values.dtype not in (torch.float32, torch.bfloat16):
            raise RequestError(f"Edges are float32 or bfloat16, got {self.values.dtype}.")
        self._refuse_non_finite()

    def _require_shape(self, name: str, shape: tuple[int, ...]) -> None:
        tensor = getattr(self, name)
        if tensor is not None and tensor.shape != shape:
            raise RequestError(f"Edges: {name} must have shape {shape}, got {tuple(tensor.shape)}.")

    @property
    def layout(self) -> NodeLayout:
        """The node order."""
        return self.structure.layout

    def check_masses(self) -> None:
        """Sum every row again: `row_mass` came from a file, and a NaN may hide behind it.

        Raises:
            RequestError: If a row's mass is another, or what is outside has none.
            NonFiniteEdges: If a value is NaN or infinite; the message names the edge.
        """
        mass = _all_mass(
            self.structure, self.values, self.logit_values, self.extra_index, self.extra_values
        )
        replace(self, row_mass=mass)  # refuses what is not finite
        wrong = (~torch.isclose(mass, self.row_mass, rtol=1e-6, atol=0)).nonzero()
        if wrong.numel():
            row = int(wrong[0])
            raise RequestError(
                f"Edges: row_mass of row {row} is {float(self.row_mass[row]):.6g}, its edges sum "
                f"to {float(mass[row]):.6g} ({len(wrong)} rows in all)."
            )
        outside = self.outside_mass
        if outside is not None and not bool((outside.isfinite() & (outside >= 0)).all()):
            raise RequestError("Edges: outside_mass must be finite and not negative.")

    @property
    def nbytes(self) -> int:
        """Bytes of the packed values."""
        parts = (self.values, self.logit_values, self.extra_index, self.extra_values)
        return sum(t.numel() * t.element_size() for t in parts)

    def at(
        self, targets: Int64[Tensor, " edge"], sources: Int64[Tensor, " edge"]
    ) -> Float32[Tensor, " edge"]:
        """Values of some edges, by node indices of their ends; one row is read a target."""
        found = torch.empty(len(targets))
        for target in targets.unique().tolist():
            mine = targets == target
            found[mine] = self.row(target)[sources[mine]].float()
        return found

    def __len__(self) -> int:
        """How many edges are not zero."""
        parts = (self.values, self.logit_values, self.extra_values)
        return sum(int(part.count_nonzero()) for part in parts)

    def __repr__(self) -> str:
        dtype = str(self.values.dtype).removeprefix("torch.")
        return f"Edges({self.values.numel():,} {dtype} values, {self.layout})"

    @classmethod
    def from_dense(
        cls,
        matrix: Float[Tensor, "target column"],
        layout: NodeLayout,
        feature_parts: Int64[Tensor, " feature"],
        feature_positions: Int64[Tensor, " feature"],
        *,
        outside_mass: Float64[Tensor, " row"] | None = None,
    ) -> Edges:
        """Pack an adjacency matrix.

        Args:
            matrix: The whole (node x node) matrix, or its (features + logits) rows over the
                sources.
            layout: Its node order.
            feature_parts: Part of every feature; its layer, in a graph of one basis.
            feature_positions: Position of every feature.
            outside_mass: See the class.

        Raises:
            RequestError: If the shapes do not fit, or a float64 value is not float32-exact.
            NonFiniteEdges: If a value is NaN or infinite; the message names the edge.
        """
        structure = Structure(layout, feature_parts, feature_positions)
        shape = tuple(matrix.shape)
        whole, rows = (layout.n_nodes, layout.n_nodes), (layout.n_rows, layout.n_sources)
        if shape not in (whole, rows):
            raise RequestError(f"The matrix must be {whole} or {rows}, got {shape}.")
        packer = Packer(structure)
        for stripe in structure.stripes():
            for block in stripe.blocks:
                packer.add_block(block, stripe.columns, matrix[block.rows])
        empty, logits = layout.matrix_rows(len(matrix))
        packer.add_logits(matrix[logits])
        packer.add_empty_rows(matrix[empty])
        return packer.finish(outside_mass)

    def to_dense(self) -> Float32[Tensor, "node node"]:
        """The adjacency matrix, rows targets, columns sources."""
        layout = self.layout
        dense = torch.zeros(layout.n_nodes, layout.n_nodes)
        for stripe in self.structure.stripes():
            for block in stripe.blocks:
                columns = stripe.columns[: block.n_columns]
                dense[block.rows, columns] = self.block(block).float()
        dense[layout.logits, layout.sources] = self.logit_values.float()
        dense[self.extra_index[:, 0], self.extra_index[:, 1]] = self.extra_values
        return dense

    def logit_rows(self) -> Float32[Tensor, "logit source"]:
        """Direct edges from every source to every target; nothing else of a file is read."""
        return self.logit_values.float()

    def block(self, block: Block) -> Float[Tensor, "target column"]:
        """One block's values, as stored: a view."""
        return block.view(self.values)

    def row(self, target: int) -> Float32[Tensor, " node"]:
        """One row over all nodes."""
        layout = self.layout
        row = torch.zeros(layout.n_nodes)
        kind = layout.kind(target)
        if kind is NodeKind.LOGIT:
            row[layout.sources] = self.logit_values[layout.target_of(target)].float()
        elif kind is NodeKind.FEATURE:
            stripe, block = self.structure.locate(target)
            values = self.block(block)[target - block.rows.start]
            row[stripe.columns[: block.n_columns]] = values.float()
        mine = self.extra_index[:, 0] == target
        row[self.extra_index[mine, 1]] = self.extra_values[mine]
        return row

    def column(self, source: int) -> Float32[Tensor, " node"]:
        """Direct effects of one node on all nodes."""
        column = torch.zeros(self.layout.n_nodes)
        for stripe in self.structure.stripes():
            for at in (stripe.columns == source).nonzero()[:, 0].tolist():
                for block in stripe.blocks:
                    if at < block.n_columns:
                        column[block.rows] = self.block(block)[:, at].float()
        column[self.layout.logits] = self.logit_values[:, source].float()
        mine = self.extra_index[:, 1] == source
        column[self.extra_index[mine, 0]] = self.extra_values[mine]
        return column

    def restricted(self, keep: Bool[Tensor, " node"]) -> Edges:
        """The edges among some nodes: other features are dropped, other nodes have empty rows.

        Logits always stay. Masses are of the remaining edges alone.
        """
        layout = self.layout
        chosen = keep[layout.features].nonzero()[:, 0]
        structure, nodes = self.structure.with_features(chosen), layout.nodes_with(chosen)
        new_index = torch.full((layout.n_nodes,), -1)  # of every node; -1 if it is gone
        new_index[nodes] = torch.arange(len(nodes))
        packer, blocks = Packer(structure, self.values.dtype), structure.blocks()
        for stripe in reversed(list(self.structure.stripes())):
            columns = (new_index[stripe.columns] >= 0).nonzero()[:, 0]
            empty = ~keep[stripe.columns[columns]]
            for block in stripe.blocks:
                rows = keep[block.rows].nonzero()[:, 0]
                if rows.numel():
                    new = next(blocks)
                    values = self.block(block)[rows].index_select(1, columns[: new.n_columns])
                    packer.put(new, values.masked_fill_(empty[: new.n_columns], 0))
        sources = nodes[structure.layout.sources]
        packer.logits = self.logit_values[:, sources].masked_fill_(~keep[sources], 0)
        targets, origins = self.extra_index.unbind(1)
        mine = (~layout.is_source(targets) | keep[targets]) & keep[origins]
        index = new_index[self.extra_index[mine]]
        packer.add_extra(index[:, 0], index[:, 1], self.extra_values[mine])
        return packer.finish(exact=False)

    def _refuse_non_finite(self) -> None:
        # A row's mass is NaN or infinite exactly when one of its values is.
        targets = self.layout.nodes_of((~self.row_mass.isfinite()).nonzero()[:, 0])
        stray = self.extra_index[~self.extra_values.isfinite(), 0]
        bad = torch.cat([targets, stray]).unique()
        if not bad.numel():
            return
        target = int(bad[0])
        wrong = (~self.row(target).isfinite()).nonzero()[:, 0]
        where = self.structure.describe
        edge = f"{where(int(wrong[0]))} -> {where(target)}" if wrong.numel() else where(target)
        raise NonFiniteEdges(f"NaN or infinite edges in {bad.numel()} rows, first {edge}")


class Packer:
    """Packer of an adjacency matrix's rows into values, block by block."""

    def __init__(self, structure: Structure, dtype: torch.dtype = torch.float32) -> None:
        layout = structure.layout
        self._structure = structure
        self._values = torch.empty(structure.n_values, dtype=dtype)
        self.logits = torch.zeros(layout.n_logits, layout.n_sources)
        self._extra: list[tuple[Tensor, Tensor, Tensor]] = []

    def put(self, block: Block, values: Tensor) -> None:
        """Take a block's values as they are."""
        block.view(self._values).copy_(values)

    def add_block(self, block: Block, columns: Tensor, rows: Tensor) -> None:
        """Take a block's rows, given over all sources or all nodes."""
        inside = exact_float32(rows[:, columns[: block.n_columns]])
        self.put(block, inside)
        if int(rows.count_nonzero()) != int(inside.count_nonzero()):
            rest = rows.clone()
            rest[:, columns[: block.n_columns]] = 0
            self._add_nonzero(rest, block.rows)

    def add_row(self, block: Block, row: int, values: Tensor) -> None:
        """Take one feature's row, given over its block's columns."""
        block.view(self._values)[row - block.rows.start] = exact_float32(values)

    def add_logits(self, rows: Tensor) -> None:
        """Take the logit rows, given over all sources or all nodes."""
        layout = self._structure.layout
        self.logits.copy_(exact_float32(rows[:, layout.sources]))
        if rows[:, layout.logits].count_nonzero():
            rest = rows.clone()
            rest[:, layout.sources] = 0
            self._add_nonzero(rest, layout.logits)

    def add_empty_rows(self, rows: Tensor) -> None:
        """Add the rows of errors and tokens, which are usually empty."""
        layout = self._structure.layout
        empty, _ = layout.matrix_rows(layout.n_nodes)
        if rows.count_nonzero():
            self._add_nonzero(rows, empty)

    def add_extra(self, targets: Tensor, sources: Tensor, values: Tensor) -> None:
        """Take entries outside the mask, by node index."""
        self._extra.append((targets, sources, values))

    def finish(self, outside_mass: Tensor | None = None, *, exact: bool = True) -> Edges:
        """Measure the rows; `exact`: in bfloat16 if that rounds nothing."""
        index, extra = torch.empty(0, 2, dtype=torch.int64), torch.empty(0)
        if self._extra:
            targets, sources, extra = (torch.cat(t) for t in zip(*self._extra, strict=True))
            index = torch.stack([targets, sources], 1)
        values, logits = self._values, self.logits
        if exact and bfloat16_exact(values) and bfloat16_exact(logits):
            values, logits = values.bfloat16(), logits.bfloat16()
        mass = _all_mass(self._structure, values, logits, index, extra)
        return Edges(self._structure, values, logits, index, extra, mass, outside_mass)

    def _add_nonzero(self, rows: Tensor, nodes: slice) -> None:
        """Take what is not zero in the rows of a range of nodes."""
        targets, sources = rows.nonzero(as_tuple=True)
        node = torch.arange(self._structure.layout.n_nodes)[nodes]
        self.add_extra(node[targets], sources, exact_float32(rows[targets, sources]))


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
    for total, row in zip(mass[structure.layout.logit_rows], logits, strict=True):
        total.copy_(row.double().abs_().sum())
    return mass


def _all_mass(
    structure: Structure,
    values: Float[Tensor, " value"],
    logits: Float[Tensor, "logit source"],
    extra_index: Int64[Tensor, "extra 2"],
    extra_values: Float32[Tensor, " extra"],
) -> Float64[Tensor, " row"]:
    """`row_mass` and what stands outside the mask."""
    mass = row_mass(structure, values, logits)
    rows = structure.layout.rows_of(extra_index[:, 0])
    return mass.index_add_(0, rows[rows >= 0], extra_values[rows >= 0].double().abs())


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
