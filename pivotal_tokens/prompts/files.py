"""Prompt files: JSON, JSONL, CSV, Parquet, Arrow, or a folder of such files.

A file is a list (JSON), an object with the list under "prompts", one prompt (JSON), or one prompt
a line (JSONL, CSV). A prompt is a string, or an object with its text under ``text``, ``prompt`` or
``prompt_text``, and optionally ``name``, ``category``, ``kind`` or ``prompt_type``, ``generator``
or ``generator_model``; ``is_human_generated: true`` makes the generator "human". Or it is a chat
(`chats`), or a line of pivotal-token search (``pivot_context``). Other fields are kept in
`Prompt.extra`. A row of a table is such an object. A folder (a saved Hugging Face data set, say)
is read file by file, in the order of their names; of the predecessor's result tree the files under
``prompts/`` are.

    found = read_prompts(Path("prompts.jsonl"))
    found.prompts[0].text, found.left_out[0].why

A row that cannot be used is left out and named, and the others are read; a file that is none, or
in which nothing can be used, is a `RequestError`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from pivotal_tokens.errors import RequestError
from pivotal_tokens.prompts.chats import (
    CHAT_FIELDS,
    Chat,
    ChatRenderer,
    answer_starts,
    chat_of,
    take_chat,
)
from pivotal_tokens.schema import (
    Frozen,
    Prompt,
    PromptKind,
    first_problem,
    prompt_id,
    unstorable,
)
from pivotal_tokens.table_files import (
    COLUMN_FILES,
    NOT_UTF8,
    BadRow,
    LeftOut,
    Row,
    column_rows,
    csv_rows,
    jsonl_rows,
    strict_json,
)

_TEXTS = (".json", ".jsonl")
# Files of a saved data set that describe it.
_DESCRIPTIONS = frozenset(("dataset_info.json", "state.json", "dataset_dict.json"))
_TEXT_FIELDS = ("text", "prompt", "prompt_text", "pivot_context")
_KIND_FIELDS = ("kind", "prompt_type")
_GENERATOR_FIELDS = ("generator", "generator_model")
_KINDS: Mapping[str, PromptKind] = {
    **{kind: kind for kind in get_args(PromptKind)},
    "raw_completion": "raw",
    "chat_user_assistant": "chat",
    "chain_of_thought": "cot",
}
_QUOTED = 60


class PromptFile(Frozen):
    """What came of reading files: every row is a prompt or left out."""

    prompts: tuple[Prompt, ...] = ()  # in the files' order, repetitions included
    left_out: tuple[LeftOut, ...] = ()
    ignored: tuple[str, ...] = ()  # "FILE: column", of what is binary

    @property
    def rows(self) -> int:
        """Prompts and what was left out."""
        return len(self.prompts) + len(self.left_out)

    def require_some(self) -> None:
        """Refuse files of which nothing can be used.

        Raises:
            RequestError: Naming the first row.
        """
        if self.left_out and not self.prompts:
            first = self.left_out[0]
            more = len(self.left_out) - 1
            others = f" (nor {more} more)" if more else ""
            raise RequestError(f"{first.where}: {first.why}{others}")


def read_prompts(
    *paths: Path,
    kind: PromptKind = "raw",
    text_field: str | None = None,
    renderer: Callable[[], ChatRenderer] | None = None,
) -> PromptFile:
    """The prompts of files and folders, in their order.

    Args:
        paths: A file of another name is read as JSON, of whatever shape it is.
        kind: The kind of prompts that name none.
        text_field: Where a prompt's text, or its chat, stands, whatever else there is.
        renderer: Opens what renders chats; called when the first one comes.

    Raises:
        RequestError: If a file cannot be read, is in no known shape, or holds nothing that can be
            used.
    """
    reader = _Reader(kind, text_field, renderer)
    for path in paths:
        for file in _files(path, tables=text_field is not None):
            reader.read(file)
    found = PromptFile(
        prompts=tuple(reader.prompts),
        left_out=tuple(reader.left_out),
        ignored=tuple(reader.ignored),
    )
    found.require_some()
    return found


def _files(path: Path, *, tables: bool) -> list[Path]:
    """The file, or those of a folder that hold prompts; CSV among them only if `tables`."""
    if not path.is_dir():
        return [path]
    endings = (*COLUMN_FILES, *_TEXTS, *((".csv",) if tables else ()))
    files = [found for found in sorted(path.rglob("*")) if _holds_prompts(found, endings)]
    own = [found for found in files if "prompts" in found.relative_to(path).parts[:-1]]
    if (path / "pivotal_tokens").is_dir() or (path / "prompts").is_dir():
        files = own or files
    if not files:
        raise RequestError(
            f"{path} holds no prompts: .json, .jsonl, .parquet or .arrow files are read"
        )
    return files


def _holds_prompts(path: Path, endings: Iterable[str]) -> bool:
    if path.suffix not in endings or path.name in _DESCRIPTIONS:
        return False
    return path.is_file() and not path.name.startswith((".", "cache-"))


class _Reader:
    """Reads files, one after another."""

    def __init__(
        self,
        kind: PromptKind,
        text_field: str | None,
        renderer: Callable[[], ChatRenderer] | None,
    ) -> None:
        self.prompts: list[Prompt] = []
        self.left_out: list[LeftOut] = []
        self.ignored: list[str] = []
        self._kind, self._text_field, self._open = kind, text_field, renderer
        self._render: ChatRenderer | None = None

    def read(self, path: Path) -> None:
        """Read one file.

        Raises:
            RequestError: If it is in no known shape or has no row.
        """
        before = len(self.prompts) + len(self.left_out)
        for where, value in self._rows(path):
            try:
                self.prompts.append(self._prompt(value, path))
            except ValueError as error:
                why = " ".join(str(error).split())
                self.left_out.append(LeftOut(where=f"{path}, {where}", why=why))
        if len(self.prompts) + len(self.left_out) > before:
            return
        if path.suffix in (*COLUMN_FILES, ".csv"):
            raise RequestError(f"{path} holds no prompt: it has no rows")
        raise RequestError(f"{path} holds no prompt: give a list of texts, or one a line (.jsonl)")

    def _rows(self, path: Path) -> Iterator[Row]:
        if path.suffix == ".csv":
            return csv_rows(path)
        if path.suffix not in COLUMN_FILES:
            return _json_rows(path)
        table = column_rows(path)
        wanted = (self._text_field,) if self._text_field else (*_TEXT_FIELDS, *CHAT_FIELDS)
        if texts := [name for name in table.ignored if name in wanted]:
            raise RequestError(
                f"{path}: the column {texts[0]!a} is binary, not text; store it as strings"
            )
        self.ignored += [f"{path}: {name}" for name in table.ignored]
        return table.rows

    def _prompt(self, value: Any, path: Path) -> Prompt:
        """The prompt of a row.

        Raises:
            ValueError: If it is none, or could not be kept.
            RequestError: If it is a chat, and there is nothing to render it.
        """
        if isinstance(value, BadRow):
            raise ValueError(value.why)
        draft = _Draft.of(value, self._text_field)
        if draft.chat is None:
            return draft.prompt(draft.text, path.name, self._kind)
        if self._render is None:
            if self._open is None:
                raise RequestError(f"{path}: chats need a model's template, and none is here")
            self._render = self._open()
        try:
            text, about = self._render(draft.chat)
        except RequestError as error:  # of this chat: the template takes others
            raise ValueError(str(error)) from error
        return draft.rendered(text, about, path.name)


# --- Values of a file -------------------------------------------------------------------------


def _json_rows(path: Path) -> Iterator[Row]:
    if path.suffix == ".jsonl":
        return jsonl_rows(path)
    content = _text(path)
    if path.suffix != ".json" and _one_value_a_line(content):
        return jsonl_rows(path)
    return _values(path, content)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise RequestError(f"cannot read prompts from {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RequestError(f"{path}, line {line}: {NOT_UTF8}") from error


def _values(path: Path, content: str) -> Iterator[Row]:
    """("line N" that it begins on, value) of each prompt of a JSON file."""
    if content.lstrip().startswith("["):
        yield from _elements(path, content)
        return
    value = _parse(content, path)
    listed = value.get("prompts") if isinstance(value, dict) else None
    first_line = content[: len(content) - len(content.lstrip())].count("\n") + 1
    for item in listed if isinstance(listed, list) else [value]:
        yield f"line {first_line}", item


def _elements(path: Path, content: str) -> Iterator[Row]:
    """The elements of a JSON array, each with its line; the whole is parsed first."""
    values = _parse(content, path)
    position, line = content.index("[") + 1, 1
    counted = 0
    for value in values:
        while content[position] in " \t\r\n,":
            position += 1
        line += content.count("\n", counted, position)
        counted = position
        yield f"line {line}", value
        position = json.JSONDecoder().raw_decode(content, position)[1]


def _one_value_a_line(content: str) -> bool:
    first, _, rest = content.strip().partition("\n")
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return False
    return bool(rest)


def _parse(content: str, path: Path) -> Any:
    try:
        return strict_json(content)
    except json.JSONDecodeError as error:
        raise RequestError(
            f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg})"
        ) from error
    except ValueError as error:
        raise RequestError(f"{path}, line 1: not JSON ({error})") from error


# --- One prompt -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Draft:
    """A row whose text, or chat, is found; the other fields are as they came."""

    text: str
    chat: Chat | None
    fields: dict[str, Any]

    @classmethod
    def of(cls, value: Any, text_field: str | None) -> _Draft:
        """Find a row's text or chat.

        Raises:
            ValueError: If it has neither.
        """
        if isinstance(value, str) and text_field is None:
            value = {"text": value}
        if not isinstance(value, dict):
            raise ValueError(f"a prompt is a text or an object, not {_short(value)}")
        fields = {name: inner for name, inner in value.items() if inner is not None}
        chat, text = None, None
        if text_field is not None:
            if text_field not in fields:
                known = ", ".join(map(ascii, fields)) or "none"
                raise ValueError(f"no field {text_field!a}; there are {known:.200}")
            if isinstance(fields[text_field], list):
                chat = chat_of(fields.pop(text_field))
            else:
                text = _take(fields, (text_field,))
        else:
            chat = take_chat(fields)
            text = _take(fields, _TEXT_FIELDS)
        if chat is not None and text is not None:
            raise ValueError("a text and a chat; name one of them with --text-field")
        if chat is None and text is None:
            raise ValueError(
                f"no prompt text; give it as {' or '.join(_TEXT_FIELDS[:3])}, or name its field "
                "with --text-field"
            )
        if chat is None and not (text or "").strip():
            raise ValueError("the prompt is empty")
        return cls(text or "", chat, fields)

    def rendered(self, text: str, about: Mapping[str, object], source: str) -> Prompt:
        """The prompt of a chat whose text is this.

        Args:
            about: What is kept about the template.

        Raises:
            ValueError: If it could not be kept.
        """
        assert self.chat is not None
        users = [turn.content for turn in self.chat if turn.role == "user"]
        turns = {"user": users[-1], "assistant": answer_starts(self.chat)}
        draft = _Draft(text, None, {**self.fields, **turns, **about})
        return draft.prompt(text, source, "chat")

    def prompt(self, text: str, source: str, kind: PromptKind) -> Prompt:
        """The prompt.

        Raises:
            ValueError: If a field is wrong, or it could not be kept.
        """
        fields = dict(self.fields)
        named = _take(fields, _KIND_FIELDS)
        if named is not None and named not in _KINDS:
            raise ValueError(f"unknown kind {named!a:.60}; one of {', '.join(_KINDS)}")
        generator = _take(fields, _GENERATOR_FIELDS) or f"file:{source}"
        if fields.get("is_human_generated") is True:  # the predecessor's mark
            generator = "human"
        given_id = fields.pop("prompt_id", None)
        try:
            if given_id not in (None, prompt_id(text)):
                fields["source_id"] = given_id
            made = Prompt.of(
                text,
                kind=kind if named is None else _KINDS[named],
                generator=generator,
                name=_take(fields, ("name",)),
                category=_take(fields, ("category",)),
                extra=fields,
            )
        except UnicodeEncodeError as error:
            raise ValueError("the text is not valid Unicode") from error
        except ValidationError as error:
            raise ValueError(first_problem(error)) from error
        for column in (made.generator, made.category or ""):
            if "\0" in column:
                raise ValueError(f"a NUL in {_short(column)}")
        if why := unstorable(made):
            raise ValueError(f"it cannot be kept: {why}")
        return made


def _take(fields: dict[str, Any], names: tuple[str, ...]) -> str | None:
    """Remove the fields of these names; their one text, or None where all are absent."""
    found = {name: fields.pop(name) for name in names if fields.get(name) is not None}
    for name, value in found.items():
        if not isinstance(value, str):
            raise ValueError(f"{name} must be a text, not {_short(value)}")
    if len(set(found.values())) > 1:
        raise ValueError(f"{' and '.join(found)} differ; give one of them")
    return next(iter(found.values()), None)


def _short(value: Any) -> str:
    """A value as JSON, cut, with everything but ASCII escaped."""
    try:
        shown = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        shown = ascii(type(value).__name__)
    return shown if len(shown) <= _QUOTED else shown[:_QUOTED] + "…"
