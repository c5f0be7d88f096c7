"""Edits of a batch: the checked changes of each row, as tensors.

A row is one copy of a prompt in a batched forward pass. A `Treatment` is what is done to it:
interventions all at once, or tensors of another model; its `control` says how the change is made.

    Treatment(interventions=on_each(features, Mode.ABLATE), control=Control.SIGN_FLIP)
    Treatment(replacement=Replacement(layers=(2, 3)))

A value relative to a feature's own activation is multiplied by that on the undisturbed prompt, at
the position where one is named (or the last), else the largest. It is 0 where the feature is
inactive, and so is every multiple of it: `no_op_interventions`.

An `EditBatch` has one line per (row, layer, position, feature), sorted by row, and the three
numbers of the rule ``new = min(gain * current + offset, cap)``:

    EditBatch.of([[], [Intervention(layer=2, position=11, feature=431)]], n_pos=20)
    EditBatch.setting(n, torch.arange(n), coordinates, torch.zeros(n))   # one ablation a row
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Float64, Int64
from pydantic import model_validator
from torch import Tensor

from em_circuits.activation_cache import ActivationCache
from em_circuits.coordinates import row_keys
from em_circuits.intervention import FIRST_POSITION, Intervention, Mode, Regime, Unit, Where
from em_circuits.models import Model
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen


class Control(StrEnum):
    """How a change is made: as it is, or as one of its controls."""

    AS_IS = "as_is"
    NOOP = "noop"
    """Computed and multiplied by 0."""
    SIGN_FLIP = "sign_flip"
    """The opposite change."""
    RANDOM_DIRECTION = "random_direction"
    """At every layer and position a random direction of the same length."""


class Tensors(StrEnum):
    """Which of a layer's activations come from the other model."""

    FEATURES = "features"
    """Every feature (or neuron) gets the other model's activation; the error stays."""
    MLP_OUTPUTS = "mlp_outputs"
    """The whole MLP output, errors included."""


class Replacement(Frozen):
    """The other model's activations of some layers, over the prompt and while generating."""

    layers: tuple[int, ...]
    tensors: Tensors = Tensors.FEATURES


class Treatment(Frozen):
    """Everything that is done to one row; empty, it is the undisturbed model."""

    interventions: tuple[Intervention, ...] = ()
    control: Control = Control.AS_IS
    seed: int = 0
    """Of the random direction."""
    replacement: Replacement | None = None
    regime: Regime = Regime.FREE

    @model_validator(mode="after")
    def _one_kind(self) -> Treatment:
        if self.replacement is not None and self.interventions:
            raise RequestError("a treatment changes features or replaces tensors, not both")
        if self.replacement is not None and self.regime.freezes_norms:
            raise RequestError(
                f"regime {self.regime} freezes MLP outputs, so tensors cannot be replaced in it; "
                "use free or attention_frozen"
            )
        return self


Row = Treatment | Sequence[Intervention]
"""A row of a batch; bare interventions are made as they are."""


def interventions_of(row: Row) -> Sequence[Intervention]:
    """A row's interventions."""
    return row.interventions if isinstance(row, Treatment) else row


def own_activation(state: ActivationCache, item: Intervention) -> float:
    """Activation of an intervention's feature on the undisturbed prompt; of several the largest."""
    if isinstance(item.position, int) or item.position is Where.LAST:
        positions = item.positions(state.n_pos)
    else:
        positions = range(state.first_position, state.n_pos)
    asked = torch.tensor([[item.layer, p, item.feature] for p in positions]).reshape(-1, 3)
    values = state.activation_of(asked).float()
    return float(values[values.abs().argmax()]) if len(values) else 0.0


def resolve_units(
    state: ActivationCache, interventions: Sequence[Intervention]
) -> tuple[Intervention, ...]:
    """The same interventions with every value absolute."""
    return tuple(
        item
        if item.unit is Unit.ABSOLUTE
        else item.model_copy(
            update={
                "value": (item.value or 0.0) * own_activation(state, item),
                "unit": Unit.ABSOLUTE,
            }
        )
        for item in interventions
    )


def no_op_interventions(
    state: ActivationCache, interventions: Sequence[Intervention]
) -> tuple[Intervention, ...]:
    """Those that multiply, remove or cap a feature that is inactive: nothing can come of them."""
    still = (Mode.SCALE, Mode.ABLATE, Mode.CLAMP)
    return tuple(
        item
        for item in interventions
        if (item.mode in still or item.unit is Unit.RELATIVE) and own_activation(state, item) == 0
    )


def check_interventions(model: Model, interventions: Iterable[Intervention], n_pos: int) -> None:
    """Refuse what the model has no place for, before anything runs.

    Args:
        model: Whose layers and dictionaries are meant.
        interventions: All of them, of one row or of several.
        n_pos: Tokens of the prompt, position 0 included.

    Raises:
        RequestError: Naming the first layer, position or feature out of range.
    """
    n_layers, dictionary = model.sites.n_layers, model.dictionaries[0]
    for intervention in interventions:
        _check_range(intervention, "layer", intervention.layer, range(n_layers))
        _check_range(intervention, "feature id", intervention.feature, range(dictionary.width))
        if isinstance(intervention.position, int):
            places = range(dictionary.first_position, n_pos)
            _check_range(intervention, "position", intervention.position, places)


def _check_range(intervention: Intervention, what: str, value: int, allowed: range) -> None:
    if value not in allowed:
        raise RequestError(
            f"{intervention.place}: {what} {value} does not exist; "
            f"choose {allowed.start} to {allowed.stop - 1}"
        )


