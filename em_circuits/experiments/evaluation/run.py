"""Is it misaligned at all?

Questions are answered by every world, then the answers are judged; both are journalled piece by
piece, so that a killed evaluation goes on where it was. Cut-offs are applied at the end: other ones
need no new answers.

    made = evaluate(work, question_sets("organism:24"), settings, judge)
    made.summary["worlds"][0]["rate"], made.folder
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_circuits.experiments.evaluation.answers import RANDOM, STEERED, UNSTEERED, answers, rendered
from em_circuits.experiments.evaluation.judging import AnswerJudge, Asked, Score
from em_circuits.experiments.evaluation.rates import Cutoffs, difference, question_line, world_line
from em_circuits.experiments.evaluation.records import keep
from em_circuits.experiments.evaluation.settings import EvaluationSettings
from em_circuits.experiments.journal import Journal
from em_circuits.experiments.plan import plain_name
from em_circuits.progress import tracked
from em_circuits.workspace import Workspace
from pivotal_tokens.artefacts import content_key
from pivotal_tokens.errors import RequestError
from pivotal_tokens.generator.questions import QuestionSet
from pivotal_tokens.schema import ModelName, Prompt


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation."""

    folder: Path
    summary: dict[str, Any]
    rows: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class _Piece:
    """One question to one model."""

    set: str
    question: str
    model: ModelName

    @property
    def key(self) -> str:
        return content_key([self.set, self.question, self.model])[:24]


def evaluate(
    work: Workspace,
    sets: Sequence[QuestionSet],
    settings: EvaluationSettings,
    judge: AnswerJudge,
    *,
    cutoffs: Cutoffs | None = None,
    name: str | None = None,
) -> Evaluation:
    """Ask, judge, count; or what is left of it.

    Args:
        work: Its models answer; the store is not needed unless the judge needs it.
        sets: The questions.
        settings: Worlds and sampling.
        judge: Of the answers.
        cutoffs: Where misaligned begins.
        name: Of the folder; by default it follows from what is asked, so the same goes on.

    Raises:
        RequestError: If a feature does not exist, or the folder holds another evaluation.
        WorkFailed: If answers got no score; what is done is kept.
    """
    cutoffs = cutoffs or Cutoffs()
    pieces = [
        _Piece(one.name, question, model)
        for one in sets
        for question in dict.fromkeys(one.questions)
        for model in settings.models
    ]
    record = _record(work, sets, settings, judge)
    folder = work.results / "evaluations" / _folder(name, settings, record)
    work.require_healthy(Prompt.of(rendered(work.pair, pieces[0].question)[0]))
    journal = Journal.open(folder, record)
    for number in tracked(range(len(pieces)), "answers", work.progress):
        piece = pieces[number]
        if piece.key not in journal:
            said = answers(work.pair, piece.model, piece.question, settings)
            journal.add(piece.key, {"rows": said})
    found = _answered(pieces, journal)
    _judge(work, judge, found, journal)
    rows = tuple(_row(key, row, journal, cutoffs) for key, row in found)
    summary = summarise(rows, settings, judge, cutoffs) | {"name": folder.name}
    keep(folder, record, rows=rows, summary=summary)
    return Evaluation(folder, summary, rows)


def summarise(
    rows: Sequence[dict[str, Any]],
    settings: EvaluationSettings,
    judge: AnswerJudge,
    cutoffs: Cutoffs,
) -> dict[str, Any]:
    """The object of `evaluate --json`, without its files."""
    worlds = []
    for world in dict.fromkeys(row["world"] for row in rows):
        mine = [row for row in rows if row["world"] == world]
        asked = dict.fromkeys((row["set"], row["question"]) for row in mine)
        lines = [
            question_line([r for r in mine if (r["set"], r["question"]) == q], cutoffs)
            for q in asked
        ]
        worlds.append(world_line(world, lines, mine))
    pairs = _compared([world["world"] for world in worlds])
    by_name = {world["world"]: world for world in worlds}
    differences = [difference(by_name[a], by_name[b], seed=settings.seed) for a, b in pairs]
    return {
        "kind": "evaluation",
        "judge": judge.id,
        "judge_is": judge.what,
        "cutoffs": cutoffs.model_dump(),
        "settings": settings.model_dump(mode="json"),
        "worlds": worlds,
        "differences": differences,
        "said": _said(worlds, differences, judge, cutoffs),
    }


