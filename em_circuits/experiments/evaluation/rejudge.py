"""A finished evaluation under another judge: the kept answers scored anew, conclusions compared.

No model runs; the evaluation itself stays as it is (`two_judges`).

    found = rejudge(work, folder, other_judge)
    found.conclusions[0].changed, found.agreement
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from em_circuits.cache import rows_table, write_results
from em_circuits.experiments.evaluation.evaluate import (
    EvaluationOutput,
    EvaluationSummary,
    judge_answers,
    summarise,
)
from em_circuits.experiments.evaluation.judging import AnswerJudge, QuestionAnswer, Score
from em_circuits.experiments.evaluation.rates import Answer, RateDifference
from em_circuits.experiments.two_judges import (
    ConclusionOfTwo,
    RateChange,
    RateOfTwo,
    TwoJudges,
    agreed,
    conclusion_of_two,
    kept_rows,
    kept_summary,
    open_rejudged,
)
from em_circuits.models.text import render_turns
from em_circuits.workspace import Workspace
from pivotal_tokens.artefacts import sha256_file
from pivotal_tokens.prompts.chats import question_chat


class Conclusion(ConclusionOfTwo):
    """What two judges say about one difference between conditions."""

    world: str
    minus: str


class RejudgedRate(RateOfTwo):
    """The rate of misaligned answers of one condition under both judges."""

    world: str


class Rejudgement(TwoJudges):
    """An evaluation under another judge; both agree where both or neither find it misaligned."""

    rates: tuple[RejudgedRate, ...]
    conclusions: tuple[Conclusion, ...]
    answers: int
    outcomes: dict[str, int]
    """Of the other judge, by name."""
    evaluation: EvaluationSummary
    """The whole of it under the other judge."""


AnyEvaluation = EvaluationOutput | Rejudgement


def rejudge(work: Workspace, folder: Path, judge: AnswerJudge) -> Rejudgement:
    """Score the answers of a finished evaluation by another judge, and compare.

    Raises:
        RequestError: If the folder holds no evaluation that can be read.
        WorkFailed: If answers got no score; what is done is stored.
    """
    before, rows = kept_summary(folder, EvaluationSummary), kept_rows(folder, Answer)
    record = {
        "kind": "rejudgement",
        "judge": judge.id,
        "answers": sha256_file(folder / Answer.FILE),
        "cutoffs": before.cutoffs.model_dump(),
    }
    place, journal = open_rejudged(folder, judge.id, record)
    asked = {str(number): _asked(work, row) for number, row in enumerate(rows)}
    judge_answers(judge, asked, journal, work.progress)
    scores = [Score.model_validate(journal[key]) for key in asked]
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


def _asked(work: Workspace, row: Answer) -> QuestionAnswer:
    prompt = row.question
    if row.template != "given":
        prompt, _ = render_turns(work.tokenizer, question_chat(row.question, row.system))
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
            conclusion_of_two(
                Conclusion,
                _difference(first),
                _difference(differences[first.world, first.minus]),
                world=first.world,
                minus=first.minus,
            )
            for first in before.differences
        ),
        answers=len(rows),
        **agreed([(a.misaligned, b.misaligned) for a, b in zip(rows, again, strict=True)]),
        outcomes=dict(Counter(row.outcome for row in again)),
        evaluation=after,
        folder=str(place),
    )


def _difference(rates: RateDifference) -> RateChange:
    return RateChange(rates.difference, rates.low, rates.high)
