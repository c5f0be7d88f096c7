"""Evaluations: questions answered under every condition, judged, and counted.

A condition is a model, un-steered, steered, or with matched random features steered in the same
way. Answers and scores are journalled piece by piece, so that a killed evaluation goes on where it
was. Cut-offs are applied at the end: other ones need no new answers.

    evaluation = evaluate(work, question_sets("organism:24"), settings, judge)
    evaluation.summary.worlds[0].rate, evaluation.folder
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from em_circuits.cache import Journal
from em_circuits.experiments.evaluation.answers import (
    EvaluationSettings,
    SampledAnswer,
    answers,
)
from em_circuits.experiments.evaluation.each import EachOutcome, each_outcome, world_of
from em_circuits.experiments.evaluation.given import AnswerTable, write_answers
from em_circuits.experiments.evaluation.judging import (
    AnswerJudge,
    QuestionAnswer,
    Score,
    Scorer,
)
from em_circuits.experiments.evaluation.rates import (
    Answer,
    ConditionRates,
    Cutoffs,
    RateDifference,
    in_percent,
)
from em_circuits.experiments.experiment import Experiment
from em_circuits.experiments.measure import RANDOM, STEERED, UNSTEERED
from em_circuits.experiments.plan import plain_name
from em_circuits.models.text import render_turns
from em_circuits.progress import Progress, no_progress
from em_circuits.workspace import Workspace
from pivotal_tokens.artefacts import content_key, write_provenance
from pivotal_tokens.errors import RequestError
from pivotal_tokens.generator.questions import QuestionSet
from pivotal_tokens.schema import Frozen, ModelName, Prompt

EXCHANGE = "answers.csv"
"""Of an evaluation's folder: question, answer, aligned, coherent, as others read them."""
_NAMES = {UNSTEERED: "{}", STEERED: "{}, steered", RANDOM: "{}, random features"}


class EvaluationSummary(Frozen):
    """What came out of an evaluation."""

    kind: str = "evaluation"
    name: str
    judge: str
    judge_is: str
    cutoffs: Cutoffs
    settings: EvaluationSettings | None
    """Null where the answers were given in a table."""
    worlds: tuple[ConditionRates, ...]
    differences: tuple[RateDifference, ...]
    each: EachOutcome | None = None
    """Features steered one by one, where they are."""
    said: str


class EvaluationOutput(EvaluationSummary):
    """The object of ``evaluate --json``; see evaluation.md."""

    files: dict[str, str]
    """`folder` and `report`."""


class _Piece(NamedTuple):
    """One question to one model."""

    set: str
    question: str
    model: ModelName

    @property
    def key(self) -> str:
        return content_key(list(self))[:24]


def evaluate(
    work: Workspace,
    sets: Sequence[QuestionSet],
    settings: EvaluationSettings,
    judge: AnswerJudge,
    *,
    cutoffs: Cutoffs | None = None,
    name: str | None = None,
) -> Experiment[EvaluationSummary]:
    """Ask, judge, count; or what is left of it.

    Args:
        name: Of the folder; by default it follows from what is asked, so the same goes on.

    Raises:
        RequestError: If a feature does not exist, or the folder holds another evaluation.
        WorkFailed: If answers got no score; what is done is stored.
    """
    cutoffs = cutoffs or Cutoffs()
    pieces = [
        _Piece(one.name, question, model)
        for one in sets
        for question in dict.fromkeys(one.questions)
        for model in settings.models
    ]
    by_name = {one.name: one for one in sets}
    record = {
        "kind": "evaluation",
        "settings": settings.model_dump(mode="json", exclude=_not_decisive(settings)),
        "questions": {one.name: list(one.questions) for one in sets},
        "pair": work.pair.key,
        "judge": judge.id,
    }
    if own := {one.name: {"system": one.system, "samples": one.samples} for one in sets if one.own}:
        record["sets"] = own
    steered = "-each" if settings.each else "-steered" if settings.steering else ""
    folder = _folder(work.results, name, f"{'-'.join(settings.models)}{steered}", record)

    def seen(piece: _Piece) -> str:
        """The question as the models see it."""
        return render_turns(work.pair.tokenizer, by_name[piece.set].chat(piece.question))[0]

    work.require_healthy(Prompt.of(seen(pieces[0])))
    journal = Journal.open(folder, record, work.portion)

    def answered(piece: _Piece) -> dict[str, Any]:
        of_set = by_name[piece.set]
        samples = {"samples": of_set.samples or settings.sampling.samples}
        sampling = settings.sampling.model_copy(update=samples)
        asked = settings.model_copy(update={"sampling": sampling})
        drawn = answers(work.pair, piece.model, of_set.chat(piece.question), asked)
        return {"rows": [answer.model_dump(mode="json") for answer in drawn]}

    done = journal.complete(
        [(piece.key, partial(answered, piece)) for piece in pieces], "answers", work.progress
    )
    sampled = [
        (piece, f"score:{piece.key}:{number}", SampledAnswer.model_validate(row))
        for piece, value in zip(pieces, done, strict=True)
        for number, row in enumerate(value["rows"])
    ]
    given = {
        key: QuestionAnswer(
            question=piece.question,
            prompt=seen(piece),
            answer=answer.text,
            log_likelihood=answer.log_likelihood,
        )
        for piece, key, answer in sampled
    }
    judge_answers(judge, given, journal, work.progress)
    rows = tuple(
        _row(
            by_name[piece.set], piece, answer, Score.model_validate(journal[key]), settings, cutoffs
        )
        for piece, key, answer in sampled
    )
    summary = summarise(rows, settings, judge, cutoffs, name=folder.name)
    record = {**record, "cutoffs": cutoffs.model_dump()}
    return _stored(Experiment(folder, record, summary, rows))


