"""Display of a model's text on a terminal: exact, and without any effect on the terminal.

What has no visible glyph is written out: a newline as ``\\n``, other control, format, bidi and
unassigned characters as ``\\x1b`` or ``\\u202e``, a backslash twice. Token texts show each space as
``␣``. Widths are counted in terminal cells.

    visible(" a\\n\\u202e")          # '␣a\\\\n\\\\u202e'
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}
SPACE = "␣"
_MARKS_IN_A_ROW = 2
# Printable by Unicode's book, and yet nothing to see: fillers, joiners, variation selectors.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0100-\U000e01ef]"
)


_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def visible(text: str, *, spaces: bool = True) -> str:
    """The text in printable characters only, one line, no two texts alike.

    Args:
        text: Anything.
        spaces: Show a space as ``␣`` rather than as itself.
    """
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text.replace(" ", SPACE) if spaces else text
    return "".join(_glyphs(text, spaces))


def harmless(text: str) -> str:
    """A text of one or several lines without anything that a terminal obeys.

    Control and bidi characters are written as ``\\u001b``, which in JSON means the same. For what
    is made of many parts; a text on its own is better `visible`.
    """
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def width(text: str) -> int:
    """Terminal cells that a visible text takes."""
    return len(text) if text.isascii() else sum(_cells(character) for character in text)


def fit(text: str, cells: int) -> str:
    """A visible text cut (with ``…``) or padded to exactly so many cells."""
    if width(text) <= cells:
        return text + " " * (cells - width(text))
    shown, used = [], 0
    for character in text:
        if used + _cells(character) > cells - 1:
            break
        shown.append(character)
        used += _cells(character)
    return "".join(shown) + "…" + " " * (cells - 1 - used)


def wrap(text: str, cells: int) -> list[str]:
    """A text in lines of at most so many cells: broken at its newlines, which are shown."""
    return list(_wrapped(text, cells))


def wrap_visible(shown: str, cells: int) -> list[str]:
    """A visible text in lines of at most so many cells."""
    lines, start = [], 0
    while (end := _cut(shown, start, cells)) < len(shown):
        lines.append(shown[start:end])
        start = end
    return [*lines, shown[start:]]


@lru_cache(maxsize=8)  # a screen draws the same prompt at every key
def _wrapped(text: str, cells: int) -> tuple[str, ...]:
    lines: list[str] = []
    for line in text.splitlines(keepends=True) or [""]:
        lines += wrap_visible(visible(line, spaces=False), cells)
    if lines[-1].endswith(" "):
        bare = lines[-1].rstrip(" ")
        lines[-1] = bare + SPACE * (len(lines[-1]) - len(bare))
    return tuple(lines)


def _cut(text: str, start: int, cells: int) -> int:
    """Where to break: the end if all fits, else after the last space that fits, else anywhere."""
    used, end = 0, start
    while end < len(text) and used + _cells(text[end]) <= cells:
        used += _cells(text[end])
        end += 1
    if end == len(text):
        return end
    space = text.rfind(" ", start, end)
    return space + 1 if space > start else max(end, start + 1)


def _glyphs(text: str, spaces: bool) -> Iterator[str]:
    marks = _MARKS_IN_A_ROW  # a mark at the beginning would join what stands before the text
    for character in text:
        is_mark = unicodedata.category(character).startswith("M")
        marks = marks + 1 if is_mark else 0
        if character == " " and spaces:
            yield SPACE
        elif character in _NAMED:
            yield _NAMED[character]
        elif not character.isprintable() or _UNSEEN.match(character) or marks > _MARKS_IN_A_ROW:
            yield character.encode("unicode_escape").decode("ascii")
        elif character == SPACE:
            yield "\\u2423"
        else:
            yield character


def _cells(character: str) -> int:
    if character.isascii():
        return 1
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
