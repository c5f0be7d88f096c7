"""How do many rows of interventions become tensors?

A plan is a table with one line per (row, layer, position, feature), sorted by row, and the three
numbers of the rule ``new = min(gain * current + offset, cap)``. A row is one copy of the prompt
in a batched forward pass.

    plan = Plan.of([[], [Intervention(layer=2, position=11, feature=431)]], n_pos=20)
    plan = Plan.setting(n, torch.arange(n), coordinates, torch.zeros(n))   # one ablation a row
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from em_circuits.intervention import Intervention
from em_circuits.interventions.treatment import Form, Row, Treatment, interventions_of
from pivotal_tokens.errors import RequestError


@dataclass(frozen=True)
class Plan:
    """Interventions of `n_rows` rows; rows may be empty."""

    n_rows: int
    row: Int64[Tensor, " op"]
    """Ascending."""
    layer: Int64[Tensor, " op"]
    position: Int64[Tensor, " op"]
    feature: Int64[Tensor, " op"]
    gain: Float64[Tensor, " op"]
    offset: Float64[Tensor, " op"]
    cap: Float64[Tensor, " op"]
    forms: tuple[tuple[Form, int], ...] = ()
    """Form and seed of each row; none for all: every change is made as it is."""

    def __post_init__(self) -> None:
        if len(self.row) and (self.row.diff() < 0).any():
            raise ValueError("a plan's lines must be sorted by row")

    @classmethod
    def of(cls, rows: Sequence[Row], n_pos: int | Sequence[int]) -> Plan:
        """Write interventions down as tensors; a class of positions becomes its positions.

        Args:
            rows: What is done to each row, values absolute.
            n_pos: Tokens of the prompt, or of each row's.

        Raises:
            RequestError: If a row names one feature at one position twice.
        """
        lengths = [n_pos] * len(rows) if isinstance(n_pos, int) else n_pos
        places = [
            [(item, item.positions(length)) for item in interventions_of(row)]
            for row, length in zip(rows, lengths, strict=True)
        ]
        return cls._of(places, _forms(rows))

    @classmethod
    def of_step(cls, rows: Sequence[Row]) -> Plan:
        """What is done to the one token that each row reads while generating."""
        places = [
            [(item, range(1)) for item in interventions_of(row) if item.while_generating]
            for row in rows
        ]
        return cls._of(places, _forms(rows))

    @classmethod
    def _of(
        cls,
        rows: Sequence[Sequence[tuple[Intervention, range]]],
        forms: tuple[tuple[Form, int], ...],
    ) -> Plan:
        places: list[tuple[int, int, int, int]] = []
        rules: list[tuple[float, float, float]] = []
        for index, row in enumerate(rows):
            seen: set[tuple[int, int, int]] = set()
            for item, positions in row:
                for position in positions:
                    place = (item.layer, position, item.feature)
                    if place in seen:
                        raise RequestError(
                            f"{item.place}: position {position} is named twice in one row"
                        )
                    seen.add(place)
                    places.append((index, *place))
                    rules.append(item.rule())
        columns = torch.tensor(places, dtype=torch.int64).reshape(-1, 4).T.contiguous()
        numbers = torch.tensor(rules, dtype=torch.float64).reshape(-1, 3).T.contiguous()
        return cls(len(rows), *columns, *numbers, forms)  # type: ignore[call-arg]

    @classmethod
    def setting(
        cls,
        n_rows: int,
        row: Int64[Tensor, " op"],
        coordinates: Int64[Tensor, "op 3"],
        values: Float[Tensor, " op"],
    ) -> Plan:
        """Set features to values: line i puts ``coordinates[i]`` to ``values[i]`` in its row."""
        zeros = torch.zeros(len(row), dtype=torch.float64)
        layer, position, feature = coordinates.cpu().long().T.contiguous()
        numbers = (zeros, values.cpu().double(), torch.full_like(zeros, math.inf))
        return cls(n_rows, row.cpu(), layer, position, feature, *numbers)

    def rows(self, start: int, stop: int) -> Plan:
        """Rows `start` to `stop` (exclusive), numbered from 0."""
        stop = min(stop, self.n_rows)
        edges = torch.searchsorted(self.row, torch.tensor([start, stop]))
        part = slice(*edges.tolist())
        columns = [column[part] for column in self._columns()]
        forms = self.forms[start:stop]
        return Plan(stop - start, self.row[part] - start, *columns, forms)  # type: ignore[call-arg,arg-type]

    def layer_ops(self, layer: int) -> Plan:
        """The lines of one layer."""
        mask: Bool[Tensor, " op"] = self.layer == layer
        columns = [column[mask] for column in self._columns()]
        return Plan(self.n_rows, self.row[mask], *columns, self.forms)  # type: ignore[call-arg,arg-type]

    def _columns(self) -> tuple[Tensor, ...]:
        return (self.layer, self.position, self.feature, self.gain, self.offset, self.cap)


def _forms(rows: Sequence[Row]) -> tuple[tuple[Form, int], ...]:
    forms = tuple(
        (row.form, row.seed) if isinstance(row, Treatment) else (Form.MADE, 0) for row in rows
    )
    return forms if any(form is not Form.MADE for form, _ in forms) else ()
