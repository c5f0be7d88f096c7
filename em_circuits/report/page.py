"""Self-contained pages of figures: no network, no server.

One HTML file: plotly's own script stands inside it once (`pivotal_tokens.figures`), nothing is
fetched. Text is escaped.
Colours are dark where the reader's system is, or where the address ends in ``#dark``.

    parts = ["What was done.", figure, Table(...)]
    write_page(Path("figures.html"), "Does it predict?", parts, inputs={"pair": key}, config={})
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from plotly.graph_objects import Figure

from em_circuits.cache import CachedTable
from pivotal_tokens.artefacts import sha256_file, write_atomic, write_provenance
from pivotal_tokens.figures import figure_html, plotly_html

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8b857a")
"""Distinct for colour-blind readers too (Okabe and Ito 2008; grey for their black), on light and
dark pages."""


@dataclass(frozen=True)
class Heading:
    """A section begins."""

    text: str


@dataclass(frozen=True)
class Headline:
    """The sentence that sums up a page."""

    text: str


@dataclass(frozen=True)
class Code:
    """Text as it is, in a fixed font."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table with a caption; None is shown as a dash, floats with three decimals.

    A cell of `Markup` is shown as it is; only this package makes it, of escaped text.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]

    @classmethod
    def of(cls, caption: str, columns: dict[str, str] | Sequence[str], lines: Any) -> Table:
        """Attributes (or items) of some lines; `columns` maps them to their headings."""
        header = columns.values() if isinstance(columns, dict) else columns
        rows = [
            [line[name] if isinstance(line, dict) else getattr(line, name) for name in columns]
            for line in lines
        ]
        return cls(caption, tuple(header), rows)


def page_html(title: str, parts: Sequence[Any]) -> str:
    """A whole page."""
    shown: list[tuple[str, Any]] = []
    figures = 0
    for part in parts:
        if isinstance(part, Figure):
            shown.append(("Figure", _figure(part, figures)))
            figures += 1
        else:
            shown.append((type(part).__name__, part))
    plotly = Markup(plotly_html()) if figures else ""
    return _template().render(title=title, parts=shown, plotly=plotly)


def write_page(path: Path, title: str, parts: Sequence[Any], **provenance: Any) -> None:
    """Write `page_html` atomically, with the folders above it, and what `write_provenance` takes
    of it beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, page_html(title, parts))
    write_provenance(path, **provenance)


def write_markdown(path: Path, title: str, parts: Sequence[Any], **provenance: Any) -> None:
    """The same parts as Markdown; figures stand on the page alone."""
    lines = [f"# {_inline(title)}"]
    for part in parts:
        match part:
            case Heading(text):
                lines.append(f"## {_inline(text)}")
            case Headline(text):
                lines.append(f"**{_inline(text)}**")
            case Code(text):
                lines.append("\n".join(f"    {line}" for line in text.splitlines()))
            case Table(caption, header, rows):
                table = [header, ["---"] * len(header), *rows]
                if caption:
                    lines.append(f"{_inline(caption)}:")
                lines.append("\n".join(f"| {' | '.join(map(_inline, row))} |" for row in table))
            case Figure():
                continue
            case _:
                lines.append(_inline(part))
    write_atomic(path, "\n\n".join(lines) + "\n")
    write_provenance(path, **provenance)


def write_table_report(table: CachedTable, suffix: str, title: str, parts: Sequence[Any]) -> Path:
    """The report beside a table, with its provenance: ``.md`` or ``.html``; returns its path."""
    path = table.json_path.with_suffix(suffix)
    write = write_page if suffix == ".html" else write_markdown
    inputs = {"table": sha256_file(table.json_path)}
    write(path, title, parts, inputs=inputs, config={}, key=table.key)
    return path


def _inline(value: Any) -> str:
    """A cell or a sentence on one line, in which nothing is taken for a mark."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.3f}"
    text = " ".join(str(value).split())
    return text if text == "---" else re.sub(r"([\\`*_<>|\[\]#])", r"\\\1", text)


def styled(figure: Figure, height: int, **layout: Any) -> Figure:
    """A figure in the house's look."""
    return figure.update_layout(template="plotly_white", height=height, **layout)


def error_bars(
    values: Sequence[float | None], low: Sequence[float | None], high: Sequence[float | None]
) -> dict[str, Any]:
    """Plotly's bars from each value to the ends of its interval; none where there is no end."""

    def reach(ends: Sequence[float | None], side: int) -> list[float]:
        return [
            0.0 if value is None or end is None else max(side * (end - value), 0.0)
            for value, end in zip(values, ends, strict=True)
        ]

    return {
        "type": "data",
        "symmetric": False,
        "array": reach(high, 1),
        "arrayminus": reach(low, -1),
    }


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("em_circuits.report"), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("page.html")


def _figure(figure: Figure, number: int) -> Markup:
    figure.update_layout(paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)")
    return Markup(figure_html(figure, number))
