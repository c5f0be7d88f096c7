"""Steering effects on one prompt, beside matched random features.

Per condition the change of evil mass on this prompt, that of its control draws, and what is left of
it net of them; beside it the experiment's net over all its prompts, from its summary.

    for one in steered(results / "experiments", prompt_id): one.name, one.lines[0].here.net
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from em_circuits.experiments.measure import RANDOM, STEERED
from em_circuits.experiments.summary import against
from em_circuits.statistics import AgainstControl
from em_circuits.viewer.steering import experiment_folder, experiment_rows, experiments
from pivotal_tokens.errors import RequestError

logger = logging.getLogger(__name__)

SHOWN = 6
"""Conditions of an experiment that a prompt's page shows: those of the largest net change."""


@dataclass(frozen=True)
class Line:
    """One condition on one prompt; changes are of evil mass, steered minus un-steered."""

    condition: str
    unsteered: float
    draws: int
    here: AgainstControl
    overall: Mapping[str, Any]
    """The condition's line in the summary, over all prompts; empty where it has none."""


@dataclass(frozen=True)
class PromptExperiment:
    """One experiment that a prompt is in."""

    name: str
    report: bool
    lines: tuple[Line, ...]
    conditions: int
    """How many there are, those that are not shown too."""


def steered(folder: Path, prompt_id: str) -> tuple[PromptExperiment, ...]:
    """The finished experiments that a prompt is in, the newest first."""
    found = []
    for one in experiments(folder):
        try:
            place = experiment_folder(folder, one["name"])
            rows = experiment_rows(place, prompt_id=prompt_id)
        except (RequestError, OSError, ValueError) as error:
            logger.warning("experiment %s cannot be read: %s", one["name"], error)
            continue
        if rows:
            report = (place / "report.html").is_file()
            found.append(_experiment(one["name"], one["summary"], rows, report=report))
    return tuple(found)


def _experiment(
    name: str, summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], *, report: bool
) -> PromptExperiment:
    overall = {line.get("condition"): line for line in summary.get("conditions") or ()}
    by_condition: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["condition"] is not None and row["evil_mass"] is not None:
            by_condition.setdefault(row["condition"], []).append(row)
    lines = []
    for condition, mine in by_condition.items():
        arms = [sum(row["control"] == arm for row in mine) for arm in (STEERED, RANDOM)]
        if arms[0] == 1 and arms[1]:
            here = against(pd.DataFrame(mine), "evil_mass")
            before = mine[0]["evil_mass_unsteered"]
            lines.append(Line(condition, before, arms[1], here, overall.get(condition, {})))
    lines.sort(key=lambda line: -abs(line.here.net))
    return PromptExperiment(
        name=name,
        report=report,
        lines=tuple(lines[:SHOWN]),
        conditions=len(lines),
    )
