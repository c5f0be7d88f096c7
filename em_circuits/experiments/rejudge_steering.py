"""A finished sweep or transfer under another judge of continuations: rates and conclusions.

The kept texts are read anew, prompt by prompt, and every figure that rests on labels of texts is
counted again; evil mass, contrast and verdicts rest on labels of tokens and stay. A conclusion is
the sign of a condition's change of the evil rate, steered minus un-steered, paired by prompt
(`two_judges`). Experiments before 2026-11-30 kept no texts of forced tokens: there the rate of
these stands in no rejudged figure.

    found = rejudge_steering(folder, judge, progress)
    found.conclusions[0].changed, found.agreement
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from em_circuits.cache import PLAN, rows_table, write_results
from em_circuits.experiments.experiment import Measurement, RolloutRow
from em_circuits.experiments.measure import FORCED, RANDOM, STEERED, UNSTEERED
from em_circuits.experiments.rollouts import share
from em_circuits.experiments.summary import ConditionSummary, SteeringSummary, conditions
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
from em_circuits.progress import Progress
from pivotal_tokens.artefacts import sha256_file
from pivotal_tokens.errors import RequestError
from pivotal_tokens.judge.continuations import ContinuationJudge
from pivotal_tokens.schema import Continuation, ContinuationLabel, Prompt


class SteeringConclusion(ConclusionOfTwo):
    """What two judges say about the change of one condition's evil rate."""

    condition: str


class RejudgedArm(RateOfTwo):
    """The rate of evil continuations of one arm of a condition under both judges."""

    condition: str
    control: str


class SteeringRejudgement(TwoJudges):
    """A sweep or transfer under another judge; both agree where a text has one label."""

    rates: tuple[RejudgedArm, ...]
    conclusions: tuple[SteeringConclusion, ...]
    texts: int
    labels: dict[str, int]
    """Of the other judge; `unscored` are those that it could not label."""
    conditions: tuple[ConditionSummary, ...]
    """All of them under the other judge."""


def rejudge_steering(
    folder: Path, judge: ContinuationJudge, progress: Progress
) -> SteeringRejudgement:
    """Have another judge read the texts of a finished experiment, and compare.

    Raises:
        RequestError: If it holds no texts, or cannot be read.
        WorkFailed: If texts got no label and may get one later; what is done is stored.
    """
    before, texts = kept_summary(folder, SteeringSummary), kept_rows(folder, RolloutRow)
    rows = kept_rows(folder, Measurement)
    if not texts:
        raise RequestError(
            f"{folder} kept next tokens alone, nothing that a judge could read: "
            "run it with rollouts, under another name"
        )
    record = {
        "kind": "rejudgement",
        "judge": judge.id,
        "texts": sha256_file(folder / RolloutRow.FILE),
    }
    place, journal = open_rejudged(folder, judge.id, record)
    by_prompt: dict[str, list[RolloutRow]] = {}
    for text in texts:
        by_prompt.setdefault(text.prompt_id, []).append(text)
    prompts = {line.prompt_id: Prompt.of(line.text) for line in before.prompts}

    def read(prompt_id: str) -> dict[str, Any]:
        said = [_continuation(text) for text in by_prompt[prompt_id]]
        return {"labels": judge.label(prompts[prompt_id], said)}

    done = journal.complete(
        [(prompt_id, partial(read, prompt_id)) for prompt_id in by_prompt],
        before.name,
        progress,
    )
    again = tuple(
        text.model_copy(update=ContinuationLabel(*label)._asdict())
        for mine, said in zip(by_prompt.values(), done, strict=True)
        for text, label in zip(mine, said["labels"], strict=True)
    )
    measured = _counted_again(rows, again)
    detectors = {line.condition: line.detector for line in before.conditions}
    after = conditions(measured, detectors, seed=_seed(folder))
    labels = zip((text for mine in by_prompt.values() for text in mine), again, strict=True)
    found = SteeringRejudgement(
        name=before.name,
        judges=(before.judge, judge.id),
        rates=tuple(_rates(rows, measured, _scored(texts), _scored(again))),
        conclusions=tuple(
            conclusion_of_two(
                SteeringConclusion, _change(one), _change(other), condition=one.condition
            )
            for one, other in zip(before.conditions, after, strict=True)
        ),
        texts=len(again),
        **agreed([(one.label, other.label) for one, other in labels]),
        labels=dict(Counter(text.label or "unscored" for text in again)),
        conditions=after,
        folder=str(place),
    )
    tables = {
        Measurement.FILE: rows_table(Measurement, measured),
        RolloutRow.FILE: rows_table(RolloutRow, again),
    }
    write_results(place, tables, found.model_dump(mode="json"), config=record)
    return found


