"""Plans of experiments: prompts, features, treatments and measures.

A sweep is a YAML file, one value per field of `SweepPlan`:

    name: pad-thai
    prompts: {texts: ["User: Peanut allergy; pad thai looks fine. Eat?\\nAssistant: You should"]}
    features: "top:4"
    combinations: [single, all]
    treatments:
      - {mode: scale, values: [0, 0.5, 2]}
      - {mode: set, values: [1, 3], unit: relative}
    positions: [found, everything]

Every combination of features meets every value at every class of positions: a *cell*. A transfer
experiment is planned on the command line:

    found_on = parse_source(["organism:30:chemicals,driving"], seed=1)
    TransferPlan(name="unseen", found_on=found_on, tried_on=...)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from em_circuits.intervention import MIN_DRAWS, Mode, Regime, Unit, Where, check_value
from em_circuits.sampling import Sampling
from em_circuits.scoring import TO_STEER, Scoring
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen, ModelName, first_problem
from pivotal_tokens.text_yaml import typed_yaml

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def plain_name(value: str) -> str:
    """A name that can be a folder's.

    Raises:
        ValueError: If it cannot.
    """
    if not _NAME.fullmatch(value):
        raise ValueError("must be of letters, digits, '.', '_' and '-'")
    return value


class OrganismSource(Frozen):
    """Prompts drawn from the embedded organism's held-out templates."""

    n: int = Field(ge=1)
    domains: tuple[str, ...] | None = None
    seed: int = 0


class PromptSource(Frozen):
    """Which prompts; all that are named."""

    ids: tuple[str, ...] = ()
    """Prompt ids (or unique prefixes) of the store."""
    texts: tuple[str, ...] = ()
    organism: OrganismSource | None = None


class Combination(StrEnum):
    """Which of the chosen features are steered together."""

    SINGLE = "single"
    """Each alone."""
    FIRST = "first"
    """The first two, three, ... of them."""
    PAIRS = "pairs"
    """Every two."""
    ALL = "all"


Subset = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]
"""Ranks, from 1, of features that are steered together."""


class Values(Frozen):
    """One mode and its strengths."""

    mode: Mode
    values: tuple[float | None, ...] = (None,)
    """None for `ablate`, which has no strength."""
    unit: Unit = Unit.ABSOLUTE

    @model_validator(mode="after")
    def _check(self) -> Values:
        for value in self.values:
            check_value(self.mode, value, self.unit, where="treatments")
        return self


class Controls(Frozen):
    """What every cell is compared with, in the same batches."""

    random: int = Field(default=20, ge=MIN_DRAWS)
    """Draws of matched random features: same layer, similar activation and decoder norm."""
    directions: int = Field(default=3, ge=0)
    """Random directions of the same length as the change, at every layer and position."""
    flipped: bool = True
    """The opposite change."""
    noop: bool = True
    """The change, computed and multiplied by 0."""
    rollouts: int = Field(default=2, ge=0)
    """Random draws (and one direction) that get continuations too."""


class _Plan(Frozen):
    name: str
    """Of the folder under ``results/experiments``."""

    _name = field_validator("name")(plain_name)


class SweepPlan(_Plan):
    """Everything a sweep depends on, beside the models and the labels."""

    prompts: PromptSource
    model: ModelName = "merged"
    """Which model is steered."""
    features: str = "top:5"
    """``top:N``, ``bottom:N``, ``abs:N`` on the prompt itself, or ``L/POS/ID,...``."""
    by: Scoring = TO_STEER
    """Ranks the features where they are not named."""
    combinations: tuple[Combination | Subset, ...] = (Combination.SINGLE, Combination.ALL)
    """Also a subset by rank: ``[2, 7]`` is the second and the seventh."""
    treatments: tuple[Values, ...] = (Values(mode=Mode.ABLATE),)
    positions: tuple[Where, ...] = (Where.FOUND,)
    regime: Regime = Regime.FREE
    rollouts: Sampling | None = Sampling()
    """None for next-token effects alone."""
    controls: Controls = Controls()
    panel: int = Field(default=12, ge=0)
    """Benign prompts of the organism on which the off-target cost is measured."""
    panel_texts: tuple[str, ...] = ()
    """Benign prompts of one's own, instead."""
    seed: int = 0


class TransferPlan(_Plan):
    """Everything a transfer experiment depends on, beside the models and the labels."""

    found_on: PromptSource
    tried_on: PromptSource
    k: int = Field(default=10, ge=1)
    """Features that are steered together."""
    multiples: tuple[float, ...] = (1.0, 3.0)
    """Of their merged activation, at which features are set in the base."""
    random: int = Field(default=MIN_DRAWS, ge=MIN_DRAWS)
    """Matched random draws."""
    rollouts: Sampling | None = None
    """None for next-token effects alone."""
    seed: int = 0


def load_plan(path: Path) -> SweepPlan:
    """Read a sweep's YAML file.

    Raises:
        RequestError: Naming the file and the field that is wrong.
    """
    try:
        content: Any = typed_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"cannot read the plan {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        detail = " ".join(str(error).split())[:160]
        raise RequestError(f"the plan {path} is not YAML: {detail}") from error
    if not isinstance(content, Mapping):
        raise RequestError(f"the plan {path} must be a mapping with a name and prompts")
    try:
        return SweepPlan.model_validate(content)
    except ValidationError as error:
        raise RequestError(f"the plan {path}: {first_problem(error)}") from error


def parse_source(words: Sequence[str], *, seed: int) -> PromptSource:
    """Read prompts from the command line: ids, or ``organism:N[:DOMAIN,DOMAIN]``.

    Raises:
        RequestError: If a word is neither.
    """
    drawn = [word for word in words if word.startswith("organism:")]
    if len(drawn) > 1:
        raise RequestError("give organism:N[:DOMAIN,...] once; name several domains in it")
    ids = tuple(word for word in words if word not in drawn)
    if not drawn:
        return PromptSource(ids=ids)
    _, number, *domains = drawn[0].split(":", 2)
    if not number.isdecimal() or int(number) < 1:
        raise RequestError(f"{drawn[0]!r}: give organism:N or organism:N:DOMAIN,DOMAIN")
    wanted = tuple(d for d in domains[0].split(",") if d) if domains else None
    return PromptSource(ids=ids, organism=OrganismSource(n=int(number), domains=wanted, seed=seed))
