"""Packed edges from attribution rows, when the selection is not known until the end.

Attribution makes rows in its own order, over every *active* feature, and only then knows which were
selected. The builder stores of each row what the mask allows, so that no (node x node) matrix is
ever needed, and at the end drops the columns of the others, whose mass it records. Rows beyond
`ROW_BYTES` are offloaded to a file, and go from there straight into their packed place.

    builder = EdgesBuilder(layers, positions, n_layers=4, n_pos=9, n_logits=10)
    builder.add_logits(torch.arange(10), logit_rows)
    builder.add_features(indices, rows)
    edges = builder.build(selected)
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from em_circuits.graphs.edges import Edges, Packer, exact_float32
from em_circuits.graphs.layout import NodeLayout
from em_circuits.graphs.offload import Scratch, Slot
from em_circuits.graphs.structure import Block, Stripe, Structure
from pivotal_tokens.errors import RequestError

ROW_BYTES = 1 << 30
"""Feature rows that stay in memory."""
_LEAST_MASS = 1e-8
"""A row's mass counts as this at least (`circuit_tracer.graph.compute_partial_influences`)."""


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
        scratch: Path | None = None,
    ) -> None:
        """Start without rows; `scratch` is the folder for rows that are too many for memory, the
        system's if not given."""
        layout = NodeLayout(len(active_layers), n_layers, n_pos, n_logits)
        self._structure = Structure(layout, active_layers, active_positions)
        self._features: dict[int, Tensor | Slot] = {}
        self._scratch, self._room = Scratch(scratch), ROW_BYTES
        self._logits: dict[int, Tensor] = {}
        self._extra: dict[int, tuple[Tensor, Tensor]] = {}
        self._where: list[tuple[Stripe, Block]] = []  # of every active feature
        for stripe in reversed(list(self._structure.stripes())):
            for block in stripe.blocks:
                self._where.extend([(stripe, block)] * block.n_rows)

    @property
    def visited(self) -> Int64[Tensor, " feature"]:
        """Active indices of the features with rows, ascending."""
        return torch.tensor(sorted(self._features), dtype=torch.int64)

    def add_features(
        self, indices: Int64[Tensor, " batch"], rows: Float[Tensor, "batch column"]
    ) -> None:
        """Take rows of features.

        Args:
            indices: Which active feature each row belongs to.
            rows: Over all active features, errors and tokens; columns beyond are not looked at.

        Raises:
            RequestError: If a row is too short, or of a feature that is not active.
        """
        for index, row in zip(indices.tolist(), self._sources(rows), strict=True):
            if not 0 <= index < len(self._where):
                raise RequestError(f"No active feature {index}: there are {len(self._where)}.")
            stripe, block = self._where[index]
            columns = stripe.columns[: block.n_columns]
            inside = row[columns]
            self._extra.pop(index, None)
            if int(row.count_nonzero()) != int(inside.count_nonzero()):
                rest = row.clone()
                rest[columns] = 0
                where = rest.nonzero()[:, 0]
                self._extra[index] = (where, exact_float32(rest[where]))
            self._room -= inside.numel() * inside.element_size()
            self._features[index] = inside if self._room >= 0 else self._scratch.put(inside)

    def add_logits(
        self, indices: Int64[Tensor, " batch"], rows: Float[Tensor, "batch column"]
    ) -> None:
        """Take rows of targets; see `add_features`."""
        for index, row in zip(indices.tolist(), self._sources(rows), strict=True):
            self._logits[index] = row.clone()

    def influence(self, weights: Float64[Tensor, " logit"]) -> Float64[Tensor, " source"]:
        """Absolute row-normalised influence of every source on the targets, through the rows here.

        circuit-tracer's partial influence. Rows from the last layer to the first: each is complete
        when its turn comes, so every edge is visited once.

        Args:
            weights: Of the targets, not negative.
        """
        total = torch.zeros(self._structure.layout.n_sources, dtype=torch.float64)
        for index, row in self._logits.items():
            mass = max(float(row.abs().sum()), _LEAST_MASS)
            total.add_(row.double().abs() / mass, alpha=float(weights[index]))
        ahead, stripe = torch.zeros(0), None
        for index in sorted(self._features, reverse=True):
            here, block = self._where[index]
            if here is not stripe:
                if stripe is not None:
                    total[stripe.columns] += ahead
                ahead, stripe = torch.zeros(len(here.columns), dtype=torch.float64), here
            row = self._row(index)
            where, extra = self._extra.get(index, (None, row[:0]))
            mass = max(float(row.abs().sum() + extra.abs().sum()), _LEAST_MASS)
            share = float(total[index]) / mass
            ahead[: block.n_columns].add_(row.abs(), alpha=share)
            if where is not None:
                total.index_add_(0, where, extra.double().abs(), alpha=share)
        if stripe is not None:
            total[stripe.columns] += ahead
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
        packer = Packer(structure)
        outside = torch.zeros(layout.n_rows, dtype=torch.float64)
        for stripe in structure.stripes():
            for block in stripe.blocks:
                for row in range(block.rows.start, block.rows.stop):
                    index = int(selected[row])
                    values, columns = self._row(index), self._columns(index)
                    if len(remaining) < active.n_sources:
                        inside = new_index[columns] >= 0
                        outside[row] = values[~inside].double().abs().sum()
                        values = values[inside]
                    packer.add_row(block, row, values)
                    del self._features[index]
        for row, index in enumerate(selected.tolist()):
            if index in self._extra:
                sources, values = self._extra.pop(index)
                inside = new_index[sources] >= 0
                targets = torch.full_like(sources[inside], row)
                packer.add_extra(targets, new_index[sources[inside]], values[inside])
        if layout.n_logits:
            logits = torch.stack([self._logits[i] for i in range(layout.n_logits)])
            outside[layout.logit_rows] = logits[:, new_index < 0].double().abs().sum(1)
            packer.add_logits(logits[:, remaining])
        self._logits.clear()
        return packer.finish(outside)

    def _row(self, index: int) -> Tensor:
        row = self._features[index]
        return self._scratch.get(row) if isinstance(row, Slot) else row

    def _columns(self, index: int) -> Tensor:
        stripe, block = self._where[index]
        return stripe.columns[: block.n_columns]

    def _require(self, selected: Tensor) -> None:
        missing = [i for i in selected.tolist() if i not in self._features]
        absent = [i for i in range(self._structure.layout.n_logits) if i not in self._logits]
        if missing or absent:
            raise RequestError(
                f"{len(missing)} selected features (first {missing[:1]}) and {len(absent)} targets "
                f"(first: {absent[:1]}) have no row; add them before build()."
            )

    def _sources(self, rows: Tensor) -> Tensor:
        sources = self._structure.layout.sources
        if rows.shape[1] < sources.stop:
            raise RequestError(
                f"Rows must have {sources.stop} columns or more, got {rows.shape[1]}."
            )
        return rows.detach().cpu()[:, sources]
