"""Output of commands: JSON for programs, short tables for people.

    emit(result, as_json, describe)

A result is a pydantic model, or several (a line of JSON each). What a person reads is plain text of
at most 80 columns, without colours.
"""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import StringIO
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import click
from pydantic import BaseModel

from em_circuits.progress import above_bars
from pivotal_tokens.review.display import harmless, visible
from pivotal_tokens.review.display import width as cells_of
from pivotal_tokens.schema import Frozen
from pivotal_tokens.table_files import LeftOut

WIDTH = 79
_LEFT_OUT_SHOWN = 5
_MARK = r"(?:<\|\w{1,40}\|>|<(?:start|end)_of_turn>)"
_TURN = re.compile(rf"(?:\s*{_MARK}(?:(?:system|user|assistant|model)(?=\s|<))?)+\s*")
"""Marks of a chat template and the names of whose turn it is, as ChatML, Llama and Gemma write."""

Result = TypeVar("Result")
Command = TypeVar("Command", bound=Callable[..., Any])


class Printed(Frozen, use_attribute_docstrings=True):
    """Base of results that are of the command line alone."""


json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object (or one per line) on standard output."
)


def prints(model: Any, *, lines: bool = False) -> Callable[[Command], Command]:
    """Add ``--json`` to a command, and say for the documentation what it prints then.

    Args:
        model: The result, a pydantic model or a union of several; ``"package.module:Name"`` where
            its module imports much.
        lines: One a line, as many as there are.
    """

    def decorate(command: Command) -> Command:
        command.__dict__["prints"] = (model, lines)
        return json_option(command)

    return decorate


def emit(
    result: Result,
    as_json: bool = True,
    describe: Callable[[Result], Iterable[str]] | Sequence[str] | None = None,
    *,
    none: str = "none",
) -> None:
    """Print a result, as JSON or for a person.

    Args:
        result: A model; or several, which are a line of JSON each and one table.
        as_json: What ``--json`` said.
        describe: Its lines for a person, or the columns of a table (see `table_of`); by default its
            single values and a table of each list.
        none: Stands instead of an empty table.
    """
    several: Any = result if isinstance(result, list | tuple) else None
    if as_json:
        for one in [result] if several is None else several:
            record: Any = one
            if isinstance(one, BaseModel):
                record = one.model_dump(mode="json", by_alias=True)
            _print(json.dumps(record, ensure_ascii=False, allow_nan=False), err=False)
    elif callable(describe):
        for line in describe(result):
            say(line)
    elif several is not None:
        say(table_of(several, describe, none=none))
    else:
        say("\n".join(summary(result)))


def name_left_out(left_out: Sequence[LeftOut], kept: Path) -> Iterator[str]:
    """The rows of a file that were not taken, a line each; beyond a few, where all are named."""
    yield from (f"left out: {one.where}: {one.why}" for one in left_out[:_LEFT_OUT_SHOWN])
    if len(left_out) > _LEFT_OUT_SHOWN:
        yield f"left out: and {len(left_out) - _LEFT_OUT_SHOWN} more; {kept} names them"


def say(text: str, *, err: bool = False) -> None:
    """Print a line or several for a person, above bars that stand on the terminal; nothing of it,
    whoever wrote it, commands the terminal.

    Standard output is folded at spaces to `WIDTH` columns where a person reads it: on a terminal,
    or with `COLUMNS` set. Other programs get whole lines; a message on standard error is one line.
    """
    folds = not err and (sys.stdout.isatty() or "COLUMNS" in os.environ)
    _print("\n".join(map(_filled, text.split("\n"))) if folds else text, err=err)


def _filled(line: str) -> str:
    if cells_of(line) <= WIDTH or "em-circuits --" in line:  # a command to be typed stays whole
        return line
    return "\n".join(folded(line, len(line) - len(line.lstrip())))


def folded(line: str, indent: int = 0) -> list[str]:
    """A line at spaces into lines of at most `WIDTH` columns, all but the first indented."""
    kept: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.wrap(line, WIDTH, subsequent_indent=" " * indent, **kept)


