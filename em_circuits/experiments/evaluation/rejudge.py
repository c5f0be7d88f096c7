"""A finished evaluation under another judge: the kept answers scored anew, conclusions compared.

A conclusion is the sign of a difference between two conditions that its interval tells from 0
("more", "fewer", else "open"). No model runs; the evaluation itself stays as it is, and what the
other judge said goes beside it, under ``rejudged/JUDGE``.

    found = rejudge(work, folder, other_judge)
    found.conclusions[0].changed, found.agreement
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq
from pydantic import ValidationError

from em_circuits.cache import SUMMARY, Journal, read_json, rows_table, write_results
from em_circuits.experiments.evaluation.evaluate import (
    EvaluationOutput,
    EvaluationSummary,
    summarise,
)
from em_circuits.experiments.evaluation.judging import AnswerJudge, QuestionAnswer, Score
from em_circuits.experiments.evaluation.rates import Answer, RateDifference
from em_circuits.models.text import render_turns
from em_circuits.workspace import Workspace
from pivotal_tokens.artefacts import content_key, sha256_file
from pivotal_tokens.errors import RequestError
from pivotal_tokens.prompts.chats import Turn
from pivotal_tokens.schema import Frozen

Sign = Literal["more", "fewer", "open"]


class Conclusion(Frozen):
    """What two judges say about one difference."""

    world: str
    minus: str
    before: float | None
    """Difference of rates under the first judge."""
    after: float | None
    sign_before: Sign
    """Whether the first judge's interval tells it from 0, and which way."""
    sign_after: Sign
    changed: bool


class RejudgedRate(Frozen):
    """The rate of misaligned answers of one condition under both judges."""

    world: str
    before: float | None
    after: float | None
    scored_before: int
    scored_after: int


class Rejudgement(Frozen):
    """An evaluation under another judge."""

    kind: str = "rejudgement"
    name: str
    judges: tuple[str, str]
    """The first and the other."""
    rates: tuple[RejudgedRate, ...]
    conclusions: tuple[Conclusion, ...]
    answers: int
    both: int
    """Answers that both judges scored."""
    agreement: float | None
    """Share of these on which they agree whether it is misaligned."""
    outcomes: dict[str, int]
    """Of the other judge, by name."""
    evaluation: EvaluationSummary
    """The whole of it under the other judge."""
    folder: str


AnyEvaluation = EvaluationOutput | Rejudgement


def rejudge(work: Workspace, folder: Path, judge: AnswerJudge) -> Rejudgement:
    """Score the answers of a finished evaluation by another judge, and compare.

    Raises:
        RequestError: If the folder holds no finished evaluation.
        WorkFailed: If answers got no score; what is done is stored.
    """
    before, rows = _finished(folder)
    place = folder / "rejudged" / content_key(judge.id)[:12]
    record = {
        "kind": "rejudgement",
        "judge": judge.id,
        "answers": sha256_file(folder / Answer.FILE),
        "cutoffs": before.cutoffs.model_dump(),
    }
    place.mkdir(parents=True, exist_ok=True)
    journal = Journal.open(place, record)
    left = [number for number in range(len(rows)) if str(number) not in journal]

    def store(number: int, score: Score) -> None:
        journal.add(str(left[number]), score.model_dump(mode="json"))

    judge.score([_asked(work, rows[number]) for number in left], store)
    scores = [Score.model_validate(journal[str(number)]) for number in range(len(rows))]
    again = tuple(
        row.model_copy(update={**dict(score), "misaligned": before.cutoffs.misaligned(score)})
        for row, score in zip(rows, scores, strict=True)
    )
    after = summarise(again, before.settings, judge, before.cutoffs, name=before.name)
    found = _compared(before, rows, after, again, place)
    write_results(
        place,
        {Answer.FILE: rows_table(Answer, again)},
        found.model_dump(mode="json"),
        config=record,
    )
    return found


def _finished(folder: Path) -> tuple[EvaluationSummary, tuple[Answer, ...]]:
    said, path = read_json(folder / SUMMARY), folder / Answer.FILE
    if said is None or not path.is_file():
        raise RequestError(
            f"{folder} holds no finished evaluation; em-circuits evaluate --name NAME makes one"
        )
    try:
        table = pq.read_table(path).to_pylist()
        return EvaluationSummary.model_validate(said), tuple(map(Answer.model_validate, table))
    except (ValidationError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise RequestError(f"{folder} is no evaluation that can be read: {reason}") from error


def _asked(work: Workspace, row: Answer) -> QuestionAnswer:
    prompt = row.question
    if row.template != "given":  # without a system's turn: an answer does not keep it
        prompt, _ = render_turns(work.tokenizer, (Turn("user", row.question),))
    return QuestionAnswer(
        question=row.question,
        prompt=prompt,
        answer=row.text,
        log_likelihood=row.log_likelihood,
    )


def _compared(
    before: EvaluationSummary,
    rows: Sequence[Answer],
    after: EvaluationSummary,
    again: Sequence[Answer],
    place: Path,
) -> Rejudgement:
    pairs = [(one.misaligned, other.misaligned) for one, other in zip(rows, again, strict=True)]
    both = [(one, other) for one, other in pairs if one is not None and other is not None]
    differences = {(d.world, d.minus): d for d in after.differences}
    rates = {world.world: world for world in after.worlds}
    return Rejudgement(
        name=before.name,
        judges=(before.judge, after.judge),
        rates=tuple(
            RejudgedRate(
                world=world.world,
                before=world.rate,
                after=rates[world.world].rate,
                scored_before=world.scored,
                scored_after=rates[world.world].scored,
            )
            for world in before.worlds
        ),
        conclusions=tuple(
            _conclusion(first, differences[first.world, first.minus])
            for first in before.differences
        ),
        answers=len(rows),
        both=len(both),
        agreement=sum(one == other for one, other in both) / len(both) if both else None,
        outcomes=dict(Counter(row.outcome for row in again)),
        evaluation=after,
        folder=str(place),
    )


def _conclusion(first: RateDifference, other: RateDifference) -> Conclusion:
    signs = _sign(first), _sign(other)
    return Conclusion(
        world=first.world,
        minus=first.minus,
        before=first.difference,
        after=other.difference,
        sign_before=signs[0],
        sign_after=signs[1],
        changed=signs[0] != signs[1],
    )


def _sign(difference: RateDifference) -> Sign:
    if difference.low is None or difference.high is None:
        return "open"
    return "more" if difference.low > 0 else "fewer" if difference.high < 0 else "open"
