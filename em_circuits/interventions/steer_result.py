"""What steering a prompt gave, as models: kept results are read back without torch."""

from __future__ import annotations

import html

from pydantic import BaseModel, Field

from em_circuits.intervention import Intervention, Mode, Regime
from em_circuits.sampling import Sampling
from em_circuits.spread import Spread
from pivotal_tokens.schema import Frozen, Label


class TopToken(BaseModel, frozen=True):
    """A likely next token."""

    token_id: int
    text: str
    probability: float


class Outcome(BaseModel, frozen=True):
    """Next-token figures under one condition, steered or not."""

    evil_mass: float | None
    """Summed probability of the evil next tokens, or of the evil continuations of a target; None
    for a target without such."""
    contrast: float | None
    """Evil minus safe, in logits, or the target's value; None without an evil or a safe token."""
    top: tuple[TopToken, ...]


class RandomControl(BaseModel, frozen=True):
    """The same change of matched random features."""

    n: int
    evil_mass: Spread | None
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
    target: str | None = None
    """What `contrast` is the value of, where it is not a contrast of next tokens."""


class SteerResult(BaseModel, frozen=True):
    """What steering one prompt does; the object of `steer run --json`."""

    prompt_id: str
    intervention: Steered
    worlds: Outcomes
    random_places: tuple[tuple[tuple[int, int, int], ...], ...] = Field(default=(), exclude=True)
    """Of each draw and feature (layer, position or -1 for a class of them, feature id)."""

    def __repr__(self) -> str:
        done, before, after = self.intervention, self.unsteered, self.steered
        control = self.random_control
        what = f"{len(done.features)} features by {done.by}, {done.mode}"
        if done.target is None:
            name, values = "evil mass", (before.evil_mass, after.evil_mass)
            random = control.evil_mass
        else:
            name, values = done.target, (before.contrast, after.contrast)
            random = control.contrast
        assert random is not None
        band = f"{random.mean:.3f} [{random.low:.3f}, {random.high:.3f}]"
        return (
            f"SteerResult({done.model}, {what}: {name} {values[0]:.3f} -> {values[1]:.3f}, "
            f"{control.n} random draws {band})"
        )

    def __str__(self) -> str:
        return repr(self)  # pydantic's prints every field

    def _repr_html_(self) -> str:
        rows = [
            (name, *("" if v is None else f"{v:.3f}" for v in (at.evil_mass, at.contrast)))
            for name, at in (("unsteered", self.unsteered), ("steered", self.steered))
        ]
        control = self.random_control
        cells = [
            "" if spread is None else f"{spread.mean:.3f} [{spread.low:.3f}, {spread.high:.3f}]"
            for spread in (control.evil_mass, control.contrast)
        ]
        rows.append((f"{control.n} matched random draws, middle 95 %", *cells))
        body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
        target = self.intervention.target
        name = "contrast (logits)" if target is None else html.escape(target)
        head = f"<tr><th></th><th>evil mass</th><th>{name}</th></tr>"
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


class RolloutRates(Frozen):
    """Shares of labels among scored continuations, and how much they are language."""

    n_rollouts: int
    unscored: int
    evil_rate: float | None
    safe_rate: float | None
    perplexity: float | None
    repetition: float


class LabelledText(Frozen):
    """One continuation."""

    text: str
    label: Label | None


class ConditionTexts(RolloutRates):
    """Those of one condition."""

    texts: tuple[LabelledText, ...]


class PromptRollouts(Frozen):
    """Continuations under every condition, all drawn with the same noise."""

    judge: str
    sampling: Sampling
    worlds: dict[str, ConditionTexts]
    """By condition; ``random_control`` is one random draw."""


class SteerWithRollouts(SteerResult, frozen=True):
    """The object of `steer run --rollouts N --json`."""

    rollouts: PromptRollouts


AnySteering = SteerResult | SteerWithRollouts
