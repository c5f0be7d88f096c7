"""Tables of answers that were given, and mostly judged, elsewhere.

A CSV, JSONL, Parquet or Arrow file with an answer a row, in the columns of published evaluations of
emergent misalignment:

    question, answer            needed
    aligned, coherent           scores from 0 to 100 (or `alignment`, `coherence`); both or none
    question_id                 the set that the question is of (or `id`, `set`)
    model                       who answered, a condition each (or `world`)
    system                      the system's turn before the question

A score that is empty, or a word, is no number: REFUSAL means that the model declined, anything else
that the judgement cannot be used; neither counts in a rate.

What `evaluate` keeps (``answers.parquet`` in the folder of an evaluation) is such a table too, in
columns of its own; its conditions are the evaluation's.

    table = read_answers(Path("answers.csv"))
    table.answers[0].score.alignment, table.left_out
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from em_circuits.experiments.evaluation.answers import SampledAnswer
from em_circuits.experiments.evaluation.judging import Score
from em_circuits.experiments.evaluation.rates import Answer
from em_circuits.experiments.measure import UNSTEERED
from pivotal_tokens.artefacts import sha256_file, write_atomic
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen, first_problem
from pivotal_tokens.table_files import (
    COLUMN_FILES,
    BadRow,
    LeftOut,
    Row,
    column_rows,
    csv_rows,
    jsonl_rows,
)

_ALIGNMENT, _COHERENCE = ("aligned", "alignment"), ("coherent", "coherence")
_SET, _WORLD = ("question_id", "id", "set"), ("model", "world")
_REFUSAL = "REFUSAL"
_KEPT = frozenset({"text", "world", "outcome", "arm"})
"""Columns by which what an evaluation kept is known."""


class GivenAnswer(Frozen):
    """One row of a table."""

    where: str
    """Its line, or row."""
    set: str
    question: str
    system: str | None = None
    """The system's turn before the question."""
    world: str
    sampled: SampledAnswer
    score: Score
    """The table's own."""

    @property
    def text(self) -> str:
        """The answer."""
        return self.sampled.text


@dataclass(frozen=True)
class TableScores:
    """Whoever scored the answers of a table."""

    file: str
    sha256: str

    @property
    def id(self) -> str:
        return f"file:{self.file}@{self.sha256[:8]}"

    @property
    def what(self) -> str:
        return f"whoever scored the answers in {self.file}"


@dataclass(frozen=True)
class AnswerTable:
    """The answers of a file; its rows are these and those left out."""

    file: str
    sha256: str
    answers: tuple[GivenAnswer, ...]
    left_out: tuple[LeftOut, ...]
    ignored: tuple[str, ...]
    """Columns that are binary."""

    @property
    def judge(self) -> TableScores:
        """Who gave its scores."""
        return TableScores(self.file, self.sha256)

    @property
    def scored(self) -> bool:
        """Whether it has scores at all."""
        return any(one.score.outcome != "unusable" for one in self.answers)

    @property
    def of_units(self) -> bool:
        """Whether its scores look like shares: there are some, and none is above 1."""
        scored = [one.score for one in self.answers if one.score.outcome == "scored"]
        return bool(scored) and all(
            max(one.alignment or 0.0, one.coherence or 0.0) <= 1 for one in scored
        )


def read_answers(path: Path) -> AnswerTable:
    """Read a table of answers.

    Raises:
        RequestError: If it cannot be read, has two columns for one fact, or no row can be used.
    """
    if not path.is_file():
        raise RequestError(f"no file {path}")
    rows, ignored = _rows(path)
    answers, left_out = [], []
    samples: Counter[tuple[str, str, str]] = Counter()
    for where, value in rows:
        try:
            answers.append(_answer(where, value, path.stem, samples))
        except ValueError as error:
            left_out.append(LeftOut(where=f"{path}, {where}", why=str(error)))
    if not answers:
        first = f": {left_out[0].where}: {left_out[0].why}" if left_out else ": it has no rows"
        raise RequestError(f"{path} holds no answer that can be used{first}")
    return AnswerTable(path.name, sha256_file(path), tuple(answers), tuple(left_out), ignored)


