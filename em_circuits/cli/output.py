"""How does a command print: JSON for programs, short tables for people?"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import click

from em_circuits.progress import above_bars

json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object (or one per line) on standard output."
)


def emit(value: Any) -> None:
    """Print one JSON value on one line: UTF-8, no NaN."""
    say(json.dumps(value, ensure_ascii=False, allow_nan=False))


def say(text: str) -> None:
    """Print a line or several, above bars that stand on the terminal."""
    with above_bars(sys.stdout):
        click.echo(text)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], *, width: int = 79) -> str:
    """Columns aligned with spaces, numbers to the right; no line is longer than `width`."""
    cells = [[_cell(value) for value in row] for row in rows]
    columns = list(zip(header, *cells, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    right = [all(_is_number(row[i]) for row in rows) for i in range(len(header))] if rows else []

    def line(row: Sequence[str]) -> str:
        parts = [
            cell.rjust(w) if right and r else cell.ljust(w)
            for cell, w, r in zip(row, widths, right or [False] * len(row), strict=True)
        ]
        return "  ".join(parts).rstrip()[:width]

    return "\n".join(line(row) for row in [list(header), *cells])


def one_line(text: str, width: int = 60) -> str:
    """A prompt on one line: newlines and control characters visible, the end kept."""
    from pivotal_tokens.review.display import visible

    shown = visible(text, spaces=False)
    return shown if len(shown) <= width else "…" + shown[-(width - 1) :]


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
