"""Cache of results by content key, with provenance: one writer, one reader.

    features/NAME-<first 12 digits of the key>.json, .parquet     a table with its record
    experiments/NAME/plan.yaml, journal.jsonl                     work under way
    experiments/NAME/*.parquet, summary.json                      a finished experiment

The key is the SHA-256 of everything a result follows from. A file is used only if the whole key
stands in it and the Parquet beside it has the hash it names; anything else is computed again.
Every artefact has its provenance beside it, and the JSON is written last. Reading needs no torch.

    table = cached_table(folder, "aggregate", inputs, compute)
    table.record["stability"], table.rows()[:10], table.reused

    journal = Journal.open(folder, plan_record)
    rows = journal.complete([(key, lambda: {"rows": [...]}), ...])
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import rmtree
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import BaseModel, ValidationError

from em_circuits.pieces import EVERYTHING, KeepTensors, Portion
from em_circuits.progress import Progress, no_progress
from pivotal_tokens.artefacts import (
    atomic_path,
    canonical_json,
    content_key,
    sha256_file,
    write_atomic,
    write_json,
    write_provenance,
)
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=BaseModel)
Table = TypeVar("Table", bound="CachedTable")

PLAN, JOURNAL, SUMMARY = "plan.yaml", "journal.jsonl", "summary.json"


# --- JSON -----------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file; None where there is none, or none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read: %s", path, error)
        return None
    return value if isinstance(value, dict) else None


def read_model(path: Path, kind: type[Model], key: str) -> Model | None:
    """A result in a file of its own, whose field ``key`` must be this one."""
    value = read_json(path)
    if value is None or value.get("key") != key:
        return None
    try:
        return kind.model_validate(value)
    except ValidationError:
        logger.warning("%s is of another form and is computed again", path)
        return None


# --- Tables ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CachedTable:
    """A record, and the path of its table."""

    key: str
    record: dict[str, Any]
    json_path: Path
    reused: bool = True

    @property
    def parquet_path(self) -> Path:
        return self.json_path.with_suffix(".parquet")

    def rows(self) -> list[dict[str, Any]]:
        """The table's lines."""
        return pq.read_table(self.parquet_path).to_pylist()

    def head(self, **files: Path) -> dict[str, Any]:
        """The record with the table's key and place, as a command prints it, and further files."""
        places = {"json": self.json_path, "parquet": self.parquet_path, **files}
        return {
            "key": self.key,
            **self.record,
            "reused": self.reused,
            "files": {name: str(path) for name, path in places.items()},
        }

    @classmethod
    def read(cls: type[Table], path: Path) -> Table | None:
        """The table of a JSON file; None where that or the Parquet cannot be used."""
        value = read_json(path) or {}
        key, record = value.get("key"), value.get("record")
        table = path.with_suffix(".parquet")
        if isinstance(key, str) and isinstance(record, dict) and table.is_file():
            return cls(key, record, path)
        return None

    @classmethod
    def newest(cls: type[Table], folder: Path, name: str) -> list[Table]:
        """All tables of a name, the newest first; what cannot be read is left out."""
        paths = [p for p in folder.glob(f"{name}-*.json") if not p.stem.endswith(".provenance")]
        paths.sort(key=lambda path: -path.stat().st_mtime)
        return [table for path in paths if (table := cls.read(path))]


class TableHead(Frozen):
    """Where a printed table is kept, beside its record and its first lines."""

    key: str
    """Of everything that the result follows from."""
    reused: bool
    """It stood in the cache."""
    files: dict[str, str]
    """`json` and `parquet`; the latter has every line."""


def cached_table(
    folder: Path,
    name: str,
    inputs: Mapping[str, Any],
    compute: Callable[[], tuple[Mapping[str, Any], pd.DataFrame]],
) -> CachedTable:
    """The table of these inputs: the stored one, or else computed and stored.

    Args:
        folder: Where tables are stored.
        name: What the files' names begin with.
        inputs: Everything the table follows from, as JSON values.
        compute: The record and the table; NaN and None are null.
    """
    key = content_key({"name": name, **inputs})
    path = folder / f"{name}-{key[:12]}.json"
    stored = _usable(path, key)
    if stored is not None:
        return stored
    record, frame = compute()
    record = json.loads(canonical_json(record))
    table = CachedTable(key, record, path, reused=False)
    prompts = {"prompts": inputs.get("prompts")}
    config = {k: v for k, v in inputs.items() if k != "prompts"}
    write_parquet(table.parquet_path, _arrow(frame))
    write_provenance(table.parquet_path, inputs=prompts, config=config, key=key)
    digest = sha256_file(table.parquet_path)
    write_json(path, {"key": key, "parquet_sha256": digest, "record": record})
    write_provenance(path, inputs={**prompts, "parquet": digest}, config=config, key=key)
    return table


def table_in_pieces(
    folder: Path,
    name: str,
    inputs: Mapping[str, Any],
    compute: Callable[[KeepTensors], tuple[Mapping[str, Any], pd.DataFrame]],
    portion: Portion,
    progress: Progress,
) -> CachedTable:
    """The table of these inputs, computed in pieces that are stored until the table is.

    Args:
        compute: As that of `cached_table`, with what does the pieces of a step.
        portion: Which of them this process does.
    """
    pieces = folder / f".{name}-{content_key(inputs)[:12]}"
    keep = partial(portion.tensors, pieces, progress=progress)
    table = cached_table(folder, name, inputs, lambda: compute(keep))
    rmtree(pieces, ignore_errors=True)
    return table