@dataclass(frozen=True)
class EditBatch:
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
    controls: tuple[tuple[Control, int], ...] = ()
    """Control and seed of each row; empty where every change is made as it is."""

    def __post_init__(self) -> None:
        if len(self.row) and (self.row.diff() < 0).any():
            raise ValueError("an edit batch's lines must be sorted by row")

    @classmethod
    def of(
        cls,
        rows: Sequence[Row],
        n_pos: int | Sequence[int],
        *,
        first_position: int = FIRST_POSITION,
        n_forced: int = 0,
    ) -> EditBatch:
        """Write interventions down as tensors; a class of positions becomes its positions.

        Args:
            rows: What is done to each row, values absolute.
            n_pos: Tokens of the prompt, or of each row's.
            first_position: First position with features.
            n_forced: Tokens that are forced after the prompt, as if they had been generated.

        Raises:
            RequestError: If a row names one feature at one position twice.
        """
        lengths = [n_pos] * len(rows) if isinstance(n_pos, int) else n_pos
        places = [
            [
                (item, item.positions(length, first_position, n_forced))
                for item in interventions_of(row)
            ]
            for row, length in zip(rows, lengths, strict=True)
        ]
        return cls._of(places, _controls(rows))

    @classmethod
    def of_step(cls, rows: Sequence[Row]) -> EditBatch:
        """What is done to the one token that each row reads while generating."""
        places = [
            [(item, range(1)) for item in interventions_of(row) if item.while_generating]
            for row in rows
        ]
        return cls._of(places, _controls(rows))

    @classmethod
    def _of(
        cls,
        rows: Sequence[Sequence[tuple[Intervention, range]]],
        controls: tuple[tuple[Control, int], ...],
    ) -> EditBatch:
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
        return cls(len(rows), *columns, *numbers, controls)  # type: ignore[call-arg]

    @classmethod
    def setting(
        cls,
        n_rows: int,
        row: Int64[Tensor, " op"],
        coordinates: Int64[Tensor, "op 3"],
        values: Float[Tensor, " op"],
    ) -> EditBatch:
        """Set features to values: line i puts ``coordinates[i]`` to ``values[i]`` in its row."""
        zeros = torch.zeros(len(row), dtype=torch.float64)
        layer, position, feature = coordinates.cpu().long().T.contiguous()
        numbers = (zeros, values.cpu().double(), torch.full_like(zeros, math.inf))
        return cls(n_rows, row.cpu(), layer, position, feature, *numbers)

    def rows(self, start: int, stop: int) -> EditBatch:
        """Rows `start` to `stop` (exclusive), numbered from 0."""
        stop = min(stop, self.n_rows)
        edges = torch.searchsorted(self.row, torch.tensor([start, stop]))
        part = slice(*edges.tolist())
        columns = [column[part] for column in self._columns()]
        controls = self.controls[start:stop]
        return EditBatch(stop - start, self.row[part] - start, *columns, controls)  # type: ignore[call-arg,arg-type]

    def key(self) -> bytes:
        """What tells its lines from others, whatever their row; empty if there are none."""
        return b"".join(column.numpy().tobytes() for column in self._columns())

    def lines(self, which: Bool[Tensor, " op"]) -> EditBatch:
        """Some of the lines; the rows stay."""
        columns = [column[which] for column in self._columns()]
        return EditBatch(self.n_rows, self.row[which], *columns, self.controls)  # type: ignore[call-arg,arg-type]

    def in_every_row(self) -> Bool[Tensor, " op"]:
        """Lines that stand alike in all of several rows; none where rows have controls."""
        none = torch.zeros(len(self.row), dtype=torch.bool)
        if self.n_rows < 2 or self.controls:
            return none
        counts = self.row.bincount(minlength=self.n_rows)
        if not counts.min():
            return none
        (place,) = row_keys(torch.stack([self.layer, self.position, self.feature], dim=1))
        shortest = (self.row == counts.argmin()).nonzero()[:, 0]
        shortest = shortest[place[shortest].argsort()]
        at = torch.searchsorted(place[shortest], place).clamp(max=len(shortest) - 1)
        alike = place[shortest][at] == place
        for column in (self.gain, self.offset, self.cap):
            alike &= column[shortest][at] == column
        times = at[alike].bincount(minlength=len(shortest))
        return alike & (times == self.n_rows)[at]

    def layer_ops(self, layer: int) -> EditBatch:
        """The lines of one layer, in their order."""
        row, layers, *columns = self._by_layer
        part = slice(*torch.searchsorted(layers, torch.tensor([layer, layer + 1])).tolist())
        mine = [column[part] for column in (layers, *columns)]
        return EditBatch(self.n_rows, row[part], *mine, self.controls)  # type: ignore[call-arg,arg-type]

    @cached_property
    def _by_layer(self) -> list[Tensor]:
        """Rows and columns, layer by layer."""
        order = self.layer.argsort(stable=True)
        return [column[order] for column in (self.row, *self._columns())]

    def _columns(self) -> tuple[Tensor, ...]:
        return (self.layer, self.position, self.feature, self.gain, self.offset, self.cap)


def _controls(rows: Sequence[Row]) -> tuple[tuple[Control, int], ...]:
    controls = tuple(
        (row.control, row.seed) if isinstance(row, Treatment) else (Control.AS_IS, 0)
        for row in rows
    )
    return controls if any(control is not Control.AS_IS for control, _ in controls) else ()
