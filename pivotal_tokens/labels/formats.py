"""Flat records as JSONL, CSV or Parquet files, and back.

JSONL has a record a line. CSV is safe to open in a spreadsheet: a cell that a spreadsheet would
take for a formula is written behind an apostrophe, as is a text that begins with one, and reading
takes one apostrophe off; an empty cell is an absent value, a lone apostrophe the empty text.
Parquet has a column per field.

    write_records(path, records, FIELDS)
    read_records(path)                # (("labels.csv, line 2", {...}), ...)
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pivotal_tokens.artefacts import atomic_path, write_atomic
from pivotal_tokens.errors import RequestError
from pivotal_tokens.labels.records import INTEGERS, Record, whole_number
from pivotal_tokens.schema import Label, LabelEvent
from pivotal_tokens.table_files import BadRow, Row, column_rows, csv_rows, jsonl_rows

Format = Literal["jsonl", "csv", "parquet"]
_SUFFIXES: dict[str, Format] = {".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet"}
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_PROMPT_ID = re.compile("[0-9a-f]{12}")
_BOOLEANS = tuple(n for n, about in LabelEvent.model_fields.items() if about.annotation is bool)


def format_of(path: Path, given: str | None = None) -> Format:
    """The format that a file's name, or the one given, stands for.

    Raises:
        RequestError: If it is none of the three.
    """
    name = f".{given}" if given else path.suffix.lower()
    if name not in _SUFFIXES:
        raise RequestError(f"{path}: give it the ending {', '.join(_SUFFIXES)}")
    return _SUFFIXES[name]


def write_records(
    path: Path, records: Iterable[Record], fields: Sequence[str], *, format: str | None = None
) -> None:
    """Write records, whole or not at all."""
    match format_of(path, format):
        case "jsonl":
            write_atomic(path, "".join(jsonl(records)))
        case "csv":
            write_atomic(path, csv_text(records, fields))
        case "parquet":
            _write_parquet(path, list(records), fields)


def jsonl(records: Iterable[Record]) -> Iterator[str]:
    """One line a record."""
    for record in records:
        yield json.dumps(dict(record), ensure_ascii=False, allow_nan=False) + "\n"


def csv_text(records: Iterable[Record], fields: Sequence[str]) -> str:
    """A header and a line per record, every cell harmless in a spreadsheet."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, quoting=csv.QUOTE_ALL)
    writer.writerow(fields)
    for record in records:
        writer.writerow([_cell(record.get(name)) for name in fields])
    return out.getvalue()


def read_records(path: Path, *, format: str | None = None) -> Iterator[Row]:
    """The records of a file, each with its place in it; one that is none is `BadRow`.

    Raises:
        RequestError: If there is no file, or it is not of its format.
    """
    kind = format_of(path, format)
    if not path.is_file():
        raise RequestError(f"no file {path}")
    match kind:
        case "jsonl":
            rows = jsonl_rows(path)
        case "csv":
            rows = map(_from_cells, csv_rows(path))
        case "parquet":
            table = column_rows(path)
            if table.ignored:
                raise RequestError(f"{path}: the column {table.ignored[0]!a} is binary, not text")
            rows = table.rows
    for where, value in rows:
        if not isinstance(value, dict | BadRow):
            value = BadRow("not an object")
        yield f"{path.name}, {where}", value


def _from_cells(row: Row) -> Row:
    """A row of a CSV with its numbers and truth values; unguarded."""
    where, cells = row
    if isinstance(cells, BadRow):
        return row
    try:
        _refuse_swallowed(cells)
        return where, {n: None if c is None else _value(n, c) for n, c in cells.items()}
    except ValueError as error:
        return where, BadRow(str(error))


def _refuse_swallowed(cells: Record) -> None:
    """Refuse a cell within which whole rows stand: its quote was not closed in its place.

    Raises:
        ValueError: If a line within a cell has as many cells, and a label, a prompt's id or a
            token's where the row has them.
    """
    header = list(cells)
    for name, cell in cells.items():
        for line in (cell or "").split("\n")[1:]:
            cells_of_it = [part.strip(' "\r') for part in line.split(",")]
            inner = dict(zip(header, cells_of_it, strict=False))
            named = _PROMPT_ID.fullmatch(inner.get("prompt_id", ""))
            numbered = inner.get("token_id", "").isdecimal()
            labelled = inner.get("label", inner.get("to_label")) in get_args(Label)
            if labelled and (named or numbered) and len(cells_of_it) >= len(header):
                raise ValueError(
                    f"rows stand within its {name}: a quote is not closed in its place"
                )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    risky = text.lstrip(" ").startswith((*_FORMULA, "'"))
    return f"'{text}" if risky or not text else text


def _value(name: str, cell: str) -> Any:
    if name in INTEGERS:
        return whole_number(name, cell)
    if name in _BOOLEANS:
        if cell.lower() not in ("true", "false"):
            raise ValueError(f"{name} is true or false, not {cell!a}")
        return cell.lower() == "true"
    return _unguarded(cell)


def _unguarded(cell: str) -> str:
    """A guarded text without its apostrophe; one that nobody guarded stays as it is."""
    inner = cell.removeprefix("'")
    guarded = not inner or inner.lstrip(" ").startswith((*_FORMULA, "'"))
    return inner if guarded else cell


def _write_parquet(path: Path, records: list[Record], fields: Sequence[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {name: pa.int64() for name in INTEGERS} | {name: pa.bool_() for name in _BOOLEANS}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in fields])
    rows = [{name: record.get(name) for name in fields} for record in records]
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)