def _print(text: str, *, err: bool) -> None:
    with above_bars(sys.stderr if err else sys.stdout):
        click.echo(harmless(text), err=err)


def summary(result: Any) -> Iterable[str]:
    """A result's single values, one a line, then a table of each list of models."""
    values = {name: getattr(result, name) for name in type(result).model_fields}
    lists = {name: value for name, value in values.items() if _is_list_of_models(value)}
    single = {name: value for name, value in values.items() if name not in lists}
    widest = max(map(len, single), default=0)
    for name, value in single.items():
        yield f"{name.replace('_', ' '):<{widest}}  {_cell(value)}"
    for name, value in lists.items():
        yield f"\n{name.replace('_', ' ')}"
        yield table_of(value)


def table_of(
    items: Sequence[BaseModel], columns: Sequence[str] | None = None, *, none: str = "none"
) -> str:
    """A table of models, a row each.

    Args:
        items: Of one kind.
        columns: Fields that are shown, all unless given: ``"event.token_id as token"`` is one of a
            part, under another name; ``"text:46"`` shows a prompt's last 46 characters on one line.
        none: Stands instead of an empty table.
    """
    if not items:
        return none
    header, values = [], []
    for column in columns or type(items[0]).model_fields:
        field, _, title = column.partition(" as ")
        path, _, width = field.partition(":")
        header.append(title or path.rpartition(".")[2].replace("_", " "))
        found = map(attrgetter(path), items)
        values.append([prompt_line(text, int(width)) for text in found] if width else list(found))
    return table(header, list(zip(*values, strict=True)))


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], *, width: int = WIDTH) -> str:
    """Columns aligned with spaces, numbers to the right; no line is longer than `width`.

    What does not fit is folded within its column.
    """
    numbers = [
        bool(rows) and all(_is_number(row[index]) for row in rows) for index in range(len(header))
    ]
    cells = [[_cell(value) for value in row] for row in rows]
    return _unfolded(header, cells, numbers, width) or _folded(header, cells, numbers, width)


def _unfolded(
    header: Sequence[str], cells: Sequence[Sequence[str]], numbers: Sequence[bool], width: int
) -> str | None:
    """The table where nothing has to be folded, in a hundredth of the time; else None."""
    lines = [header, *cells]
    if not header or not all(cell.isprintable() for line in lines for cell in line):
        return None
    sizes = [[cells_of(cell) for cell in line] for line in lines]
    widths = [max(column) for column in zip(*sizes, strict=True)]
    if sum(widths) + 2 * (len(widths) - 1) > width:
        return None
    drawn = []
    for line, taken in zip(lines, sizes, strict=True):
        parts = []
        for cell, own, most, number in zip(line, taken, widths, numbers, strict=True):
            space = " " * (most - own)
            parts.append(space + cell if number else cell + space)
        drawn.append("  ".join(parts).rstrip())
    return "\n".join(drawn)


def _folded(
    header: Sequence[str], cells: Sequence[Sequence[str]], numbers: Sequence[bool], width: int
) -> str:
    from rich.console import Console
    from rich.table import Table

    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for title, number in zip(header, numbers, strict=True):
        drawn.add_column(
            title, justify="right" if number else "left", no_wrap=number, overflow="fold"
        )
    for row in cells:
        drawn.add_row(*row)
    console = Console(
        file=StringIO(), width=width, color_system=None, markup=False, emoji=False, highlight=False
    )
    with console.capture() as captured:
        console.print(drawn)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def prompt_line(text: str, width: int) -> str:
    """A prompt on one line, its end kept; ``|`` stands for what a chat template puts between turns.

    The marks take most of a short line, and are the same in every prompt.
    """
    return one_line(_TURN.sub("|", text), width)


def one_line(text: str, width: int = 60) -> str:
    """A text on one line: newlines and control characters visible, the end kept."""
    shown = visible(text, spaces=False)
    return shown if len(shown) <= width else "…" + shown[-(width - 1) :]


def _is_list_of_models(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], BaseModel)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _cell(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}"
        case [str(), *_]:
            return ", ".join(map(str, value))
    return str(value)
