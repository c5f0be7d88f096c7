"""What is done to one row of a batch?

Interventions all at once, or tensors of another model; and in which form their change is made:

    made      as it is
    none      the change is computed and multiplied by 0: the no-op control
    flipped   the opposite change: the sign-flipped control
    turned    at every layer and position a random direction of the same length

    Treatment(interventions=on_each(places, Mode.ABLATE), form=Form.FLIPPED)
    Treatment(replacement=Replacement(layers=(2, 3)))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum

from pydantic import model_validator

from em_circuits.intervention import Intervention
from em_circuits.interventions.regimes import Regime
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen


class Form(StrEnum):
    """In which form a change is made."""

    MADE = "made"
    NONE = "none"
    FLIPPED = "flipped"
    TURNED = "turned"


class Tensors(StrEnum):
    """Which of a layer's activations come from the other model."""

    FEATURES = "features"
    """Every transcoder feature gets the other model's activation; the error stays."""
    MLP_OUTPUTS = "mlp_outputs"
    """The whole MLP output, errors included."""


class Replacement(Frozen):
    """The other model's activations of some layers, over the prompt and while generating."""

    layers: tuple[int, ...]
    tensors: Tensors = Tensors.FEATURES


class Treatment(Frozen):
    """Everything that is done to one row; empty, it is the undisturbed model."""

    interventions: tuple[Intervention, ...] = ()
    form: Form = Form.MADE
    seed: int = 0
    """Of the random direction, where the change is turned."""
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


def by_regime(treatments: Sequence[Treatment]) -> Iterator[tuple[Regime, list[int]]]:
    """Which treatments can share forward passes: their numbers, by regime."""
    for regime in dict.fromkeys(t.regime for t in treatments):
        yield regime, [i for i, t in enumerate(treatments) if t.regime is regime]
