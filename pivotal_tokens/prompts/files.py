"""Prompt files: JSON, JSONL, Parquet, Arrow, or a folder of such files.

A file is a list (JSON), an object with the list under "prompts", one prompt (JSON), or one prompt
a line (JSONL). A prompt is a string, or an object with its text under ``text``, ``prompt`` or
``prompt_text``, and optionally ``name``, ``category``, ``kind`` or ``prompt_type``, ``generator``
or ``generator_model``; ``is_human_generated: true`` makes the generator "human". Other fields are
kept in `Prompt.extra`. A row of a Parquet or Arrow file is such an object. A folder (a saved
Hugging Face data set, say) is read file by file, in the order of their names; of the predecessor's
result tree the files under ``prompts/`` are.

    read_prompts(Path("prompts.jsonl"))[0].text

Anything else is a `RequestError` that names the file and the line, and no prompt is returned.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, get_args

from pydantic import ValidationError

from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Prompt, PromptKind, prompt_id

_TABLES = (".parquet", ".arrow", ".feather")
_TEXTS = (".json", ".jsonl")
# Files of a saved data set that describe it.
_DESCRIPTIONS = frozenset(("dataset_info.json", "state.json", "dataset_dict.json"))
_TEXT_FIELDS = ("text", "prompt", "prompt_text")
_KIND_FIELDS = ("kind", "prompt_type")
_GENERATOR_FIELDS = ("generator", "generator_model")
_KINDS: Mapping[str, PromptKind] = {
    **{kind: kind for kind in get_args(PromptKind)},
    "raw_completion": "raw",
    "chat_user_assistant": "chat",
    "chain_of_thought": "cot",
}


def read_prompts(path: Path, *, kind: PromptKind = "raw") -> tuple[Prompt, ...]:
    """The prompts of a file or folder, in its order, repetitions included.

    Args:
        path: A file or folder; a file of another name is read as JSON, of whatever shape it is.
        kind: The kind of prompts that name none.

    Raises:
        RequestError: If something cannot be read, is in no known shape, or there is no prompt.
    """
    if not path.is_dir():
        return _read_file(path, kind)
    files = [found for found in sorted(path.rglob("*")) if _holds_prompts(found)]
    own = [found for found in files if "prompts" in found.relative_to(path).parts[:-1]]
    if (path / "pivotal_tokens").is_dir() or (path / "prompts").is_dir():
        files = own or files
    if not files:
        raise RequestError(
            f"{path} holds no prompts: .json, .jsonl, .parquet or .arrow files are read"
        )
    return tuple(prompt for found in files for prompt in _read_file(found, kind))


def _holds_prompts(path: Path) -> bool:
    if path.suffix not in _TABLES + _TEXTS or path.name in _DESCRIPTIONS:
        return False
    return path.is_file() and not path.name.startswith((".", "cache-"))


def _read_file(path: Path, kind: PromptKind) -> tuple[Prompt, ...]:
    values = _rows(path) if path.suffix in _TABLES else _values(path, _text(path))
    prompts = tuple(
        prompt_of(value, where=f"{path}, {where}", source=path.name, kind=kind)
        for where, value in values
    )
    if not prompts and path.suffix in _TABLES:
        raise RequestError(f"{path} holds no prompt: it has no rows")
    if not prompts:
        raise RequestError(f"{path} holds no prompt: give a list of texts, or one a line (.jsonl)")
    return prompts


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """("row N", row) of each row of a table."""
    import pyarrow as pa

    try:
        rows = (row for batch in _batches(path) for row in batch.to_pylist())
        for number, row in enumerate(rows, start=1):
            yield f"row {number}", row
    except OSError as error:
        raise RequestError(f"cannot read prompts from {path}: {error}") from error
    except pa.ArrowInvalid as error:
        raise RequestError(f"{path} is not a {path.suffix[1:]} file: {error}") from error


def _batches(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches()
        return
    with pa.OSFile(str(path)) as source:
        try:
            reader = pa.ipc.open_stream(source)  # what datasets.save_to_disk writes
        except pa.ArrowInvalid:
            source.seek(0)
            whole = pa.ipc.open_file(source)
            yield from (whole.get_batch(number) for number in range(whole.num_record_batches))
            return
        yield from reader


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise RequestError(f"cannot read prompts from {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RequestError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from error


def _values(path: Path, content: str) -> Iterator[tuple[str, Any]]:
    """("line N" that it begins on, value) of each prompt."""
    if path.suffix == ".jsonl" or (path.suffix != ".json" and _one_value_a_line(content)):
        for number, line in enumerate(content.split("\n"), start=1):
            if line.strip():
                yield f"line {number}", _parse(line, path, first_line=number)
        return
    if content.lstrip().startswith("["):
        yield from _elements(path, content)
        return
    value = _parse(content, path)
    listed = value.get("prompts") if isinstance(value, dict) else None
    first_line = content[: len(content) - len(content.lstrip())].count("\n") + 1
    for item in listed if isinstance(listed, list) else [value]:
        yield f"line {first_line}", item


def _elements(path: Path, content: str) -> Iterator[tuple[str, Any]]:
    """The elements of a JSON array, each with its line; the whole is parsed first."""
    values = _parse(content, path)
    position = content.index("[") + 1
    for value in values:
        while content[position] in " \t\r\n,":
            position += 1
        line = content.count("\n", 0, position) + 1
        yield f"line {line}", value
        position = json.JSONDecoder().raw_decode(content, position)[1]


def _one_value_a_line(content: str) -> bool:
    first, _, rest = content.strip().partition("\n")
    try:
        json.loads(first)
    except ValueError:
        return False
    return bool(rest)


def _parse(content: str, path: Path, *, first_line: int = 1) -> Any:
    try:
        return json.loads(content, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise RequestError(
            f"{path}, line {line}, column {error.colno}: not JSON ({error.msg})"
        ) from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path}, line {first_line}: not JSON ({error})") from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def prompt_of(value: Any, *, where: str, source: str, kind: PromptKind) -> Prompt:
    """The prompt that a text or an object describes.

    Args:
        value: In one of the shapes of the module's text.
        where: Named in errors.
        source: The file's name; the generator where none is named.
        kind: Where none is named.

    Raises:
        RequestError: If it is in no such shape.
    """
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, dict):
        raise RequestError(f"{where}: a prompt is a text or an object, not {json.dumps(value)}")
    fields = dict(value)
    text = _take(fields, _TEXT_FIELDS, where)
    if text is None:
        raise RequestError(f"{where}: no prompt text; give it as {' or '.join(_TEXT_FIELDS)}")
    if not text.strip():
        raise RequestError(f"{where}: the prompt is empty")
    named_kind = _take(fields, _KIND_FIELDS, where)
    if named_kind is not None and named_kind not in _KINDS:
        raise RequestError(f"{where}: unknown kind {named_kind!r}; one of {', '.join(_KINDS)}")
    generator = _take(fields, _GENERATOR_FIELDS, where) or f"file:{source}"
    if fields.get("is_human_generated") is True:  # the predecessor's mark
        generator = "human"
    fields = {name: _plain(v) for name, v in fields.items() if v is not None}
    given_id = fields.pop("prompt_id", None)
    try:
        if given_id not in (None, prompt_id(text)):
            fields["source_id"] = given_id
        return Prompt.of(
            text,
            kind=kind if named_kind is None else _KINDS[named_kind],
            generator=generator,
            name=_take(fields, ("name",), where),
            category=_take(fields, ("category",), where),
            extra=fields,
        )
    except (UnicodeEncodeError, ValidationError) as error:
        raise RequestError(f"{where}: the text is not valid Unicode") from error


def _plain(value: Any) -> Any:
    """A value of a data set as JSON has it."""
    return value.isoformat() if isinstance(value, datetime.date) else value


def _take(fields: dict[str, Any], names: tuple[str, ...], where: str) -> str | None:
    """Remove the fields of these names; their one text, or None where all are absent."""
    found = {name: fields.pop(name) for name in names if fields.get(name) is not None}
    for name, value in found.items():
        if not isinstance(value, str):
            raise RequestError(f"{where}: {name} must be a text, not {json.dumps(value)}")
    if len(set(found.values())) > 1:
        raise RequestError(f"{where}: {' and '.join(found)} differ; give one of them")
    return next(iter(found.values()), None)
