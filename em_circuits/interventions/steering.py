"""Steering of one prompt, beside matched random features under the same treatment.

Three conditions in the same batches: undisturbed, steered (all interventions together), and at
least 20 matched random draws that get the very same treatment.

    result = steer(model, input_ids, interventions, words)
    result.steered.evil_mass - result.unsteered.evil_mass
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from pydantic import BaseModel, Field
from torch import Tensor

from em_circuits.activation_cache import ActivationCache
from em_circuits.contrast import Contrast
from em_circuits.intervention import Intervention, Mode, Regime
from em_circuits.interventions.edits import check_interventions, no_op_interventions
from em_circuits.interventions.matched_controls import (
    MIN_DRAWS,
    apply_to,
    check_draws,
    random_places,
)
from em_circuits.interventions.run import run_rows
from em_circuits.models.pair import Model, PromptLike, id_of
from em_circuits.models.text import decode_token
from em_circuits.statistics import Spread
from pivotal_tokens.errors import RequestError


class TopToken(BaseModel, frozen=True):
    """A likely next token."""

    token_id: int
    text: str
    probability: float


class Outcome(BaseModel, frozen=True):
    """Next-token figures under one condition, steered or not."""

    evil_mass: float
    contrast: float | None
    """Evil minus safe, in logits; None without an evil or a safe token."""
    top: tuple[TopToken, ...]


class RandomControl(BaseModel, frozen=True):
    """The same change of matched random features."""

    n: int
    evil_mass: Spread
    contrast: Spread | None


class Outcomes(BaseModel, frozen=True):
    """The three conditions of one intervention."""

    unsteered: Outcome
    steered: Outcome
    random_control: RandomControl


class Steered(BaseModel, frozen=True):
    """What was done."""

    model: str
    regime: Regime
    mode: Mode | None
    """With its value, if all features have the same."""
    value: float | None
    by: str
    """How the features were chosen."""
    features: tuple[Intervention, ...]
    asleep: int = 0
    """Interventions that multiply an inactive feature: nothing can come of them."""


class SteerResult(BaseModel, frozen=True):
    """What steering one prompt does; the object of `steer run --json`."""

    prompt_id: str
    intervention: Steered
    worlds: Outcomes
    random_places: tuple[tuple[tuple[int, int, int], ...], ...] = Field(exclude=True)
    """Of each draw and feature (layer, position or -1 for a class of them, feature id)."""

    def __repr__(self) -> str:
        done, before, after = self.intervention, self.unsteered, self.steered
        random = self.random_control.evil_mass
        what = f"{len(done.features)} features by {done.by}, {done.mode}"
        band = f"{random.mean:.3f} [{random.low:.3f}, {random.high:.3f}]"
        return (
            f"SteerResult({done.model}, {what}: evil mass {before.evil_mass:.3f} -> "
            f"{after.evil_mass:.3f}, {self.random_control.n} random draws {band})"
        )

    def _repr_html_(self) -> str:
        rows = [
            (name, *(f"{value:.3f}" for value in values))
            for name, *values in (
                ("unsteered", self.unsteered.evil_mass, self.unsteered.contrast or 0.0),
                ("steered", self.steered.evil_mass, self.steered.contrast or 0.0),
            )
        ]
        control = self.random_control
        cells = [
            "" if spread is None else f"{spread.mean:.3f} [{spread.low:.3f}, {spread.high:.3f}]"
            for spread in (control.evil_mass, control.contrast)
        ]
        rows.append((f"{control.n} matched random draws, middle 95 %", *cells))
        body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
        head = "<tr><th></th><th>evil mass</th><th>contrast (logits)</th></tr>"
        return f"<table>{head}{body}</table>"

    @property
    def unsteered(self) -> Outcome:
        return self.worlds.unsteered

    @property
    def steered(self) -> Outcome:
        return self.worlds.steered

    @property
    def random_control(self) -> RandomControl:
        return self.worlds.random_control


def steer(
    model: Model,
    prompt: PromptLike,
    interventions: Sequence[Intervention],
    contrast: Contrast,
    *,
    regime: Regime = Regime.FREE,
    n_random: int = MIN_DRAWS,
    seed: int = 0,
    by: str | None = None,
) -> SteerResult:
    """Apply all interventions together, beside the undisturbed model and random controls.

    Args:
        model: The model that is steered.
        prompt: A text, a prompt, or token ids with the beginning-of-sequence token in front.
        interventions: At least one, each feature at a position at most once.
        contrast: Tokens whose probability and logits are measured.
        regime: What is frozen meanwhile.
        n_random: Control draws, at least 20.
        seed: Of the draws.
        by: How the features were chosen, as outputs name it; interventions that come from a table
            say so themselves.

    Returns:
        Evil mass (0 to 1), contrast (logits) and next tokens, un-steered, steered and random.

    Raises:
        RequestError: If an intervention has no place, the control is too small, or the prompt
            has too few other active features to draw it from.
    """
    check_draws(n_random)
    if not interventions:
        raise RequestError("no intervention was given; name at least one feature")
    state = ActivationCache.capture(model, model.input_ids(prompt))
    check_interventions(model, interventions, state.n_pos)
    places = random_places(model, state, interventions, n_draws=n_random, seed=seed)
    rows = [[], list(interventions), *(apply_to(interventions, draw) for draw in places.tolist())]
    logits = run_rows(model, state, rows, regime)
    mass, contrasts = contrast.evil_mass(logits), contrast.value(logits)

    def outcome(row: int) -> Outcome:
        measured = None if contrasts is None else float(contrasts[row])
        top = top_tokens(model, logits[row])
        return Outcome(evil_mass=float(mass[row]), contrast=measured, top=top)

    modes = {(item.mode, item.value) for item in interventions}
    mode, value = modes.pop() if len(modes) == 1 else (None, None)
    spread = None if contrasts is None else Spread.of(contrasts[2:])
    return SteerResult(
        prompt_id=id_of(prompt),
        intervention=Steered(
            model=model.name,
            regime=regime,
            mode=mode,
            value=value,
            by=str(by or getattr(interventions, "by", "name")),
            features=tuple(interventions),
            asleep=len(no_op_interventions(state, interventions)),
        ),
        worlds=Outcomes(
            unsteered=outcome(0),
            steered=outcome(1),
            random_control=RandomControl(
                n=n_random, evil_mass=Spread.of(mass[2:]), contrast=spread
            ),
        ),
        random_places=tuple(tuple(map(tuple, draw)) for draw in places.tolist()),
    )


def top_tokens(model: Model, logits: Float[Tensor, " vocab"], n: int = 10) -> tuple[TopToken, ...]:
    """The n likeliest next tokens, ties by token id."""
    probabilities = logits.float().softmax(-1)
    order = torch.sort(probabilities, descending=True, stable=True).indices[:n].tolist()
    return tuple(
        TopToken(
            token_id=i, text=decode_token(model.tokenizer, i), probability=float(probabilities[i])
        )
        for i in order
    )
