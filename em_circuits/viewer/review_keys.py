"""The terminal's keys and rubric, as the review page of a browser takes them.

`pivotal_tokens.review.keys` says which key does what, names keys as Textual does and is rebound in
em-circuits.toml; a browser names them otherwise, and keeps a few for itself.

    page = review_setup(key_map(["evil=f"]))
    page["keys"]["f"], page["hints"]["undo"]          # "evil", "⌫"
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pivotal_tokens.review.keys import DEFAULTS, RESERVED, Action, shown
from pivotal_tokens.review.rubric import ADVICE, MEANINGS, SUPPOSE
from pivotal_tokens.review.screen import LOW
from pivotal_tokens.review.session import ASKING

_EVENTS = {
    **{name: f"Arrow{name.capitalize()}" for name in ("up", "down", "left", "right")},
    **{name: name.capitalize() for name in ("home", "end", "insert", "delete", "enter", "tab")},
    **{f"f{number}": f"F{number}" for number in range(1, 25)},
    "backspace": "Backspace",
    "pageup": "PageUp",
    "pagedown": "PageDown",
    "shift+tab": "shift+Tab",
    "space": " ",
}
"""Textual's name -> `KeyboardEvent.key`, "ctrl+" or "shift+" before it; others are the same."""
_KEPT = frozenset(f"ctrl+{letter}" for letter in "acnqtvwx")
"""The clipboard's, and those that a browser never gives to a page."""
_SIGNS = {
    "Backspace": "⌫",
    "ArrowUp": "↑",
    "ArrowDown": "↓",
    "ArrowLeft": "←",
    "ArrowRight": "→",
    " ": "Space",
    "shift+Tab": "Shift+Tab",
}


def browser_keys(keys: Mapping[str, Action]) -> dict[str, Action]:
    """Key as a browser names it -> action; what a browser keeps for itself is left out."""
    return {
        _EVENTS.get(name, shown(name)): action for name, action in keys.items() if name not in _KEPT
    }


def key_help(keys: Mapping[str, Action]) -> list[tuple[tuple[str, ...], str]]:
    """(keys as a person knows them, what they do) of every action that has a key here."""
    named: dict[Action, list[str]] = {}
    for key, action in browser_keys(keys).items():
        named.setdefault(action, []).append(_SIGNS.get(key, key))
    return [(tuple(named[action]), DEFAULTS[action].does) for action in DEFAULTS if action in named]


def review_setup(keys: Mapping[str, Action]) -> dict[str, Any]:
    """What the page's script is told before its first item, as JSON."""
    bound = browser_keys(keys)
    hints = {action: _SIGNS.get(key, key) for key, action in reversed(bound.items())}
    return {
        "keys": bound,
        "hints": hints,
        "begins_command": sorted(RESERVED),
        "low": LOW,
        "asking": {name: {"asks": one.asks, "does": one.does} for name, one in ASKING.items()},
        "rubric": rubric(),
    }


def rubric() -> dict[str, Any]:
    """By what a reviewer decides, piece by piece."""
    return {"suppose": SUPPOSE, "meanings": dict(MEANINGS), "advice": list(ADVICE)}
