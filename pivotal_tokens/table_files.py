"""Rows of a file, one by one: JSON lines, CSV, Parquet and Arrow.

What is wrong with one row is said of that row and the others go on; what makes every row doubtful
(a quote that never closes, a column that stands twice, another encoding) refuses the file. JSON is
read strictly: no NaN, no key twice in an object.

    for where, value in jsonl_rows(path): ...      # "line 3", and its value or `BadRow`
    columns = column_rows(path)
    columns.ignored                                # ("image",): binary, which is no text
"""

from __future__ import annotations

import csv
import datetime
import decimal
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pydantic import field_validator

from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen

COLUMN_FILES = (".parquet", ".arrow", ".feather")
_CELL_LIMIT = 1 << 30
_BATCH_ROWS = 256
"""Rows of a Parquet file in memory at a time: a text of a megabyte may stand there a thousand times
in a few kilobytes."""
_BUFFER_BYTES = 1 << 20
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
NOT_UTF8 = "not UTF-8; save the file as UTF-8"


class LeftOut(Frozen):
    """A row that was not taken, and why."""

    where: str
    why: str

    @field_validator("where", "why", mode="before")
    @classmethod
    def _printable(cls, text: str) -> str:
        """Half an emoji, which no file and no terminal takes, as its escape."""
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass(frozen=True)
class BadRow:
    """Stands for the value of a row that is not one."""

    why: str


Row = tuple[str, Any]
"""Where a row stands (``line 3``), and its value or `BadRow`."""


# --- JSON -------------------------------------------------------------------------------------


def strict_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: If it is none, has NaN or infinity, or a key twice in one object.
    """
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_once)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def jsonl_rows(path: Path) -> Iterator[Row]:
    """A row per line that is not blank.

    Raises:
        RequestError: If the file cannot be read, or is UTF-16.
    """
    with _opened(path) as stream:
        for number, raw in enumerate(stream, start=1):
            if number == 1:
                _refuse_utf16(path, raw)
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if raw.strip():
                yield _json_row(f"line {number}", raw)


def _json_row(where: str, raw: bytes) -> Row:
    try:
        return where, strict_json(raw.decode("utf-8"))
    except UnicodeDecodeError:
        return where, BadRow(NOT_UTF8)
    except json.JSONDecodeError as error:
        return f"{where}, column {error.colno}", BadRow(f"not JSON ({error.msg})")
    except ValueError as error:
        return where, BadRow(f"not JSON ({error})")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{twice!a} stands twice in one object")
    return found


# --- CSV --------------------------------------------------------------------------------------


def csv_rows(path: Path) -> Iterator[Row]:
    """A dict of texts per row, with None for an empty cell.

    Raises:
        RequestError: If it is no strict CSV (a quote is not closed, say), a column stands twice,
            or it is not UTF-8.
    """
    csv.field_size_limit(_CELL_LIMIT)
    with _opened(path) as binary:
        _refuse_utf16(path, binary.peek(2)[:2])
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            yield from _csv_rows(path, stream)
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: {NOT_UTF8}") from error


def _csv_rows(path: Path, stream: Iterable[str]) -> Iterator[Row]:
    reader = csv.reader(stream, strict=True)
    begins = 1
    try:
        header = [name.strip() for name in next(reader, [])]
        require_once(path, header)
        begins = reader.line_num + 1
        for cells in reader:
            begins = reader.line_num + 1
            if not cells:
                continue
            value: Any = dict(zip(header, [cell or None for cell in cells], strict=False))
            if len(cells) != len(header):
                value = BadRow(f"{len(cells)} cells under {len(header)} names")
            yield f"line {reader.line_num}", value
    except csv.Error as error:
        reason = str(error)
        if "unexpected end" in reason:
            reason = "a quote is opened and never closed"
        raise RequestError(
            f"{path}, the row that begins on line {begins}: not CSV ({reason})"
        ) from error


def require_once(path: Path, names: Sequence[str]) -> None:
    """Refuse a column that stands twice: one of the two would be lost.

    Raises:
        RequestError: Naming it.
    """
    twice = [name for name, number in Counter(names).items() if number > 1]
    if twice:
        raise RequestError(f"{path}: the column {twice[0]!a} stands twice; keep one of them")


def _opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from error


def _refuse_utf16(path: Path, start: bytes) -> None:
    if start.startswith(_UTF16):
        raise RequestError(f"{path}, line 1: {NOT_UTF8}")


# --- Parquet and Arrow ------------------------------------------------------------------------


@dataclass(frozen=True)
class ColumnRows:
    """A table's rows, without the columns that are binary or hold something binary."""

    rows: Iterator[Row]
    ignored: tuple[str, ...]