def _record(
    work: Workspace, sets: Sequence[QuestionSet], settings: EvaluationSettings, judge: AnswerJudge
) -> dict[str, Any]:
    return {
        "kind": "evaluation",
        "settings": settings.model_dump(mode="json"),
        "questions": {one.name: list(one.questions) for one in sets},
        "pair": work.pair.key,
        "judge": judge.id,
    }


def _folder(name: str | None, settings: EvaluationSettings, record: dict[str, Any]) -> str:
    if name is None:
        steered = "-steered" if settings.steering else ""
        return f"{'-'.join(settings.models)}{steered}-{content_key(record)[:8]}"
    try:
        return plain_name(name)
    except ValueError as error:
        raise RequestError(f"--name {name!r} {error}") from error


def _answered(
    pieces: Sequence[_Piece], journal: Journal
) -> list[tuple[tuple[_Piece, int], dict[str, Any]]]:
    """Every answer under its piece and number."""
    return [
        ((piece, number), row)
        for piece in pieces
        for value in journal.values([piece.key])
        for number, row in enumerate(value["rows"])
    ]


def _score_key(place: tuple[_Piece, int]) -> str:
    return f"score:{place[0].key}:{place[1]}"


def _judge(
    work: Workspace,
    judge: AnswerJudge,
    found: Sequence[tuple[tuple[_Piece, int], dict[str, Any]]],
    journal: Journal,
) -> None:
    """Judge what has no score yet; every score is kept as soon as it is there."""
    left = [(place, row) for place, row in found if _score_key(place) not in journal]
    scored = 0

    def keep_score(number: int, score: Score) -> None:
        nonlocal scored
        journal.add(_score_key(left[number][0]), score.model_dump(mode="json"))
        scored += 1
        work.progress("judged", scored, len(left))

    asked = [
        Asked(
            question=piece.question,
            prompt=rendered(work.pair, piece.question)[0],
            answer=row["text"],
            log_likelihood=row["log_likelihood"],
        )
        for (piece, _), row in left
    ]
    judge.score(asked, keep_score)


def _row(
    place: tuple[_Piece, int], row: dict[str, Any], journal: Journal, cutoffs: Cutoffs
) -> dict[str, Any]:
    piece, _ = place
    (score,) = journal.values([_score_key(place)])
    whole = {
        "set": piece.set,
        "question": piece.question,
        "world": _world(row["model"], row["arm"]),
        **row,
        **score,
    }
    return whole | {"misaligned": cutoffs.misaligned(whole)}


def _world(model: str, arm: str) -> str:
    return {UNSTEERED: model, STEERED: f"{model}, steered", RANDOM: f"{model}, random features"}[
        arm
    ]


def _compared(worlds: Sequence[str]) -> list[tuple[str, str]]:
    """Which worlds are set beside which: merged and base, steered and its controls."""
    wanted = [("merged", "base")]
    for model in ("base", "merged"):
        steered, random = _world(model, STEERED), _world(model, RANDOM)
        wanted += [(steered, model), (random, model), (steered, random)]
    return [(a, b) for a, b in wanted if a in worlds and b in worlds]


def _said(
    worlds: Sequence[dict[str, Any]],
    differences: Sequence[dict[str, Any]],
    judge: AnswerJudge,
    cutoffs: Cutoffs,
) -> str:
    """What was and was not shown, in words."""
    shares = "; ".join(
        f"{w['world']} {_percent(w['rate'])} ({_percent(w['low'])} to {_percent(w['high'])}) of "
        f"{w['scored']} scored answers"
        for w in worlds
    )
    said = (
        f"Misaligned (alignment < {cutoffs.alignment_below:g}, "
        f"coherence > {cutoffs.coherence_above:g}): {shares}."
    )
    for d in differences:
        if d["difference"] is not None:
            low, high = d["low"], d["high"]
            unsure = "which the interval does not tell from 0"
            note = "with no interval" if low is None else "" if low > 0 or high < 0 else unsure
            said += (
                f" {d['world']} minus {d['minus']}: {100 * d['difference']:+.1f} points"
                f"{', ' if note else ''}{note}."
            )
    left = sum(w["answers"] - w["scored"] for w in worlds)
    return f"{said} {left} answers stand in no rate. The judge is {judge.what}."


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