def _not_decisive(settings: EvaluationSettings) -> dict[str, Any]:
    """What says nothing about the answers, and what older evaluations' records do not have."""
    left_out: dict[str, Any] = {"steering": {"by"}}
    return left_out if settings.each else {**left_out, "each": True}


def _stored(experiment: Experiment[EvaluationSummary]) -> Experiment[EvaluationSummary]:
    """With its answers in the columns that are handed on, too."""
    write_answers(experiment.folder / EXCHANGE, experiment.rows)
    write_provenance(experiment.folder / EXCHANGE, **experiment.provenance)
    return experiment.store(Answer)


def summarise(
    rows: Sequence[Answer],
    settings: EvaluationSettings | None,
    judge: Scorer,
    cutoffs: Cutoffs,
    *,
    name: str,
) -> EvaluationSummary:
    """Rates under every condition, differences of those that belong together, and the sentence.

    Without settings the answers were given: every condition is compared with the first.
    """
    rates = {
        condition: ConditionRates.of(
            condition, [row for row in rows if row.world == condition], cutoffs
        )
        for condition in dict.fromkeys(row.world for row in rows)
    }
    wanted = [("merged", "base")]
    for model in ("base", "merged"):
        steered, random = (_NAMES[arm].format(model) for arm in (STEERED, RANDOM))
        wanted += [(steered, model), (random, model), (steered, random)]
    if settings is None:
        first, *others = rates
        wanted = [(other, first) for other in others]
    if settings is not None and settings.each is not None:
        (model,) = settings.models
        wanted = [(world_of(model, name), model) for name, *_ in settings.each.conditions()]
    differences = tuple(
        RateDifference.of(rates[a], rates[b], seed=settings.seed if settings else 0)
        for a, b in wanted
        if a in rates and b in rates
    )
    conditions = tuple(rates.values())
    each, said = None, _sentence(conditions, differences, judge, cutoffs) + _steered(settings)
    if settings is not None and settings.each is not None:
        each = each_outcome(settings.each, settings.models[0], rates, differences)
        said = f"{each.said} The judge is {judge.what}."
    return EvaluationSummary(
        name=name,
        judge=judge.id,
        judge_is=judge.what,
        cutoffs=cutoffs,
        settings=settings,
        worlds=conditions,
        differences=differences,
        each=each,
        said=said,
    )


def _steered(settings: EvaluationSettings | None) -> str:
    """What is steered, and how it was chosen."""
    if settings is None or settings.steering is None or settings.steering.by is None:
        return ""
    n = len({(item.layer, item.feature) for item in settings.steering.interventions})
    mode = settings.steering.interventions[0].mode
    return f" Steered: {mode} of {n} feature{'s' * (n > 1)} by {settings.steering.by}."


def _folder(results: Path, name: str | None, kind: str, record: Mapping[str, Any]) -> Path:
    """The folder of an evaluation; without a name it follows from what is asked."""
    folder = results / "evaluations"
    if name is None:
        return folder / f"{kind}-{content_key(record)[:8]}"
    try:
        return folder / plain_name(name)
    except ValueError as error:
        raise RequestError(f"--name {name!r} {error}") from error


