"""Interventions: one change of one feature, behind every ablation, patch and steering run.

An intervention replaces the activation ``a`` a feature has at that moment by

    set: value    add: a + value    scale: value * a    ablate: 0    clamp: min(a, value)

and adds ``(new - a) * W_dec`` to the MLP output at its layer and position. A value in units of the
feature's own activation (`relative`) is multiplied by that (`interventions.edits`). Multiplying
cannot activate an inactive feature: 0 times anything is 0; only `set` and `add` by an absolute
value can.

    Intervention(layer=2, position=11, feature=431, mode=Mode.SCALE, value=3.0)
    Intervention(layer=2, position=Where.GENERATED, feature=431, mode=Mode.SET, value=4.0)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from enum import StrEnum
from typing import Any

from pydantic import field_validator, model_validator

from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen

MIN_DRAWS = 20
"""Fewer draws of matched random features do not make a band."""
FIRST_POSITION = 1
"""Position 0 (the beginning-of-sequence token) has no transcoder features: circuit-tracer zeroes
them. Neurons begin at 0."""


class Mode(StrEnum):
    """How the new activation follows from the current one, ``a``; see the top of the module."""

    SET = "set"
    ADD = "add"
    SCALE = "scale"
    ABLATE = "ablate"
    CLAMP = "clamp"


class Where(StrEnum):
    """Where a feature is changed: at its own position, or at a class of them."""

    FOUND = "found"
    """At the position at which it was found; an intervention has that position's number."""
    LAST = "last"
    """The prompt's last position."""
    PROMPT = "prompt"
    """Every position of the prompt that has features: all but 0 with transcoders."""
    GENERATED = "generated"
    """Every token the model generates, as it is read back."""
    EVERYTHING = "everything"
    """Prompt and generated tokens; an intervention's position is then None."""

    def position(self, found: Position) -> Position:
        """The position of an intervention on a feature that was found at `found`.

        A feature that is known without a position is changed everywhere.
        """
        match self:
            case Where.FOUND:
                return found
            case Where.EVERYTHING:
                return None
        return self


class Unit(StrEnum):
    """Unit of an intervention's value."""

    ABSOLUTE = "absolute"
    RELATIVE = "relative"
    """The feature's activation on the undisturbed prompt: at the position where one is named, else
    its largest."""

    @classmethod
    def _missing_(cls, value: object) -> Unit | None:
        """``own`` is the first edition's word for `relative`."""
        return cls.RELATIVE if value == "own" else None


class Regime(StrEnum):
    """How much of the model may respond to an intervention: `interventions.regimes`."""

    DIRECT = "direct"
    FROZEN_LINEAR = "frozen_linear"
    GATES_RECOMPUTED = "gates_recomputed"
    ATTENTION_FROZEN = "attention_frozen"
    FREE = "free"

    @property
    def freezes_norms(self) -> bool:
        """Whether it is one of the three regimes in which the transcoders replace the MLPs."""
        return self not in (Regime.ATTENTION_FROZEN, Regime.FREE)


Position = int | Where | None


def check_value(mode: Mode, value: float | None, unit: Unit, *, where: str) -> None:
    """Refuse a value that means nothing in a mode.

    Args:
        where: Whose value it is, for the message.

    Raises:
        RequestError: If the mode needs a value and has none, the value is not finite, or a unit
            does not fit the mode.
    """
    if mode is not Mode.ABLATE and value is None:
        raise RequestError(f"{where}: mode {mode} needs a value")
    if value is not None and not math.isfinite(value):
        raise RequestError(f"{where}: the value must be finite, not {value}")
    if unit is Unit.RELATIVE and mode in (Mode.SCALE, Mode.ABLATE):
        raise RequestError(
            f"{where}: mode {mode} has no unit; scale already multiplies the "
            "feature's own activation"
        )


class Intervention(Frozen):
    """One change of one feature's activation, at one position or at a class of positions.

    Raises:
        RequestError: If the mode needs a value and has none, the value is not finite, or a unit
            does not fit the mode.
    """

    layer: int
    position: Position = None
    """Position in the prompt, or a class of positions; None is every position that has features."""
    feature: int
    """Feature id within the layer's transcoder; without transcoders, its neuron."""
    mode: Mode = Mode.ABLATE
    value: float | None = None
    """Activation (`set`), change (`add`), factor (`scale`) or upper limit (`clamp`)."""
    unit: Unit = Unit.ABSOLUTE
    """Of the value; a factor has none."""

    @field_validator("position", mode="before")
    @classmethod
    def _everything_is_none(cls, value: Any) -> Any:
        if value == Where.FOUND:
            raise RequestError("an intervention has a position; give the one that was found")
        return None if value == Where.EVERYTHING else value

    @model_validator(mode="after")
    def _check_value(self) -> Intervention:
        check_value(self.mode, self.value, self.unit, where=self.place)
        return self

    @property
    def place(self) -> str:
        """``layer/position/feature``; every position is ``*``."""
        position = "*" if self.position is None else self.position
        return f"feature {self.layer}/{position}/{self.feature}"

    @property
    def while_generating(self) -> bool:
        """Whether it also acts on generated tokens."""
        return self.position in (None, Where.GENERATED)

    def rule(self) -> tuple[float, float, float]:
        """(gain, offset, cap): the new activation is ``min(gain * a + offset, cap)``."""
        value = 0.0 if self.value is None else self.value
        return {
            Mode.SET: (0.0, value, math.inf),
            Mode.ADD: (1.0, value, math.inf),
            Mode.SCALE: (value, 0.0, math.inf),
            Mode.ABLATE: (0.0, 0.0, math.inf),
            Mode.CLAMP: (1.0, 0.0, value),
        }[self.mode]

    def positions(
        self, n_pos: int, first_position: int = FIRST_POSITION, n_forced: int = 0
    ) -> range:
        """Positions that it changes of a prompt and of generated tokens.

        Args:
            n_pos: Tokens of the prompt.
            first_position: First position with features.
            n_forced: Generated tokens after the prompt.
        """
        if isinstance(self.position, int):
            return range(self.position, self.position + 1)
        first = {Where.LAST: n_pos - 1, Where.GENERATED: n_pos}.get(
            self.position,  # type: ignore[arg-type]
            first_position,
        )
        return range(first, n_pos + n_forced if self.while_generating else n_pos)


def on_each(
    features: Iterable[tuple[int, Position, int]],
    mode: Mode,
    value: float | None = None,
    unit: Unit = Unit.ABSOLUTE,
    *,
    where: Where = Where.FOUND,
) -> tuple[Intervention, ...]:
    """The same intervention on several (layer, position, feature id).

    Args:
        features: With the position at which each was found.
        mode: What is done.
        value: How much.
        unit: Of the value.
        where: At that position, or at a class of them, each feature once.
    """
    places = [(layer, where.position(position), feature) for layer, position, feature in features]
    if where is not Where.FOUND:
        places = list(dict.fromkeys(places))
    return tuple(
        Intervention(
            layer=layer, position=position, feature=feature, mode=mode, value=value, unit=unit
        )
        for layer, position, feature in places
    )


class Interventions(tuple[Intervention, ...]):
    """Interventions that act together, and how their features were chosen."""

    by: str

    def __new__(cls, items: Iterable[Intervention], by: str = "name") -> Interventions:
        chosen = super().__new__(cls, items)
        chosen.by = by
        return chosen