def _usable(path: Path, key: str) -> CachedTable | None:
    table, value = CachedTable.read(path), read_json(path) or {}
    if table is None:
        return None
    if table.key == key and sha256_file(table.parquet_path) == value.get("parquet_sha256"):
        return table
    logger.warning("%s is not what it says and is computed again", table.parquet_path)
    return None


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write a table, whole or not at all."""
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)


def _arrow(frame: pd.DataFrame) -> pa.Table:
    """Without an index; a column of nulls alone is one of numbers."""
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    plain = {pa.null(): pa.float64(), pa.large_string(): pa.string()}
    fields = [field.with_type(plain.get(field.type, field.type)) for field in table.schema]
    return table.cast(pa.schema(fields))


_ARROW = {str: pa.string(), float: pa.float64(), int: pa.int64(), bool: pa.bool_()}


def schema_of(kind: type[BaseModel]) -> pa.Schema:
    """Columns of a table whose rows are these models; text unless a field's type says otherwise."""

    def arrow(hint: Any) -> pa.DataType:
        options = [option for option in get_args(hint) if option is not NoneType]
        if tuple[str, ...] in (hint, *options):
            return pa.list_(pa.string())
        return _ARROW.get(options[0] if options else hint, pa.string())

    hints = get_type_hints(kind)
    return pa.schema([(name, arrow(hints[name])) for name in kind.model_fields])


def rows_table(kind: type[BaseModel], rows: Sequence[BaseModel]) -> pa.Table:
    """Models as a table."""
    return pa.Table.from_pylist([row.model_dump(mode="json") for row in rows], schema_of(kind))


# --- Experiments ----------------------------------------------------------------------------------


def write_results(
    folder: Path,
    tables: Mapping[str, pa.Table],
    summary: Mapping[str, Any],
    *,
    config: Mapping[str, Any],
) -> None:
    """Write the tables of an experiment and then its summary, each with its provenance."""
    for name, table in tables.items():
        write_parquet(folder / name, table)
        write_provenance(folder / name, inputs={"pair": config.get("pair")}, config=config)
    write_json(folder / SUMMARY, summary)
    hashes = {name: sha256_file(folder / name) for name in tables}
    write_provenance(folder / SUMMARY, inputs=hashes, config=config)


class Journal:
    """Finished pieces of an experiment, one line of JSON each, flushed before the next begins.

    A line that was cut off by the end of the process is dropped, and its piece done again. Several
    processes write a file each and read all.
    """

    def __init__(self, path: Path, done: dict[str, dict[str, Any]], portion: Portion) -> None:
        self._path, self._done, self._portion = path, done, portion

    @classmethod
    def open(
        cls,
        folder: Path,
        record: Mapping[str, Any],
        portion: Portion = EVERYTHING,
    ) -> Journal:
        """Begin an experiment, or go on with it.

        Args:
            folder: Of the experiment.
            record: Everything its rows follow from.
            portion: Which pieces this process does.

        Raises:
            RequestError: If the folder holds an experiment of another record.
        """
        plan, path = folder / PLAN, folder / JOURNAL
        if portion.name:
            path = path.with_stem(f"{path.stem}-{portion.name}")
        key = content_key(json.loads(canonical_json(record)))
        if plan.is_file():
            try:
                stored = yaml.safe_load(plan.read_text(encoding="utf-8"))
            except (yaml.YAMLError, UnicodeDecodeError):
                stored = None
            stored = stored if isinstance(stored, dict) else {}
            if stored.get("key") != key:
                older = stored.get("formula", record.get("formula")) != record.get("formula")
                what = "of an older version" if older else "with another plan, models or labels"
                raise RequestError(
                    f"{folder} holds an experiment {what}; "
                    "give this one another name, or remove the folder"
                )
        else:
            text = yaml.safe_dump({"key": key, **record}, sort_keys=False, allow_unicode=True)
            write_atomic(plan, text)
        own = dict(_lines(path))
        # A line cut off in the middle must not be continued by the next one.
        write_atomic(path, "".join(_line(key, value) for key, value in own.items()))
        every = sorted(folder.glob(f"{Path(JOURNAL).stem}*.jsonl"))
        return cls(path, {k: v for one in every for k, v in _lines(one)}, portion)

    def __contains__(self, key: str) -> bool:
        return key in self._done

    def __len__(self) -> int:
        return len(self._done)

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._done[key]

    def forget(self, key: str) -> None:
        """Have a piece done again."""
        self._done.pop(key, None)

    def add(self, key: str, value: Mapping[str, Any]) -> None:
        """Store one finished piece of work."""
        line = _line(key, value)
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())
        self._done[key] = json.loads(line)["value"]

    def complete(
        self,
        pieces: Iterable[tuple[str, Callable[[], Mapping[str, Any]]]],
        step: str = "",
        progress: Progress = no_progress,
    ) -> list[dict[str, Any]]:
        """Do what is not done yet of some pieces, (key, work); all their values, in order."""
        pieces = list(pieces)
        works = {key: partial(self._done_by, key, work) for key, work in pieces}
        self._portion.do(works, [key for key in works if key not in self], step, progress)
        return [self[key] for key, _ in pieces]

    def _done_by(self, key: str, work: Callable[[], Mapping[str, Any]]) -> None:
        self.add(key, work())


def _line(key: str, value: Mapping[str, Any]) -> str:
    return canonical_json({"key": key, "value": value}) + "\n"


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            yield entry["key"], entry["value"]
        except (ValueError, KeyError, TypeError):
            continue
