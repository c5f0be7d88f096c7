"""What changes when these features are steered, and would others have done the same?

Three worlds in the same batches: undisturbed, steered (all interventions together), and at least
20 matched random draws that get the very same treatment.

    result = steer(model, input_ids, interventions, groups)
    result.steered.evil_mass - result.unsteered.evil_mass
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from em_circuits.contrast import Contrast
from em_circuits.intervention import Intervention
from em_circuits.interventions.controls import MIN_DRAWS, check_draws
from em_circuits.interventions.engine import run_rows
from em_circuits.interventions.ranges import check_interventions
from em_circuits.interventions.regimes import Regime
from em_circuits.interventions.state import PromptState
from em_circuits.interventions.substitutes import moved, random_places
from em_circuits.interventions.units import asleep
from em_circuits.models import Model
from em_circuits.models.text import decode_token
from em_circuits.statistics import Spread
from pivotal_tokens.errors import RequestError


@dataclass(frozen=True)
class TopToken:
    """A likely next token."""

    token_id: int
    text: str
    probability: float


@dataclass(frozen=True)
class World:
    """Next-token figures under one treatment."""

    evil_mass: float
    contrast: float | None
    """Evil minus safe, in logits; None without an evil or a safe token."""
    top: tuple[TopToken, ...]

    def to_json(self) -> dict[str, Any]:
        """``{"evil_mass", "contrast", "top"}``."""
        top = [dict(token.__dict__) for token in self.top]
        return {"evil_mass": self.evil_mass, "contrast": self.contrast, "top": top}


@dataclass(frozen=True)
class RandomControl:
    """The same treatment of matched random features."""

    n: int
    evil_mass: Spread
    contrast: Spread | None

    def to_json(self) -> dict[str, Any]:
        """``{"n", "evil_mass", "contrast"}``."""
        measured = None if self.contrast is None else self.contrast.model_dump()
        return {"n": self.n, "evil_mass": self.evil_mass.model_dump(), "contrast": measured}


@dataclass(frozen=True)
class SteerResult:
    """The three worlds of one intervention."""

    model: str
    regime: Regime
    interventions: tuple[Intervention, ...]
    unsteered: World
    steered: World
    random_control: RandomControl
    random_places: Int64[Tensor, "draw chosen 3"]
    """(layer, position or -1 for a class of them, feature id) of each draw."""
    n_asleep: int = 0
    """Interventions that multiply an inactive feature: nothing can come of them."""
    by: str = "name"
    """How the features were chosen."""

    def to_json(self, prompt_id: str) -> dict[str, Any]:
        """The object of `steer run --json`."""
        modes = {(str(i.mode), i.value) for i in self.interventions}
        mode, value = modes.pop() if len(modes) == 1 else (None, None)
        return {
            "prompt_id": prompt_id,
            "intervention": {
                "model": self.model,
                "regime": str(self.regime),
                "mode": mode,
                "value": value,
                "by": self.by,
                "features": [i.model_dump(mode="json") for i in self.interventions],
                "asleep": self.n_asleep,
            },
            "worlds": {
                "unsteered": self.unsteered.to_json(),
                "steered": self.steered.to_json(),
                "random_control": self.random_control.to_json(),
            },
        }


def steer(
    model: Model,
    input_ids: Int[Tensor, " pos"],
    interventions: Sequence[Intervention],
    groups: Contrast,
    *,
    regime: Regime = Regime.FREE,
    n_random: int = MIN_DRAWS,
    seed: int = 0,
    by: str = "name",
) -> SteerResult:
    """Apply all interventions together, beside the undisturbed model and random controls.

    Args:
        model: The model that is steered.
        input_ids: One prompt, with its beginning-of-sequence token.
        interventions: At least one, each feature at a position at most once.
        groups: Tokens whose probability and logits are measured.
        regime: What is frozen meanwhile.
        n_random: Control draws, at least 20.
        seed: Of the draws.
        by: How the features were chosen, as outputs name it.

    Raises:
        RequestError: If an intervention has no place, the control is too small, or the prompt
            has too few other active features to draw it from.
    """
    check_draws(n_random)
    if not interventions:
        raise RequestError("no intervention was given; name at least one feature")
    state = PromptState.capture(model, input_ids)
    check_interventions(model, interventions, state.n_pos)
    places = random_places(model, state, interventions, n_draws=n_random, seed=seed)
    rows = [[], list(interventions), *(moved(interventions, draw) for draw in places.tolist())]
    logits = run_rows(model, state, rows, regime)
    mass, contrasts = groups.evil_mass(logits), groups.value(logits)

    def world(row: int) -> World:
        measured = None if contrasts is None else float(contrasts[row])
        return World(float(mass[row]), measured, top_tokens(model, logits[row]))

    spread = None if contrasts is None else Spread.of(contrasts[2:])
    control = RandomControl(n_random, Spread.of(mass[2:]), spread)
    return SteerResult(
        model.name,
        regime,
        tuple(interventions),
        world(0),
        world(1),
        control,
        places,
        len(asleep(state, interventions)),
        by,
    )


def top_tokens(model: Model, logits: Float[Tensor, " vocab"], n: int = 10) -> tuple[TopToken, ...]:
    """The n likeliest next tokens, ties by token id."""
    probabilities = logits.float().softmax(-1)
    order = torch.sort(probabilities, descending=True, stable=True).indices[:n].tolist()
    return tuple(
        TopToken(i, decode_token(model.tokenizer, i), float(probabilities[i])) for i in order
    )
