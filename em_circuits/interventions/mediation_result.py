"""What does a mediation analysis report?

    mediation.cumulative[i].share, mediation.shares.features
    pooled_share(mediations_of_several_prompts, k=20)

See `em_circuits.interventions.mediation` for how the numbers come about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from em_circuits.interventions.changed import ChangedFeatures
from em_circuits.statistics import Spread

Order = Literal["integrated", "gradient", "scan"]
"""By which score features are taken: `em_circuits.interventions.mediation`."""
Direction = Literal["sufficiency", "necessity"]
"""Which model is treated: the base, or the merged one."""

MIN_SHIFT = 0.5
"""Logits; a smaller shift, or one away from evil, has no shares."""


@dataclass(frozen=True)
class Shares:
    """Shares of the shift, one per treatment of `interventions.components`; None where the
    shift is too small.
    """

    features: float | None
    errors: float | None
    attention: float | None
    together: float | None

    @property
    def interaction(self) -> float | None:
        """What is left of *together* when the sum of the three alone is taken off.

        Negative where treatments overlap: merged attention outputs, for one, already carry what
        features of lower layers have done to them.
        """
        if self.features is None or self.errors is None or self.attention is None:
            return None
        assert self.together is not None
        return self.together - (self.features + self.errors + self.attention)

    def to_json(self) -> dict[str, float | None]:
        """The five shares."""
        return {**self.__dict__, "interaction": self.interaction}


@dataclass(frozen=True)
class CumulativePoint:
    """The first k features, set together."""

    k: int
    contrast: float
    """In logits."""
    evil_mass: float
    share: float | None
    random_contrast: Spread | None
    """Matched random changed features; None where fewer than k others are left."""
    random_share: Spread | None
    random_evil_mass: Spread | None

    def to_json(self) -> dict[str, Any]:
        """The row of `features mediate --json`."""
        spread = self.random_share
        return {
            "k": self.k,
            "share": self.share,
            "evil_mass": self.evil_mass,
            "random_share": None if spread is None else spread.mean,
            "random_low": None if spread is None else spread.low,
            "random_high": None if spread is None else spread.high,
            "random_evil_mass": None
            if self.random_evil_mass is None
            else self.random_evil_mass.mean,
        }


@dataclass(frozen=True)
class InModel:
    """A figure in the two undisturbed models."""

    base: float
    merged: float

    @property
    def change(self) -> float:
        """Merged minus base."""
        return self.merged - self.base


@dataclass(frozen=True)
class Mediation:
    """What carries the shift of one prompt."""

    direction: Direction
    contrast: InModel
    """Evil minus safe, in logits."""
    evil_mass: InModel
    changed: ChangedFeatures
    """In the order in which the curve takes them."""
    effects: Float[Tensor, " changed"]
    """Change of the treated model's contrast by each alone, in logits, in the same order."""
    effects_by: str
    """How `effects` are known: ``gradient`` or ``scan``."""
    integrated: Float[Tensor, " changed"]
    """Its part of the change while all changed features move together, in logits."""
    ordered_by: Order
    cumulative: tuple[CumulativePoint, ...]
    layers: tuple[float | None, ...]
    """Share of each layer's changed features, set together."""
    shares: Shares

    def to_json(self, prompt_id: str, *, top: int | None = None) -> dict[str, Any]:
        """The object of `features mediate --json`.

        Args:
            prompt_id: Of the prompt.
            top: Features listed; None lists every changed one.
        """
        places = self.changed.coordinates[:top].tolist()
        return {
            "prompt_id": prompt_id,
            "shift": {"base": self.contrast.base, "merged": self.contrast.merged},
            "evil_mass": {"base": self.evil_mass.base, "merged": self.evil_mass.merged},
            "features": [
                {
                    "layer": layer,
                    "position": position,
                    "feature": feature,
                    "effect": effect,
                    "integrated": joint,
                }
                for (layer, position, feature), effect, joint in zip(
                    places, self.effects[:top].tolist(), self.integrated[:top].tolist(), strict=True
                )
            ],
            "direction": self.direction,
            "effects_by": self.effects_by,
            "ordered_by": self.ordered_by,
            "n_changed": len(self.changed),
            "cumulative": [point.to_json() for point in self.cumulative],
            "layers": list(self.layers),
            "shares": self.shares.to_json(),
        }


def pooled_share(mediations: Sequence[Mediation], k: int | None = None) -> float | None:
    """Share over prompts: the sum of what came back over the sum of the shifts.

    Args:
        mediations: Of several prompts; those whose shift is too small take no part.
        k: Features set together; None is every changed one.

    Returns:
        None if no prompt has a shift, or none has k changed features.
    """
    back, shift = 0.0, 0.0
    for mediation in mediations:
        points = [p for p in mediation.cumulative if k is None or p.k == k]
        if mediation.contrast.change >= MIN_SHIFT and points:
            if mediation.direction == "sufficiency":
                back += points[-1].contrast - mediation.contrast.base
            else:
                back += mediation.contrast.merged - points[-1].contrast
            shift += mediation.contrast.change
    return back / shift if shift else None
