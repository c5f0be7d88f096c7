"""Where do the tables of an experiment stand?

    results/experiments/NAME/
      plan.yaml          everything the rows follow from, and its key
      journal.jsonl      finished pieces of work, for going on after a kill
      rows.parquet       one row per prompt, condition and arm
      rollouts.parquet   one row per continuation
      summary.json       figures over prompts, with intervals
      report.html, report.md

Parquet, JSON and report each have a provenance beside them; the summary is written last.

    experiment = keep(folder, record, rows=rows, rollouts=lines, summary=summary)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pivotal_tokens.artefacts import (
    atomic_path,
    content_key,
    sha256_file,
    write_json,
    write_provenance,
)

ROWS, ROLLOUTS, SUMMARY = "rows.parquet", "rollouts.parquet", "summary.json"

_TEXT = pa.string()
_NUMBER = pa.float64()
_WHOLE = pa.int64()

ROW_COLUMNS: dict[str, pa.DataType] = {
    "prompt_id": _TEXT,
    "domain": _TEXT,
    "condition": _TEXT,
    "combination": _TEXT,
    "features": _TEXT,
    "mode": _TEXT,
    "value": _NUMBER,
    "unit": _TEXT,
    "place": _TEXT,
    "control": _TEXT,
    "draw": _WHOLE,
    "evil_mass": _NUMBER,
    "evil_mass_unsteered": _NUMBER,
    "contrast": _NUMBER,
    "contrast_unsteered": _NUMBER,
    "verdict": _TEXT,
    "verdict_unsteered": _TEXT,
    "kl": _NUMBER,
    "boosted_token": _WHOLE,
    "boosted_text": _TEXT,
    "boosted_by": _NUMBER,
    "off_target_kl": _NUMBER,
    "n_rollouts": _WHOLE,
    "unscored": _WHOLE,
    "evil_rate": _NUMBER,
    "safe_rate": _NUMBER,
    "perplexity": _NUMBER,
    "repetition": _NUMBER,
    "forced_evil_rate": _NUMBER,
    "after_kl": _NUMBER,
}
"""Columns of the rows; one that was not measured is null."""

ROLLOUT_COLUMNS: dict[str, pa.DataType] = {
    "prompt_id": _TEXT,
    "condition": _TEXT,
    "control": _TEXT,
    "draw": _WHOLE,
    "sample": _WHOLE,
    "text": _TEXT,
    "label": _TEXT,
    "reason": _TEXT,
    "log_likelihood": _NUMBER,
    "repetition": _NUMBER,
}


@dataclass(frozen=True)
class Experiment:
    """A finished experiment."""

    folder: Path
    record: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    rollouts: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]

    @property
    def provenance(self) -> dict[str, Any]:
        """What every artefact of it was made from."""
        return {"inputs": {"pair": self.record.get("pair")}, "config": dict(self.record)}


def keep(
    folder: Path,
    record: Mapping[str, Any],
    *,
    rows: Sequence[Mapping[str, Any]],
    rollouts: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
) -> Experiment:
    """Write tables and summary, each with its provenance."""
    made = {**summary, "key": content_key(record)}
    experiment = Experiment(folder, record, rows, rollouts, made)
    tables = ((ROWS, rows, ROW_COLUMNS), (ROLLOUTS, rollouts, ROLLOUT_COLUMNS))
    hashes = {}
    for name, lines, columns in tables:
        write_table(folder / name, lines, columns)
        write_provenance(folder / name, **experiment.provenance)
        hashes[name] = sha256_file(folder / name)
    write_json(folder / SUMMARY, made)
    write_provenance(folder / SUMMARY, inputs=hashes, config=dict(record))
    return experiment


def write_table(
    path: Path, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, pa.DataType]
) -> None:
    """Write rows as Parquet, whole or not at all; a column that a row lacks is null."""
    arrays = {
        name: pa.array([row.get(name) for row in rows], kind) for name, kind in columns.items()
    }
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(arrays), temporary)
