"""Which treatments does a plan ask for on a prompt, and which controls stand beside each?

A condition is a set of features, a mode with a value, and a class of positions. Its arms:

    unsteered                       nothing
    steered                         the condition
    noop, flipped, direction i      the same features, another form of the change
    random i                        the same treatment of matched random features

    for condition in conditions(plan, case):
        arms(plan, case, model, condition)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from em_circuits.experiments.cases import Case
from em_circuits.experiments.plan import Combination, SweepPlan
from em_circuits.feature import Feature
from em_circuits.interventions import (
    Form,
    Intervention,
    Mode,
    Regime,
    Treatment,
    Unit,
    Where,
    absolute,
    on_each,
)
from em_circuits.interventions.substitutes import moved, random_places
from em_circuits.models import Model

UNSTEERED, STEERED, RANDOM = "unsteered", "steered", "random"
NOOP, FLIPPED, DIRECTION = "noop", "flipped", "direction"


@dataclass(frozen=True)
class Condition:
    """One cell of a sweep on one prompt."""

    combination: str
    """``#1`` alone, ``#1+#3``, ``first 2``, ``all 5``; numbers are ranks."""
    features: tuple[Feature, ...]
    mode: Mode
    value: float | None
    unit: Unit
    place: Where

    @property
    def name(self) -> str:
        """The condition in words, the same on every prompt."""
        strength = "" if self.value is None else f" {self.value:g}"
        unit = " x own" if self.unit is Unit.RELATIVE else ""
        return f"{self.combination} {self.mode}{strength}{unit} @{self.place}"

    @property
    def interventions(self) -> tuple[Intervention, ...]:
        """What is done, each feature once per place."""
        return on_each(self.features, self.mode, self.value, self.unit, where=self.place)

    def columns(self) -> dict[str, Any]:
        """What stands of it in a row of the table."""
        return {
            "condition": self.name,
            "combination": self.combination,
            "features": ",".join(map(str, self.features)),
            "mode": str(self.mode),
            "value": self.value,
            "unit": str(self.unit),
            "place": str(self.place),
        }


@dataclass(frozen=True)
class Arm:
    """One treatment of a condition."""

    control: str
    draw: int
    treatment: Treatment


def conditions(plan: SweepPlan, features: Sequence[Feature]) -> Iterator[Condition]:
    """Every condition of a plan on a prompt whose features are chosen."""
    for names, members in _combined(plan.combinations, features):
        for given in plan.treatments:
            for value, place in itertools.product(given.values, plan.positions):
                yield Condition(names, members, given.mode, value, given.unit, place)


def arms(plan: SweepPlan, case: Case, model: Model, condition: Condition) -> tuple[Arm, ...]:
    """The un-steered model, the condition and its controls.

    Raises:
        RequestError: If the prompt has too few other active features for the random control.
    """
    items = absolute(case.state, condition.interventions)
    wanted, regime = plan.controls, plan.regime
    found = [
        Arm(UNSTEERED, 0, Treatment(regime=regime)),
        Arm(STEERED, 0, Treatment(interventions=items, regime=regime)),
    ]
    if wanted.noop:
        found.append(Arm(NOOP, 0, _formed(items, Form.NONE, regime)))
    if wanted.flipped:
        found.append(Arm(FLIPPED, 0, _formed(items, Form.FLIPPED, regime)))
    found += [
        Arm(DIRECTION, i, _formed(items, Form.TURNED, regime, seed=plan.seed + i))
        for i in range(wanted.directions)
    ]
    places = random_places(
        model, case.state, condition.interventions, n_draws=wanted.random, seed=plan.seed
    )
    for i, draw in enumerate(places.tolist()):
        others = absolute(case.state, moved(condition.interventions, draw))
        found.append(Arm(RANDOM, i, Treatment(interventions=others, regime=regime)))
    return tuple(found)


def _formed(
    items: tuple[Intervention, ...], form: Form, regime: Regime, seed: int = 0
) -> Treatment:
    return Treatment(interventions=items, form=form, seed=seed, regime=regime)


def _combined(
    combinations: Sequence[Combination], features: Sequence[Feature]
) -> Iterator[tuple[str, tuple[Feature, ...]]]:
    features = tuple(features)
    n = len(features)
    for combination in combinations:
        match combination:
            case Combination.SINGLE:
                yield from ((f"#{i + 1}", (feature,)) for i, feature in enumerate(features))
            case Combination.FIRST:
                yield from ((f"first {k}", features[:k]) for k in range(2, n + 1))
            case Combination.PAIRS:
                yield from (
                    (f"#{i + 1}+#{j + 1}", (features[i], features[j]))
                    for i, j in itertools.combinations(range(n), 2)
                )
            case Combination.ALL:
                yield f"all {n}", features
