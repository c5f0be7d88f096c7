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
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pivotal_tokens.artefacts import atomic_path, write_atomic
from pivotal_tokens.errors import RequestError
from pivotal_tokens.labels.records import Record
from pivotal_tokens.schema import LabelEvent

Format = Literal["jsonl", "csv", "parquet"]
_SUFFIXES: dict[str, Format] = {".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet"}
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_CELL_LIMIT = 1 << 30
_KINDS = {name: str(about.annotation) for name, about in LabelEvent.model_fields.items()}
_INTEGERS = tuple(name for name, kind in _KINDS.items() if kind.startswith(("int", "<class 'int")))
_BOOLEANS = tuple(name for name, kind in _KINDS.items() if kind == "<class 'bool'>")


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


def read_records(path: Path, *, format: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of a file, each with its place in it.

    Raises:
        RequestError: If there is no file, or it is not of its format.
    """
    kind = format_of(path, format)
    if not path.is_file():
        raise RequestError(f"no file {path}")
    try:
        match kind:
            case "jsonl":
                yield from _read_jsonl(path)
            case "csv":
                yield from _read_csv(path)
            case "parquet":
                yield from _read_parquet(path)
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: not UTF-8 text ({error.reason})") from error


def _read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8", newline="\n") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            where = f"{path.name}, line {number}"
            try:
                value = json.loads(line)
            except ValueError as error:
                raise RequestError(f"{where}: not JSON ({error})") from error
            if not isinstance(value, dict):
                raise RequestError(f"{where}: not an object")
            yield where, value


def _read_csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(_CELL_LIMIT)
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream)
        try:
            header = [name.strip() for name in next(reader, [])]
            for cells in reader:
                where = f"{path.name}, line {reader.line_num}"
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise RequestError(f"{where}: {len(cells)} cells under {len(header)} names")
                yield where, {n: _value(n, c, where) for n, c in zip(header, cells, strict=True)}
        except csv.Error as error:
            raise RequestError(f"{path}: not CSV ({error})") from error


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    risky = text.lstrip(" ").startswith((*_FORMULA, "'"))
    return f"'{text}" if risky or not text else text


def _value(name: str, cell: str, where: str) -> Any:
    if not cell:
        return None
    if name in _INTEGERS:
        if not cell.isascii() or not cell.isdigit():
            raise RequestError(f"{where}: {name} is no number: {cell!r}")
        return int(cell)
    if name in _BOOLEANS:
        if cell.lower() not in ("true", "false"):
            raise RequestError(f"{where}: {name} is true or false, not {cell!r}")
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

    kinds = {name: pa.int64() for name in _INTEGERS} | {name: pa.bool_() for name in _BOOLEANS}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in fields])
    rows = [{name: record.get(name) for name in fields} for record in records]
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise RequestError(f"{path}: not a Parquet file ({error})") from error
    for number, record in enumerate(table.to_pylist(), start=1):
        yield f"{path.name}, row {number}", record
