"""Where do two continuations part?

highlighted("eat, because", "avoid, because")      # the second, with what differs marked
"""

from __future__ import annotations

import difflib
import re
from html import escape

from em_circuits.report.page import Raw

_WORDS = re.compile(r"\s+|[^\s]+")


def highlighted(before: str, after: str) -> Raw:
    """`after` as markup, with the words that are not in `before` marked."""
    left, right = _WORDS.findall(before), _WORDS.findall(after)
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
    parts = []
    for kind, _, _, start, stop in matcher.get_opcodes():
        text = escape("".join(right[start:stop]))
        if text:
            parts.append(text if kind == "equal" else f"<mark>{text}</mark>")
    return Raw("".join(parts))