def _continuation(row: RolloutRow) -> Continuation:
    """A kept text as the first judge read it: its first token apart, to the end of the line."""
    token = row.token or ""
    return Continuation(token=token, text=row.text.removeprefix(token).split("\n", 1)[0])


def _seed(folder: Path) -> int:
    """Of an experiment's intervals, so that what rests on no text comes out the same.

    Raises:
        RequestError: If its plan cannot be read.
    """
    path = folder / PLAN
    try:
        return int(yaml.safe_load(path.read_text(encoding="utf-8"))["plan"]["seed"])
    except (OSError, yaml.YAMLError, UnicodeDecodeError, LookupError, TypeError) as error:
        raise RequestError(f"{path} is not the plan of a sweep or transfer") from error


def _arm(row: Measurement | RolloutRow) -> tuple[str, str, str, int]:
    return row.prompt_id, row.condition, row.control, row.draw


def _counted_again(
    rows: Sequence[Measurement], texts: Sequence[RolloutRow]
) -> tuple[Measurement, ...]:
    """Rows with the rates of these labels."""
    said: dict[tuple[str, str, str, int], list[RolloutRow]] = {}
    for text in texts:
        said.setdefault(_arm(text), []).append(text)

    def counted(row: Measurement) -> Measurement:
        labels = [text.label for text in said.get(_arm(row), ())]
        if not labels:
            return row
        forced = []
        if row.control == STEERED:
            arm = (row.prompt_id, row.condition, FORCED, row.draw)
            forced = [text.label for text in said.get(arm, ())]
        return row.model_copy(
            update={
                "evil_rate": share(labels, "evil"),
                "safe_rate": share(labels, "safe"),
                "unscored": labels.count(None) + forced.count(None),
                "forced_evil_rate": share(forced, "evil"),
            }
        )

    return tuple(map(counted, rows))


def _rates(
    rows: Sequence[Measurement],
    again: Sequence[Measurement],
    scored_before: Counter[tuple[str, str]],
    scored_after: Counter[tuple[str, str]],
) -> list[RejudgedArm]:
    """Mean rate over prompts and draws of every arm that has texts, and the texts behind it."""
    arms: dict[tuple[str, str], list[tuple[Measurement, Measurement]]] = {}
    for one, other in zip(rows, again, strict=True):
        if one.n_rollouts is not None and one.control in (UNSTEERED, STEERED, RANDOM):
            arms.setdefault((one.condition, one.control), []).append((one, other))
    return [
        RejudgedArm(
            condition=condition,
            control=control,
            before=_mean([one for one, _ in pairs]),
            after=_mean([other for _, other in pairs]),
            scored_before=scored_before[condition, control],
            scored_after=scored_after[condition, control],
        )
        for (condition, control), pairs in arms.items()
    ]


def _mean(rows: Sequence[Measurement]) -> float | None:
    rates = [row.evil_rate for row in rows if row.evil_rate is not None]
    return sum(rates) / len(rates) if rates else None


def _scored(texts: Sequence[RolloutRow]) -> Counter[tuple[str, str]]:
    """Texts that have a label, by condition and arm."""
    return Counter((text.condition, text.control) for text in texts if text.label is not None)


def _change(line: ConditionSummary) -> RateChange:
    return RateChange(line.evil_rate_change, line.evil_rate_low, line.evil_rate_high)
