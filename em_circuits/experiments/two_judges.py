"""Kept texts under two judges: the journal of the second, rates and conclusions side by side.

A conclusion is the sign of a difference that its interval tells from 0 ("more", "fewer", else
"open"). What the second judge says goes beside the experiment, under ``rejudged/JUDGE``; the
experiment itself stays as it is, and no model runs.

    place, journal = open_rejudged(folder, judge.id, record)
    RateChange(0.2, 0.1, 0.3).sign                       # "more"
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import pyarrow.parquet as pq
from pyarrow import ArrowException
from pydantic import BaseModel, ValidationError

from em_circuits.cache import SUMMARY, Journal, read_json
from pivotal_tokens.artefacts import content_key
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen, first_problem

Sign = Literal["more", "fewer", "open"]
Summary = TypeVar("Summary", bound=BaseModel)
Row = TypeVar("Row", bound=BaseModel)
Conclusion = TypeVar("Conclusion", bound="ConclusionOfTwo")


class RateChange(NamedTuple):
    """A difference of rates and its interval; None where there is none."""

    value: float | None
    low: float | None
    high: float | None

    @property
    def sign(self) -> Sign:
        """Whether the interval tells it from 0, and which way."""
        if self.low is None or self.high is None:
            return "open"
        return "more" if self.low > 0 else "fewer" if self.high < 0 else "open"


class ConclusionOfTwo(Frozen):
    """What two judges say about one difference."""

    before: float | None
    """RateChange of rates under the first judge."""
    after: float | None
    sign_before: Sign
    """Whether the first judge's interval tells it from 0, and which way."""
    sign_after: Sign
    changed: bool


class RateOfTwo(Frozen):
    """A rate under both judges."""

    before: float | None
    after: float | None
    scored_before: int
    scored_after: int


class TwoJudges(Frozen):
    """An experiment whose texts a second judge read."""

    kind: str = "rejudgement"
    name: str
    judges: tuple[str, str]
    """The first and the other."""
    both: int
    """Texts that both judges scored."""
    agreement: float | None
    """Share of these on which they agree."""
    folder: str


def open_rejudged(folder: Path, judge: str, record: Mapping[str, Any]) -> tuple[Path, Journal]:
    """Where a second judge's scores of a finished experiment go, and what it has said so far."""
    place = folder / "rejudged" / content_key(judge)[:12]
    place.mkdir(parents=True, exist_ok=True)
    return place, Journal.open(place, record)


def finished_folder(experiments: Path, name: str) -> Path:
    """The folder of a finished experiment.

    Raises:
        RequestError: If there is none of this name.
    """
    there = sorted(path.parent.name for path in experiments.glob(f"*/{SUMMARY}"))
    if name not in there:
        raise RequestError(
            f"no finished experiment {name!r} in {experiments}; "
            f"there are {', '.join(there) or 'none'}"
        )
    return experiments / name


def kept_rows(folder: Path, row: type[Row]) -> tuple[Row, ...]:
    """The lines of one table of an experiment.

    Raises:
        RequestError: If it cannot be read.
    """
    path = folder / row.FILE  # type: ignore[attr-defined]
    try:
        return tuple(map(row.model_validate, pq.read_table(path).to_pylist()))
    except (ValidationError, OSError, ArrowException) as error:
        raise RequestError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error


def kept_summary(folder: Path, kind: type[Summary]) -> Summary:
    """The summary of an experiment.

    Raises:
        RequestError: If it cannot be read.
    """
    path = folder / SUMMARY
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as error:
        raise RequestError(f"{path} cannot be read: {first_problem(error)}") from error


def conclusion_of_two(
    kind: type[Conclusion], before: RateChange, after: RateChange, **about: str
) -> Conclusion:
    """The difference under one judge beside that under the other."""
    return kind(
        before=before.value,
        after=after.value,
        sign_before=before.sign,
        sign_after=after.sign,
        changed=before.sign != after.sign,
        **about,
    )


def agreed(pairs: Sequence[tuple[Hashable | None, Hashable | None]]) -> dict[str, Any]:
    """`both` and `agreement` of what two judges said about each text; None: nothing."""
    both = [(one, other) for one, other in pairs if one is not None and other is not None]
    same = sum(one == other for one, other in both)
    return {"both": len(both), "agreement": same / len(both) if both else None}
