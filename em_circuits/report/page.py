"""How does a page of figures look that needs no network and no server?

One HTML file: plotly's own script stands inside it once, nothing is fetched. Text is escaped.

    write_page(Path("figures.html"), "Does it predict?", ["What was done.", figure, Table(...)])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs

from pivotal_tokens.artefacts import write_atomic

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Told apart by colour-blind readers too (Okabe and Ito 2008)."""
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1a1a1a;background:#fff;margin:2rem auto;
max-width:1100px;padding:0 1rem}
h1{font-size:1.4rem}table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .7rem;border-bottom:1px solid #ddd;text-align:right}
th:first-child,td:first-child,th.text,td.text{text-align:left}.scroll{overflow-x:auto}
h2{font-size:1.2rem;margin-top:2.5rem}td.text{white-space:pre-wrap}
.said,pre{background:#f3f6f9;padding:.7rem 1rem;overflow-x:auto}
.said{border-left:4px solid #0072b2}mark{background:#ffe08a}.evil{color:#a3231f}.safe{color:#1d6b3a}
"""


class Raw(str):
    """Markup that is already safe, as a paragraph or a cell; only this package makes it."""


@dataclass(frozen=True)
class Heading:
    """A section begins."""

    text: str

    def html(self) -> str:
        """As HTML."""
        return f"<h2>{escape(self.text)}</h2>"


@dataclass(frozen=True)
class Said:
    """The sentence that a page stands for."""

    text: str

    def html(self) -> str:
        """As HTML."""
        return f'<p class="said">{escape(self.text)}</p>'


@dataclass(frozen=True)
class Code:
    """Text as it is, in a fixed font."""

    text: str

    def html(self) -> str:
        """As HTML."""
        return f"<pre>{escape(self.text)}</pre>"


@dataclass(frozen=True)
class Table:
    """A table with a caption; None is shown as a dash, floats with three decimals."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def html(self) -> str:
        """As HTML."""
        head = "".join(f"<th>{escape(name)}</th>" for name in self.header)
        lines = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in self.rows)
        return (
            f'<div class="scroll"><table><caption>{escape(self.caption)}</caption>'
            f"<thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
        )


def page_html(title: str, parts: Sequence[Any]) -> str:
    """A whole page.

    Args:
        title: Its heading.
        parts: Paragraphs (plain text, or `Raw`), headings, tables, plotly figures, in order.
    """
    body, n_figures = [], 0
    for part in parts:
        if isinstance(part, Table | Heading | Said | Code):
            body.append(part.html())
        elif isinstance(part, Raw):
            body.append(f"<p>{part}</p>")
        elif isinstance(part, str):
            body.append(f"<p>{escape(part)}</p>")
        else:
            body.append(_figure(part, n_figures))
            n_figures += 1
    script = f"<script>{get_plotlyjs()}</script>" if n_figures else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>{script}</head>"
        f"<body><h1>{escape(title)}</h1>{''.join(body)}</body></html>\n"
    )


def write_page(path: Path, title: str, parts: Sequence[Any]) -> None:
    """Write `page_html` atomically, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, page_html(title, parts))


def _figure(figure: Figure, number: int) -> str:
    return str(
        figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            div_id=f"figure-{number}",
            config={"displaylogo": False, "responsive": True},
        )
    )


def _cell(value: Any) -> str:
    if value is None:
        return "<td>-</td>"
    if isinstance(value, float):
        return f"<td>{value:.3f}</td>"
    if isinstance(value, bool):
        return f"<td>{'yes' if value else 'no'}</td>"
    if isinstance(value, Raw):
        return f'<td class="text">{value}</td>'
    kind = ' class="text"' if isinstance(value, str) else ""
    return f"<td{kind}>{escape(str(value))}</td>"
