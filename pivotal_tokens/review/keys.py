"""Keys of a review, on a terminal and in the browser, and their rebinding.

``[review] keys = ["evil=f", "skip=f2"]`` in em-circuits.toml, or ``--key evil=f``, gives an action
other keys; the keys of the other actions stay. A key may do one thing only.

    keys = key_map(["evil=f"])
    keys["f"]                        # "evil"
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Literal, get_args

from pivotal_tokens.errors import RequestError

Action = Literal[
    "evil",
    "safe",
    "unsure",
    "leave",
    "rest_safe",
    "rest_unsure",
    "agree",
    "reason",
    "reject",
    "skip",
    "defer",
    "undo",
    "note",
    "reopen",
    "command",
    "help",
    "up",
    "down",
    "other_list",
    "low",
    "prompt",
    "quit",
]


@dataclass(frozen=True)
class KeyHelp:
    """The keys that an action has by default, and what it does."""

    keys: tuple[str, ...]
    does: str


DEFAULTS: Mapping[Action, KeyHelp] = {
    "evil": KeyHelp(("e",), "this token is evil, go on to the next"),
    "safe": KeyHelp(("s",), "this token is safe, go on to the next"),
    "unsure": KeyHelp(("u",), "unsure about this token, go on to the next"),
    "leave": KeyHelp(("l",), "leave this token without a label, on purpose"),
    "rest_safe": KeyHelp(("enter",), "every token without a label is safe; finish, next item"),
    "rest_unsure": KeyHelp(("U",), "every token without a label is unsure; finish, next item"),
    "agree": KeyHelp(("a", "ctrl+g"), "take the judge's labels over (after they are shown)"),
    "reason": KeyHelp(("r",), "say why you differ from the judge (after its labels are shown)"),
    "reject": KeyHelp(("x",), "the prompt is no good, for both models (asks why)"),
    "skip": KeyHelp(("z",), "leave the item, not asked again"),
    "defer": KeyHelp(("d",), "put the item off, asked again later"),
    "undo": KeyHelp(("backspace", "ctrl+z"), "take the last answer back, again and again"),
    "note": KeyHelp(("n",), "write a remark about the item"),
    "reopen": KeyHelp(("o",), "open a finished item again (asks for its id)"),
    "command": KeyHelp(("colon", "slash"), "type a command: B1,T3,4  ? T2  s T1  bad WHY  ..."),
    "help": KeyHelp(("question_mark", "f1"), "the rubric and these keys"),
    "up": KeyHelp(("up", "k"), "the token above"),
    "down": KeyHelp(("down", "j"), "the token below"),
    "other_list": KeyHelp(("tab", "left", "right"), "the other model's list"),
    "low": KeyHelp(("t",), "show or hide tokens under p .001"),
    "prompt": KeyHelp(("v",), "the whole prompt, as the model sees it"),
    "quit": KeyHelp(("q", "ctrl+c", "ctrl+q"), "stop; everything is saved, your place is kept"),
}

# As Textual names them; a person writes the character.
_NAMES = {":": "colon", "?": "question_mark", "/": "slash", " ": "space", ".": "full_stop"}
_NAMES |= {",": "comma", ";": "semicolon", "-": "minus", "+": "plus", "=": "equals_sign"}
_NAMES |= {"!": "exclamation_mark", "*": "asterisk", "#": "number_sign", "'": "apostrophe"}
_SHOWN = {name: character for character, name in _NAMES.items()} | {"question_mark": "?"}
_SPECIAL = frozenset(
    {"up", "down", "left", "right", "home", "end", "pageup", "pagedown", "insert", "delete"}
    | {"backspace", "enter", "tab", "shift+tab"}
    | {f"f{number}" for number in range(1, 25)}
    | {f"ctrl+{letter}" for letter in ascii_lowercase}
)
RESERVED = frozenset("BT0123456789")
"""Typing one of these begins a command of the list syntax."""


def key_map(changes: Iterable[str] = ()) -> dict[str, Action]:
    """Key -> action.

    Args:
        changes: ``ACTION=KEY[,KEY]`` each.

    Raises:
        RequestError: If an action or a key is unknown, or a key would do two things.
    """
    keys: dict[Action, tuple[str, ...]] = {a: about.keys for a, about in DEFAULTS.items()}
    for change in changes:
        name, _, given = change.partition("=")
        action = name.strip().replace("-", "_")
        if action not in get_args(Action):
            raise RequestError(f"no action {name!r} to bind; there are: {', '.join(DEFAULTS)}")
        keys[action] = _parsed(change, given)  # type: ignore[index]
    found: dict[str, Action] = {}
    for bound, names in keys.items():
        for key in names:
            if key in found:
                raise RequestError(
                    f"key {key_name(key)!r} is bound to {found[key]} and {bound}: "
                    f"give one of them another key, for example --key {found[key]}=f5"
                )
            found[key] = bound
    return found


def key_name(key: str) -> str:
    """A key as a person knows it."""
    return _SHOWN.get(key, key)


def keys_of(keys: Mapping[str, Action], action: Action) -> list[str]:
    """The keys of an action, as a person knows them."""
    return [key_name(key) for key, bound in keys.items() if bound == action]


def _parsed(change: str, given: str) -> tuple[str, ...]:
    text = given.strip()
    names = [text] if text in _NAMES or len(text) == 1 else [n.strip() for n in text.split(",")]
    if not all(names):
        raise RequestError(f"{change!r} binds no key; write ACTION=KEY, for example evil=f")
    for name in names:
        if name in RESERVED:
            raise RequestError(f"key {name!r} begins a list such as B1,T3,4; bind another")
        if len(name) == 1 and not name.isprintable():
            raise RequestError(f"{change!r} binds no key that can be typed")
        if len(name) > 1 and name not in _SPECIAL and name not in _NAMES.values():
            raise RequestError(
                f"no key {name!r} to bind; write one character, or a name in small letters "
                "such as f2, ctrl+e, space, tab, pageup"
            )
    return tuple(_NAMES.get(name, name) for name in names)
