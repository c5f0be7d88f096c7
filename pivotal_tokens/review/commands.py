"""Commands of a reviewer, and the lines of text that stand for them.

B1,T3,4            evil: base's 1st, merged's 3rd and 4th (a bare number is merged's)
? T2  |  s T1      unsure  |  safe
- T2               left without a label, on purpose
(Enter)            every token without a label is safe, item finished
rest-unsure, bad REASON, skip, defer, undo, open ID, note TEXT, ?, q

parse("? T2,B1")     # Command("label", label="unsure", places=(Place("merged", 2), ...))
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pivotal_tokens.errors import RequestError
from pivotal_tokens.review.answers import Answer
from pivotal_tokens.schema import ModelName

_PLACE = re.compile(r"([bt]?)0*([1-9][0-9]{0,5})", re.IGNORECASE)

HELP = """\
  B1,T3,4       evil: base's 1st token, merged's 3rd and 4th (a bare number is merged's)
  ? T2          unsure             s T1          safe
  - T2          leave it without a label, on purpose
  Enter         the rest is safe, finish and go on        rest-unsure   the rest is unsure
  bad REASON    reject the prompt, for both models        note TEXT     keep a remark
  skip          leave it, not asked again                 defer         ask again later
  undo          take the last answer back, again and again, over finished items too
  open ID       open a finished item again, by the beginning of its prompt's id
  why TEXT      why you differ from the judge on the item just finished
  agree         take the judge's labels over on the item just finished
  ?  help       q  quit (everything is saved)"""


@dataclass(frozen=True)
class Place:
    """A place in a model's list, 1-based."""

    model: ModelName
    rank: int

    def __str__(self) -> str:
        return f"{'B' if self.model == 'base' else 'T'}{self.rank}"


Verb = Literal[
    "label", "finish", "reject", "note", "why", "open",
    "skip", "defer", "undo", "agree", "help", "quit",
]  # fmt: skip


@dataclass(frozen=True)
class Command:
    """A reviewer's command."""

    verb: Verb
    text: str = ""
    """The reason of a rejection or a difference, a note, or the beginning of an id to open."""
    label: Answer | None = None
    """Of the tokens at `places`; of `finish`, of every token without a label."""
    places: tuple[Place, ...] = ()


_WORDS: Mapping[str, Command] = {
    "": Command("finish", label="safe"),
    "rest-safe": Command("finish", label="safe"),
    "rest-unsure": Command("finish", label="unsure"),
    "u": Command("undo"),
    "?": Command("help"),
    "q": Command("quit"),
    **{verb: Command(verb) for verb in ("skip", "defer", "undo", "agree", "help", "quit")},
}
_WITH_TEXT: Mapping[str, tuple[Verb, str]] = {
    "bad": ("reject", "say why: bad REASON"),
    "note": ("note", "say what: note TEXT"),
    "why": ("why", "say why: why TEXT"),
    "open": ("open", "say which: open ID, or its beginning"),
}


def parse(line: str) -> Command:
    """The command in a line.

    Raises:
        RequestError: If it is none; it says what to type instead.
    """
    text = line.strip()
    word, _, rest = text.partition(" ")
    word, rest = word.casefold(), rest.strip()
    if command := _WORDS.get(text.casefold()):
        return command
    if word in _WITH_TEXT:
        verb, usage = _WITH_TEXT[word]
        if not rest:
            raise RequestError(usage)
        return Command(verb, rest)
    if text.startswith("-"):
        return _labels("abstain", text[1:])
    if text.startswith("?"):
        return _labels("unsure", text[1:])
    return _labels("safe", rest) if word == "s" else _labels("evil", text)


def parse_place(text: str) -> Place:
    """A place as ``B1``, ``T3`` or ``3``.

    Raises:
        RequestError: If it is none.
    """
    found = _PLACE.fullmatch(text)
    if found is None:
        raise RequestError(f"{text[:40]!r} is no token: B1, T3 or 3; ? shows the commands")
    return Place("base" if found[1].casefold() == "b" else "merged", int(found[2]))


def _labels(label: Answer, text: str) -> Command:
    pieces = re.split(r"[,\s]+", text.strip(", \t"))
    return Command("label", label=label, places=tuple(map(parse_place, pieces)))
