"""Experiments stored under the results, and their tables.

for one in experiments(folder): one["name"], one["summary"]
place = experiment_folder(folder, "pad-thai")     # contained, whatever links say
read_rows(place, prompt_id="964a7382b6b7")
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from em_circuits.cache import SUMMARY, read_json
from em_circuits.experiments.experiment import ROWS
from pivotal_tokens.errors import RequestError, WorkFailed

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_COLUMNS = ["prompt_id", "condition", "control", "draw", "evil_mass", "evil_mass_unsteered"]


def experiments(folder: Path) -> list[dict[str, Any]]:
    """Finished experiments, the newest first."""
    found = []
    for path in folder.glob(f"*/{SUMMARY}"):
        summary = read_json(path)
        if summary is not None and _NAME.fullmatch(path.parent.name):
            found.append((path.stat().st_mtime, {"name": path.parent.name, "summary": summary}))
    return [item for _, item in sorted(found, key=lambda pair: -pair[0])]


def experiment_folder(root: Path, name: str) -> Path:
    """The folder of a finished experiment, contained in the root whatever links say.

    Raises:
        RequestError: If there is none.
    """
    place = (root / name).resolve()
    inside = _NAME.fullmatch(name) and place.is_relative_to(root.resolve())
    if not inside or not (place / SUMMARY).is_file():
        raise RequestError(f"there is no finished experiment {name[:40]!r}; steer sweep makes one")
    return place


def only_prompt(summary: dict[str, Any]) -> str | None:
    """The id of an experiment's prompt where it has one alone: its figures are that prompt's."""
    prompts = summary.get("prompts") or []
    return prompts[0].get("prompt_id") if len(prompts) == 1 else None


def read_summary(place: Path) -> dict[str, Any]:
    """The figures of a finished experiment.

    Raises:
        WorkFailed: If they cannot be read.
    """
    found = read_json(place / SUMMARY)
    if found is None:
        raise WorkFailed(f"{place / SUMMARY} cannot be read; run the sweep again")
    return found


def read_rows(place: Path, *, prompt_id: str | None = None) -> list[dict[str, Any]]:
    """Evil mass of every prompt, condition and arm of an experiment, or of one prompt."""
    mine = None if prompt_id is None else [("prompt_id", "==", prompt_id)]
    return pq.read_table(place / ROWS, columns=_COLUMNS, filters=mine).to_pylist()