def column_rows(path: Path) -> ColumnRows:
    """The rows of a Parquet or Arrow file, as dicts of what JSON can hold.

    Raises:
        RequestError: If it is no such file, or a column stands twice.
    """
    import pyarrow as pa

    try:
        schema = _schema(path)
        names = schema.names
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error}") from error
    except (pa.ArrowException, UnicodeDecodeError) as error:  # the second of a column's name
        raise RequestError(f"{path} is not a {path.suffix[1:]} file: {error}") from error
    require_once(path, names)
    ignored = tuple(field.name for field in schema if _is_binary(field.type))
    kept = [name for name in names if name not in ignored]
    return ColumnRows(_rows(path, kept), ignored)


def _rows(path: Path, columns: list[str]) -> Iterator[Row]:
    import pyarrow as pa

    number = 0
    try:
        for batch in _batches(path, columns):
            for value in _values(batch):
                number += 1
                yield f"row {number}", value
    except (OSError, pa.ArrowException) as error:
        raise RequestError(f"{path}, after row {number}: cannot be read: {error}") from error


def _values(batch: Any) -> Iterator[Any]:
    """The rows of a batch; one with a value that Python has no form for is unreadable."""
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    for number in range(batch.num_rows):
        try:
            yield {name: json_value(column[number].as_py()) for name, column in columns.items()}
        except (ValueError, OverflowError) as error:
            yield BadRow(f"a value cannot be read ({error})")


def _schema(path: Path) -> Any:
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        return pq.read_schema(path)
    with _arrow(path) as reader:
        return reader.schema


def _batches(path: Path, columns: list[str]) -> Iterator[Any]:
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        # A page at a time, not the row group's columns whole.
        with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
            yield from file.iter_batches(columns=columns, batch_size=_BATCH_ROWS, use_threads=False)
        return
    with _arrow(path) as reader:
        whole = hasattr(reader, "num_record_batches")
        batches = map(reader.get_batch, range(reader.num_record_batches)) if whole else reader
        yield from (batch.select(columns) for batch in batches)


def _arrow(path: Path) -> Any:
    import pyarrow as pa

    source = pa.memory_map(str(path))
    try:
        return pa.ipc.open_stream(source)  # what datasets.save_to_disk writes
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_file(source)


def _is_binary(kind: Any) -> bool:
    """Whether a column's type is, or anywhere within has, bytes."""
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        return _is_binary(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _is_binary(kind.value_type)
    if pa.types.is_nested(kind):
        return any(_is_binary(kind.field(n).type) for n in range(kind.num_fields))
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    return any(is_kind(kind) for is_kind in (*binary, pa.types.is_binary_view))


def json_value(value: Any) -> Any:
    """A value of a data set as JSON has it: times as ISO 8601, what is not a number as None."""
    match value:
        case float():
            return None if math.isnan(value) else value
        case datetime.date() | datetime.time():
            return value.isoformat()
        case datetime.timedelta():
            return value.total_seconds()
        case decimal.Decimal():
            return str(value)
        case dict():
            return {str(name): json_value(inner) for name, inner in value.items()}
        case list() | tuple():
            return [json_value(inner) for inner in value]
    return value
