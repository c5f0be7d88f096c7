"""How is a table over prompts kept, so that it is made once and never out of date?

``results/features/NAME-<first 12 digits of the key>.json`` and ``.parquet``, each with its
provenance. The key is the SHA-256 of everything the table follows from; a file is used only if the
whole key stands in it and the Parquet beside it has the hash it says. The JSON is written last.

    table = kept_table(folder, "aggregate", inputs, make)
    table.record["stability"], table.rows()[:10], table.reused
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pivotal_tokens.artefacts import (
    atomic_path,
    canonical_json,
    content_key,
    sha256_file,
    write_json,
    write_provenance,
)

logger = logging.getLogger(__name__)

Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class Made:
    """A record and the columns of its table; None in a column is null."""

    record: dict[str, Any]
    columns: Columns
    integers: tuple[str, ...] = ()
    """Columns of whole numbers even where every value is null."""


@dataclass(frozen=True)
class KeptTable:
    """A record with its table, and where they stand."""

    key: str
    record: dict[str, Any]
    columns: Columns
    json_path: Path
    parquet_path: Path
    reused: bool

    def head(self) -> dict[str, Any]:
        """The record with the table's key and place, as a command prints it."""
        files = {"json": str(self.json_path), "parquet": str(self.parquet_path)}
        return {"key": self.key, **self.record, "reused": self.reused, "files": files}

    def rows(self) -> list[dict[str, Any]]:
        """The table's lines."""
        names = list(self.columns)
        lines = zip(*self.columns.values(), strict=True)
        return [dict(zip(names, line, strict=True)) for line in lines]


def kept_table(
    folder: Path, name: str, inputs: Mapping[str, Any], make: Callable[[], Made]
) -> KeptTable:
    """The table of these inputs: as it is kept, or else made and kept.

    Args:
        folder: Where tables are kept.
        name: What the files' names begin with.
        inputs: Everything the table follows from, as JSON values.
        make: Makes it.
    """
    key = content_key({"name": name, **inputs})
    stem = folder / f"{name}-{key[:12]}"
    json_path, parquet_path = stem.with_suffix(".json"), stem.with_suffix(".parquet")
    made = _read(json_path, parquet_path, key)
    if made is not None:
        return KeptTable(key, made.record, made.columns, json_path, parquet_path, reused=True)
    fresh = make()
    made = replace(fresh, record=json.loads(canonical_json(fresh.record)))
    _write(json_path, parquet_path, key, inputs, made)
    return KeptTable(key, made.record, made.columns, json_path, parquet_path, reused=False)


def _read(json_path: Path, parquet_path: Path, key: str) -> Made | None:
    if not json_path.is_file():
        return None
    try:
        kept = json.loads(json_path.read_text(encoding="utf-8"))
        if kept["key"] != key or sha256_file(parquet_path) != kept["parquet_sha256"]:
            logger.warning("%s is not what it says and is made again", parquet_path)
            return None
        return Made(kept["record"], pq.read_table(parquet_path).to_pydict())
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be read and is made again: %s", json_path, error)
        return None


def _write(
    json_path: Path, parquet_path: Path, key: str, inputs: Mapping[str, Any], made: Made
) -> None:
    columns = {
        name: pa.array(values, pa.int64() if name in made.integers else _type(values))
        for name, values in made.columns.items()
    }
    with atomic_path(parquet_path) as temporary:
        pq.write_table(pa.table(columns), temporary)
    config = {k: v for k, v in inputs.items() if k != "prompts"}
    sources = {"prompts": inputs.get("prompts")}
    write_provenance(parquet_path, inputs=sources, config=config, key=key)
    digest = sha256_file(parquet_path)
    write_json(json_path, {"key": key, "parquet_sha256": digest, "record": made.record})
    write_provenance(json_path, inputs={**sources, "parquet": digest}, config=config, key=key)


def _type(values: list[Any]) -> pa.DataType:
    """float64 unless something else stands in it: a column of nulls alone keeps its type."""
    present = [value for value in values if value is not None]
    if present and all(isinstance(value, int) for value in present):
        return pa.int64()
    return pa.string() if present and isinstance(present[0], str) else pa.float64()
