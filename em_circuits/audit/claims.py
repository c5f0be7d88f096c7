"""Claims: sentences of documents, each with the artefact and the figure that it rests on.

    claims:
      - sentence: "tells harmful from harmless fine-tunes with an AUROC of 1.00 (.74 to 1.00)"
        document: audit.md                       # the sentence stands in it; optional
        artefact: ../em_circuits/audit/calibrations/toy.json
        figure: methods.kl.auroc.value           # field by field; `name=x` picks from a list
        value: 1.00                              # as the sentence says it: to its last digit
        interval: [0.74, 1.00]
        low: methods.kl.auroc.low                # where the ends of the interval are
        high: methods.kl.auroc.high

Paths are relative to the claims file. A value holds if the artefact's figure rounds to it at the
number of digits with which it is written, so that a text cannot be more precise than it is.

    for checked in check_claims(Path("docs/claims.yaml")):
        checked.problem          # None where the claim holds
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from pivotal_tokens.artefacts import changed_since_written
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen, first_problem
from pivotal_tokens.text_yaml import text_yaml

_NUMBER = r"^[+-]?[0-9]*\.?[0-9]+$"


class Claim(Frozen):
    """A sentence with one figure."""

    sentence: str = Field(min_length=1)
    document: str | None = None
    """Where the sentence stands, white space apart."""
    artefact: str
    """JSON file."""
    figure: str
    """Path of the value in it."""
    value: str = Field(pattern=_NUMBER)
    """As it is said; its digits are what is checked."""
    interval: tuple[str, str] | None = None
    low: str | None = None
    """Path of the lower end."""
    high: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Claim:
        ends = (self.interval, self.low, self.high)
        if any(end is None for end in ends) and any(end is not None for end in ends):
            raise ValueError("interval, low and high belong together")
        for end in self.interval or ():
            if not re.match(_NUMBER, end):
                raise ValueError(f"interval: {end} is no number")
        return self


class CheckedClaim(Frozen, use_attribute_docstrings=True):
    """A claim beside its artefact."""

    sentence: str
    artefact: str
    figure: str
    said: str
    """The value, as the sentence has it."""
    found: float | None
    """The artefact's; null where it has none."""
    problem: str | None
    """Why the claim does not hold."""


class _ClaimsFile(Frozen):
    claims: tuple[Claim, ...] = Field(min_length=1)


def check_claims(path: Path) -> list[CheckedClaim]:
    """Every claim of a file, checked.

    Raises:
        RequestError: If the file holds no claims.
    """
    try:
        given = _ClaimsFile.model_validate(text_yaml(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise RequestError(f"--claims {path}: {reason}; give a YAML file of claims") from error
    except ValidationError as error:
        raise RequestError(f"--claims {path}: {first_problem(error)}") from error
    return [_checked(claim, path.parent) for claim in given.claims]


def _checked(claim: Claim, folder: Path) -> CheckedClaim:
    found, problem = None, None
    artefact = folder / claim.artefact
    try:
        record = json.loads(artefact.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        record = None
    if record is None:
        problem = f"{claim.artefact} is not there, or no JSON"
    elif changed_since_written(artefact):
        problem = f"{claim.artefact} has changed since it was written"
    else:
        try:
            found = figure_at(record, claim.figure)
            pairs = [(claim.value, found)]
            if claim.interval is not None and claim.low and claim.high:
                ends = zip(claim.interval, (claim.low, claim.high), strict=True)
                pairs += [(said, figure_at(record, place)) for said, place in ends]
            off = [(said, value) for said, value in pairs if not _is_said(said, value)]
            if off:
                problem = f"says {off[0][0]}, the artefact {off[0][1]:.6g}"
        except KeyError as error:
            problem = f"{claim.artefact} has no number at {error.args[0]}"
    return CheckedClaim(
        sentence=claim.sentence,
        artefact=claim.artefact,
        figure=claim.figure,
        said=claim.value,
        found=found,
        problem=problem or _not_written(claim, folder),
    )


def figure_at(record: Any, place: str) -> float:
    """The number at a path such as ``rows.plan=safe.merged.along``.

    Raises:
        KeyError: With the part of the path that leads nowhere.
    """
    value = record
    for part in place.split("."):
        name, equals, wanted = part.partition("=")
        if isinstance(value, list) and equals:
            value = [one for one in value if isinstance(one, dict) and str(one.get(name)) == wanted]
            value = value[0] if len(value) == 1 else value
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, dict) and part in value:
            value = value[part]
        else:
            raise KeyError(place)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise KeyError(place)
    return float(value)


def _is_said(said: str, value: float) -> bool:
    """Whether a number rounds to what is said, at the digits with which it is said."""
    step = Decimal(1).scaleb(int(Decimal(said).as_tuple().exponent))
    return abs(Decimal(repr(value)) - Decimal(said)) <= step / 2


def _not_written(claim: Claim, folder: Path) -> str | None:
    said = [claim.value, *(claim.interval or ())]
    numbers = re.findall(r"[+-]?[0-9]*\.?[0-9]+", claim.sentence)
    missing = [one for one in said if not any(Decimal(n) == Decimal(one) for n in numbers)]
    if missing:
        return f"the sentence does not say {missing[0]}"
    if claim.document is None:
        return None
    try:
        text = (folder / claim.document).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return f"{claim.document} cannot be read"
    inside = " ".join(claim.sentence.split()) in " ".join(text.split())
    return None if inside else f"{claim.document} does not say so"
