"""How are a graph's edges kept, without the zeros that the model's structure dictates?

Feature rows lie packed over the structural mask (`em_circuits.graphs.structure`), block after
block and without any index; logit rows stand apart, whole, in node order, so that they can be read
alone. Nothing is rounded. What a file holds can be memory-mapped and used as it lies.

    edges = Edges.from_dense(adjacency, layout, feature_layers, feature_positions)
    assert torch.equal(edges.to_dense(), adjacency)
    direct = edges.logit_rows()[:, layout.features]
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from em_circuits.graphs.layout import NodeLayout
from em_circuits.graphs.packing import Packer, add_extra_mass, row_mass
from em_circuits.graphs.structure import Block, Structure
from pivotal_tokens.errors import RequestError, WorkFailed


class NonFiniteEdges(WorkFailed):
    """Edges are NaN or infinite."""


@contextmanager
def computed_in(*dtypes: str) -> Iterator[None]:
    """Have edges that are not finite told with the precision that they were computed in.

    Args:
        dtypes: Every precision that took part, such as ``float16`` or ``torch.float16``.
    """
    try:
        yield
    except NonFiniteEdges as error:
        found = list(dict.fromkeys(name.removeprefix("torch.") for name in dtypes))
        why = "em-circuits doctor says how large the models' activations are"
        if "float16" in found:
            why = "float16 ends at 65,504: attribute again in bfloat16 or float32"
        raise NonFiniteEdges(f"{error}; computed in {' and '.join(found)}; {why}") from error


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
        expected: dict[str, tuple[Tensor, tuple[int, ...]]] = {
            "values": (self.values, (self.structure.n_values,)),
            "logit_values": (self.logit_values, (layout.n_logits, layout.n_sources)),
            "extra_index": (self.extra_index, (self.extra_values.numel(), 2)),
            "row_mass": (self.row_mass, (layout.n_rows,)),
        }
        if self.outside_mass is not None:
            expected["outside_mass"] = (self.outside_mass, (layout.n_rows,))
        for name, (tensor, shape) in expected.items():
            if tensor.shape != shape:
                raise RequestError(
                    f"Edges: {name} must have shape {shape}, got {tuple(tensor.shape)}."
                )
        if self.values.dtype not in (torch.float32, torch.bfloat16):
            raise RequestError(f"Edges are float32 or bfloat16, got {self.values.dtype}.")
        self._refuse_non_finite()

    @property
    def layout(self) -> NodeLayout:
        """The node order."""
        return self.structure.layout

    @property
    def nbytes(self) -> int:
        """Bytes of the packed values."""
        parts = (self.values, self.logit_values, self.extra_index, self.extra_values)
        return sum(t.numel() * t.element_size() for t in parts)

    @classmethod
    def from_dense(
        cls,
        matrix: Float[Tensor, "target column"],
        layout: NodeLayout,
        feature_layers: Int64[Tensor, " feature"],
        feature_positions: Int64[Tensor, " feature"],
        *,
        outside_mass: Float64[Tensor, " row"] | None = None,
    ) -> Edges:
        """Pack an adjacency matrix.

        Args:
            matrix: The whole (node x node) matrix, or its (features + logits) rows over the
                sources.
            layout: Its node order.
            feature_layers: Layer of every feature.
            feature_positions: Position of every feature.
            outside_mass: See the class.

        Raises:
            RequestError: If the shapes do not fit, or a float64 value is not float32-exact.
            NonFiniteEdges: If a value is NaN or infinite; the message names the edge.
        """
        structure = Structure(layout, feature_layers, feature_positions)
        shape = tuple(matrix.shape)
        whole, rows = (layout.n_nodes, layout.n_nodes), (layout.n_rows, layout.n_sources)
        if shape not in (whole, rows):
            raise RequestError(f"The matrix must be {whole} or {rows}, got {shape}.")
        packer = Packer(structure)
        for stripe in structure.stripes():
            for block in stripe.blocks:
                packer.add_block(block, stripe.columns, matrix[block.rows])
        logits = layout.logits_of(len(matrix))
        packer.add_logits(matrix[logits])
        packer.add_empty_rows(matrix[layout.features.stop : logits.start])
        return cls(structure, *packer.finish(), outside_mass)

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
        """Direct edges from every source to every target; reads nothing else of a file."""
        return self.logit_values.float()

    def block(self, block: Block) -> Float[Tensor, "target column"]:
        """One block's values, as stored: a view."""
        return block.view(self.values)

    def row(self, target: int) -> Float32[Tensor, " node"]:
        """One row over all nodes."""
        layout = self.layout
        row = torch.zeros(layout.n_nodes)
        if target >= layout.logits.start:
            row[layout.sources] = self.logit_values[target - layout.logits.start].float()
        elif target < layout.n_features:
            stripe, block = self.structure.locate(target)
            values = self.block(block)[target - block.rows.start]
            row[stripe.columns[: block.n_columns]] = values.float()
        mine = self.extra_index[:, 0] == target
        row[self.extra_index[mine, 1]] = self.extra_values[mine]
        return row

    def restricted(self, keep: Bool[Tensor, " node"]) -> Edges:
        """The edges among some nodes: features not kept are gone, other nodes not kept are empty.

        Logits stay whatever `keep` says. Masses are of the kept edges alone.
        """
        layout = self.layout
        kept = keep[layout.features].nonzero()[:, 0]
        structure = Structure(
            NodeLayout(len(kept), layout.n_layers, layout.n_pos, layout.n_logits),
            self.structure.feature_layers[kept],
            self.structure.feature_positions[kept],
        )
        stays = torch.ones(layout.n_nodes, dtype=torch.bool)
        stays[layout.features] = keep[layout.features]
        node_of = torch.cumsum(stays, 0) - 1
        values = torch.empty(structure.n_values, dtype=self.values.dtype)
        blocks = iter([b for s in reversed(list(structure.stripes())) for b in s.blocks])
        for stripe in reversed(list(self.structure.stripes())):
            columns = stays[stripe.columns].nonzero()[:, 0]
            empty = ~keep[stripe.columns[columns]]
            for block in stripe.blocks:
                rows = keep[block.rows].nonzero()[:, 0]
                if rows.numel():
                    new = next(blocks)
                    packed = self.block(block)[rows].index_select(1, columns[: new.n_columns])
                    new.view(values).copy_(packed.masked_fill_(empty[: new.n_columns], 0))
        logits = self.logit_values[:, stays[layout.sources]]
        logits.masked_fill_(~keep[layout.sources][stays[layout.sources]], 0)
        ends = self.extra_index
        is_row = (ends[:, 0] >= layout.logits.start) | keep[ends[:, 0]]
        mine = is_row & keep[ends[:, 1]]
        index, extra = node_of[ends[mine]], self.extra_values[mine]
        mass = row_mass(structure, values, logits)
        add_extra_mass(mass, structure, index, extra)
        return Edges(structure, values, logits, index, extra, mass)

    def _refuse_non_finite(self) -> None:
        # A row's mass is NaN or infinite exactly when one of its values is.
        layout = self.layout
        rows = (~self.row_mass.isfinite()).nonzero()[:, 0]
        targets = torch.where(
            rows < layout.n_features, rows, rows - layout.n_features + layout.logits.start
        )
        stray = self.extra_index[~self.extra_values.isfinite(), 0]
        bad = torch.cat([targets, stray]).unique()
        if not bad.numel():
            return
        target = int(bad[0])
        wrong = (~self.row(target).isfinite()).nonzero()[:, 0]
        where = self.structure.describe
        edge = f"{where(int(wrong[0]))} -> {where(target)}" if wrong.numel() else where(target)
        raise NonFiniteEdges(f"NaN or infinite edges in {bad.numel()} rows, first {edge}")
