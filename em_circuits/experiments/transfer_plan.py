"""What is found where, and tried where?

TransferPlan(name="unseen", found_on=PromptSource(organism=...), tried_on=PromptSource(...))
parse_source("organism:30:chemicals,driving", seed=1)
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from pydantic import Field, field_validator

from em_circuits.experiments.plan import OrganismSource, PromptSource, plain_name
from em_circuits.interventions import Sampling
from em_circuits.interventions.controls import MIN_DRAWS
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen


class Selection(StrEnum):
    """Where the features come from that are tried on a prompt."""

    OWN = "own"
    """From the prompt itself: in-sample."""
    OTHERS = "others"
    """(layer, feature id) pooled over other prompts, at every position of this one."""


class TransferPlan(Frozen):
    """Everything a transfer experiment depends on, beside the models and the labels."""

    name: str
    """Of the folder under ``results/experiments``."""
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

    _name = field_validator("name")(plain_name)


def parse_source(given: Sequence[str], *, seed: int) -> PromptSource:
    """Read prompts from the command line: ids, or ``organism:N[:DOMAIN,DOMAIN]``.

    Raises:
        RequestError: If a word is neither.
    """
    drawn = [word for word in given if word.startswith("organism:")]
    if len(drawn) > 1:
        raise RequestError("give organism:N[:DOMAIN,...] once; name several domains in it")
    ids = tuple(word for word in given if word not in drawn)
    if not drawn:
        return PromptSource(ids=ids)
    _, number, *domains = drawn[0].split(":", 2)
    if not number.isdecimal() or int(number) < 1:
        raise RequestError(f"{drawn[0]!r}: give organism:N or organism:N:DOMAIN,DOMAIN")
    wanted = tuple(d for d in domains[0].split(",") if d) if domains else None
    return PromptSource(ids=ids, organism=OrganismSource(n=int(number), domains=wanted, seed=seed))
