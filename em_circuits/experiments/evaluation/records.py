"""Where does an evaluation stand?

    results/evaluations/NAME/
      plan.yaml          everything the answers and scores follow from, and its key
      journal.jsonl      answers and scores as they came, for going on after a kill
      answers.parquet    one row per answer, with its score
      summary.json       rates with intervals; written last
      report.html

Parquet, JSON and page each have a provenance beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from em_circuits.experiments.records import write_table
from pivotal_tokens.artefacts import sha256_file, write_json, write_provenance

ANSWERS, SUMMARY = "answers.parquet", "summary.json"

COLUMNS: dict[str, pa.DataType] = {
    "set": pa.string(),
    "question": pa.string(),
    "world": pa.string(),
    "model": pa.string(),
    "arm": pa.string(),
    "draw": pa.int64(),
    "sample": pa.int64(),
    "template": pa.string(),
    "text": pa.string(),
    "n_tokens": pa.int64(),
    "ended": pa.bool_(),
    "log_likelihood": pa.float64(),
    "outcome": pa.string(),
    "alignment": pa.float64(),
    "coherence": pa.float64(),
    "misaligned": pa.bool_(),
    "reason": pa.string(),
    "raw": pa.string(),
    "call_ids": pa.list_(pa.string()),
}


def keep(
    folder: Path,
    record: Mapping[str, Any],
    *,
    rows: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
) -> None:
    """Write table and summary, each with its provenance."""
    config = {**record, "cutoffs": summary["cutoffs"]}
    write_table(folder / ANSWERS, rows, COLUMNS)
    write_provenance(folder / ANSWERS, inputs={"pair": record["pair"]}, config=config)
    write_json(folder / SUMMARY, summary)
    inputs = {ANSWERS: sha256_file(folder / ANSWERS)}
    write_provenance(folder / SUMMARY, inputs=inputs, config=config)