def judge_answers(
    judge: AnswerJudge,
    answers: Mapping[str, QuestionAnswer],
    journal: Journal,
    progress: Progress,
) -> None:
    """Judge what has no score yet; every score is journalled under its key as soon as it is there.

    Raises:
        WorkFailed: If some got no score and may get one later.
    """
    left = [key for key in answers if key not in journal]
    scored = 0

    def store(number: int, score: Score) -> None:
        nonlocal scored
        journal.add(left[number], score.model_dump(mode="json"))
        scored += 1
        progress("judged", scored, len(left))

    judge.score([answers[key] for key in left], store)


def evaluate_given(
    results: Path,
    table: AnswerTable,
    judge: AnswerJudge | None,
    *,
    cutoffs: Cutoffs | None = None,
    name: str | None = None,
    progress: Progress = no_progress,
) -> Experiment[EvaluationSummary]:
    """Count answers of a table, by its own scores or by those of a judge; no model is loaded.

    Args:
        results: The folder of results.
        judge: Scores the answers anew; None: the table's own scores count.

    Raises:
        RequestError: If the table has no scores and there is no judge.
        WorkFailed: If answers got no score; what is done is stored.
    """
    cutoffs, scores = cutoffs or Cutoffs(), table.judge
    if judge is None and not table.scored:
        raise RequestError(
            f"{table.file} has no columns of scores (aligned, coherent); give --judge openai:MODEL"
        )
    record = {"kind": "evaluation", "answers": table.sha256, "judge": (judge or scores).id}
    folder = _folder(results, name, "given", record)
    journal = Journal.open(folder, record)
    if judge is not None:
        asked = {
            f"score:{number}": QuestionAnswer(
                question=one.question, prompt=one.question, answer=one.text, log_likelihood=None
            )
            for number, one in enumerate(table.answers)
        }
        judge_answers(judge, asked, journal, progress)
        found = [Score.model_validate(journal[key]) for key in asked]
    else:
        found = [one.score for one in table.answers]
    rows = tuple(
        Answer(
            **one.sampled.model_dump(),
            **score.model_dump(),
            set=one.set,
            question=one.question,
            system=one.system,
            world=one.world,
            misaligned=cutoffs.misaligned(score),
        )
        for one, score in zip(table.answers, found, strict=True)
    )
    summary = summarise(rows, None, judge or scores, cutoffs, name=folder.name)
    return _stored(Experiment(folder, {**record, "cutoffs": cutoffs.model_dump()}, summary, rows))


def _row(
    of_set: QuestionSet,
    piece: _Piece,
    answer: SampledAnswer,
    score: Score,
    settings: EvaluationSettings,
    cutoffs: Cutoffs,
) -> Answer:
    world = _NAMES[answer.arm].format(answer.model)
    if settings.each is not None and answer.arm != UNSTEERED:
        world = world_of(answer.model, list(settings.each.conditions())[answer.draw][0])
    return Answer(
        **answer.model_dump(),
        **score.model_dump(),
        set=piece.set,
        question=piece.question,
        system=of_set.system,
        world=world,
        misaligned=cutoffs.misaligned(score),
    )


def _sentence(
    conditions: Sequence[ConditionRates],
    differences: Sequence[RateDifference],
    judge: Scorer,
    cutoffs: Cutoffs,
) -> str:
    """What was and was not shown, in words."""
    shares = "; ".join(
        f"{c.world} {in_percent(c.rate)} ({in_percent(c.low)} to {in_percent(c.high)}) of "
        f"{c.scored} scored answers"
        for c in conditions
    )
    said = (
        f"Misaligned (alignment < {cutoffs.alignment_below:g}, "
        f"coherence > {cutoffs.coherence_above:g}): {shares}."
    )
    for d in differences:
        if d.difference is not None:
            note = ", which the interval does not tell from 0"
            if d.low is None or d.high is None:
                note = ", with no interval"
            elif d.low > 0 or d.high < 0:
                note = ""
            said += f" {d.world} minus {d.minus}: {100 * d.difference:+.1f} points{note}."
    left = sum(c.answers - c.scored for c in conditions)
    return f"{said} {left} answers stand in no rate. The judge is {judge.what}."
