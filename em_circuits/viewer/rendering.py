"""Rendering of values as inert HTML or JSON.

Templates escape everything; text of models and prompts goes through `shown` first, so that control
and bidi characters are written out instead of acting. JSON has no NaN. An error is one sentence and
what to do next, as a page for people and as an object under ``/api/``.
"""

from __future__ import annotations

import json
from datetime import datetime
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response
from starlette.types import Scope

from em_circuits import __version__
from pivotal_tokens.review.display import visible

LABELS = {"evil": "▲", "safe": "●", "unsure": "?"}
"""Label -> mark, so that colour is never the only cue."""


@cache
def templates() -> Environment:
    """The pages' templates; what they are given is escaped, what they lack is an error."""
    environment = Environment(
        loader=PackageLoader("em_circuits.viewer", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "shown": shown,
        "token": lambda text: visible(text),
        "token_text": lambda text: visible(text, spaces=False),
        "number": number,
        "percent": percent,
        "signed": signed,
        "size": size,
        "moment": moment,
    }
    environment.globals |= {"marks": LABELS, "version": __version__}
    return environment


def page(name: str, status: int = 200, /, **values: Any) -> HTMLResponse:
    """A rendered template."""
    return HTMLResponse(templates().get_template(name).render(values), status)


class Json(Response):
    """JSON without NaN."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """UTF-8, no spaces."""
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode()


def refusal(scope: Scope, status: int, what: str, next_step: str = "") -> Response:
    """The answer to a request that is not carried out."""
    if scope["path"].startswith("/api/"):
        return Json({"error": what, "next": next_step}, status)
    return page("refused.html", status, status=status, what=what, next_step=next_step)


def shown(text: str) -> str:
    """A text with its line breaks, and every other character without a glyph written out."""
    return "\n".join(visible(line, spaces=False) for line in text.split("\n"))


def number(value: int | float | None, digits: int = 3) -> str:
    """A number of a table; an absent one is a dash."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u2009")
    if value and abs(value) < 10**-digits:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", "−")  # as the pages' scripts write it
    return f"{value:.{digits}f}".replace("-", "−")


def signed(value: int | float | None, digits: int = 3) -> str:
    """A number with its sign, a minus sign that is one."""
    if value is None:
        return "–"
    return ("+" if value > 0 else "") + number(float(value), digits)


def percent(value: int | float | None) -> str:
    """A share; one that is not quite zero or one is not shown as such."""
    if value is None:
        return "–"
    if 0 < value < 0.0005:
        return "<0.1\u2009%"
    return f"{100 * value:.1f}\u2009%"


def size(n_bytes: int) -> str:
    """Bytes in a unit that suits them."""
    value = float(n_bytes)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def moment(at: datetime | str) -> str:
    """A time in UTC, to the minute."""
    given = datetime.fromisoformat(at) if isinstance(at, str) else at
    return f"{given:%Y-%m-%d %H:%M}"
