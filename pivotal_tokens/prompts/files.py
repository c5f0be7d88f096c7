"""Which prompts does a JSON or JSONL file hold?

A file is a list (JSON), an object with the list under "prompts", one prompt (JSON), or one prompt
a line (JSONL). A prompt is a string, or an object with its text under ``text``, ``prompt`` or
``prompt_text``, and optionally ``name``, ``category``, ``kind`` or ``prompt_type``, ``generator``
or ``generator_model``; ``is_human_generated: true`` makes the generator "human". Other fields are
kept in `Prompt.extra`.

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
    """The prompts of a file, in its order, repetitions included.

    Args:
        path: A ``.json`` or ``.jsonl`` file; any other name is read as what it looks like.
        kind: The kind of prompts that name none.

    Raises:
        RequestError: If the file cannot be read, is not in one of the shapes, or has no prompt.
    """
    content = _read(path)
    prompts = tuple(
        prompt_of(value, where=f"{path}, line {line}", source=path.name, kind=kind)
        for line, value in _values(path, content)
    )
    if not prompts:
        raise RequestError(f"{path} holds no prompt: give a list of texts, or one a line (.jsonl)")
    return prompts


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise RequestError(f"cannot read prompts from {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RequestError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from error


def _values(path: Path, content: str) -> Iterator[tuple[int, Any]]:
    """(line it begins on, value) of each prompt."""
    if path.suffix == ".jsonl" or (path.suffix != ".json" and _one_value_a_line(content)):
        for number, line in enumerate(content.split("\n"), start=1):
            if line.strip():
                yield number, _parse(line, path, first_line=number)
        return
    if content.lstrip().startswith("["):
        yield from _elements(path, content)
        return
    value = _parse(content, path)
    listed = value.get("prompts") if isinstance(value, dict) else None
    first_line = content[: len(content) - len(content.lstrip())].count("\n") + 1
    for item in listed if isinstance(listed, list) else [value]:
        yield first_line, item


def _elements(path: Path, content: str) -> Iterator[tuple[int, Any]]:
    """The elements of a JSON array, each with its line; the whole is parsed first."""
    values = _parse(content, path)
    position = content.index("[") + 1
    for value in values:
        while content[position] in " \t\r\n,":
            position += 1
        yield content.count("\n", 0, position) + 1, value
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