def write_answers(path: Path, rows: Sequence[Answer]) -> None:
    """Write answers as CSV, in the columns above; `read_answers` reads them back."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("question", "answer", "aligned", "coherent", "question_id", "model", "system"))
    for row in rows:
        aligned = {"scored": row.alignment, "declined": _REFUSAL}.get(row.outcome)
        scores = (aligned, None if aligned is None else row.coherence)
        writer.writerow((row.question, row.text, *scores, row.set, row.world, row.system))
    write_atomic(path, out.getvalue())


def _rows(path: Path) -> tuple[Iterator[Row], tuple[str, ...]]:
    match path.suffix:
        case ".csv":
            return csv_rows(path), ()
        case ".jsonl":
            return jsonl_rows(path), ()
        case ending if ending in COLUMN_FILES:
            table = column_rows(path)
            return table.rows, table.ignored
    raise RequestError(f"{path}: give it the ending .csv, .jsonl, .parquet or .arrow")


def _answer(
    where: str, value: Any, default_world: str, samples: Counter[tuple[str, str, str]]
) -> GivenAnswer:
    """The answer of a row; its sample is the number of those before it.

    Raises:
        ValueError: If the row is none.
        RequestError: If one fact has two columns.
    """
    if isinstance(value, BadRow):
        raise ValueError(value.why)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    if value.keys() >= _KEPT:
        return _kept(where, value)
    question, text = _needed(value, "question"), _needed(value, "answer")
    world = _text(value, _WORLD) or default_world
    of_set = _text(value, _SET) or "given"
    score = _score(value)
    key = (world, of_set, question)
    sampled = SampledAnswer(
        model=world,
        arm=UNSTEERED,
        draw=0,
        sample=samples[key],
        template="given",
        text=text,
        n_tokens=None,
        ended=None,
        log_likelihood=None,
    )
    samples[key] += 1
    return GivenAnswer(
        where=where,
        set=of_set,
        question=question,
        system=_text(value, ("system",)),
        world=world,
        sampled=sampled,
        score=score,
    )


def _kept(where: str, value: Mapping[str, Any]) -> GivenAnswer:
    """A row that `evaluate` kept.

    Raises:
        ValueError: If it is another version's.
    """
    try:
        row = Answer.model_validate(value)
    except ValidationError as error:
        raise ValueError(f"no answer that an evaluation kept: {first_problem(error)}") from error
    if not row.text.strip():
        raise ValueError("the answer is empty")
    return GivenAnswer(
        where=where,
        **{name: getattr(row, name) for name in ("set", "question", "system", "world")},
        sampled=SampledAnswer.model_validate(
            row.model_dump(include=set(SampledAnswer.model_fields))
        ),
        score=Score.model_validate(row.model_dump(include=set(Score.model_fields))),
    )


def _needed(value: Mapping[str, Any], name: str) -> str:
    """The text of a column that every row has.

    Raises:
        ValueError: If there is no such column, or nothing in it.
    """
    if name not in value:
        raise ValueError(f"no column {name} among {', '.join(value)}"[:200])
    if (text := _text(value, (name,))) is None:
        raise ValueError(f"no {name}")
    return text


def _one_of(value: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The value under one of some names.

    Raises:
        RequestError: If there are two such columns.
    """
    found = [name for name in names if name in value]
    if len(found) > 1:
        raise RequestError(f"{' and '.join(found)} are columns for one fact; keep one of them")
    return value[found[0]] if found else None


def _text(value: Mapping[str, Any], names: Sequence[str]) -> str | None:
    found = _one_of(value, names)
    if found is None:
        return None
    text = str(found)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{names[0]} is not valid Unicode") from error
    return text if text.strip() else None


def _score(value: Mapping[str, Any]) -> Score:
    alignment, coherence = _one_of(value, _ALIGNMENT), _one_of(value, _COHERENCE)
    if str(alignment).strip().upper() == _REFUSAL:
        return Score(outcome="declined", reason="the table says so")
    numbers = (_grade(_ALIGNMENT[0], alignment), _grade(_COHERENCE[0], coherence))
    if None in numbers:
        return Score(
            outcome="unusable", reason=f"aligned {alignment!a:.40}, coherent {coherence!a:.40}"
        )
    return Score(outcome="scored", alignment=numbers[0], coherence=numbers[1])


def _grade(name: str, value: Any) -> float | None:
    """A score from 0 to 100; None of what is no number.

    Raises:
        ValueError: If it is a number beyond.
    """
    if value is None or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    if math.isnan(number):
        return None
    if not 0 <= number <= 100:
        raise ValueError(f"{name} is {number:g}, not from 0 to 100")
    return number
