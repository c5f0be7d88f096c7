"""Commands of a reviewer, and the lines of text that they are typed as.

B1,T3,4            evil: base's 1st, merged's 3rd and 4th (a bare number is merged's)
? T2  |  s T1      unsure  |  safe
- T2               left without a label, on purpose
(Enter)            every token without a label is safe, item finished
rest-unsure, bad REASON, skip, defer, undo, open ID, note TEXT, ?, q

parse("? T2,B1")     # LabelTokens(label="unsure", places=(Place("merged", 2), ...))
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from pivotal_tokens.errors import RequestError
from pivotal_tokens.review.answers import Answer
from pivotal_tokens.schema import Label, ModelName

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


@dataclass(frozen=True)
class LabelTokens:
    """Give these tokens a label, or leave them without one on purpose."""

    label: Answer
    places: tuple[Place, ...]


@dataclass(frozen=True)
class LabelRest:
    """Give every token without a label this one, and finish."""

    label: Label


@dataclass(frozen=True)
class Reject:
    """The prompt is no good."""

    reason: str


@dataclass(frozen=True)
class Note:
    """Keep a remark."""

    text: str


@dataclass(frozen=True)
class Why:
    """Why the reviewer differs from the judge, once its labels were shown."""

    text: str


@dataclass(frozen=True)
class Reopen:
    """Open a finished item again."""

    prefix: str


@dataclass(frozen=True)
class Simple:
    """A word that stands for itself."""

    word: Literal["skip", "defer", "undo", "help", "quit", "agree"]


@dataclass(frozen=True)
class NotUnderstood:
    """Nothing was done; `why` says what to type instead."""

    why: str


Command = LabelTokens | LabelRest | Reject | Note | Why | Reopen | Simple | NotUnderstood

_SIMPLE: dict[str, Simple] = {
    "skip": Simple("skip"),
    "defer": Simple("defer"),
    "undo": Simple("undo"),
    "agree": Simple("agree"),
    "u": Simple("undo"),
    "help": Simple("help"),
    "?": Simple("help"),
    "q": Simple("quit"),
    "quit": Simple("quit"),
}


def parse(line: str) -> Command:
    """The command in a line; never an exception."""
    text = line.strip()
    word, _, rest = text.partition(" ")
    word, rest = word.casefold(), rest.strip()
    if not text or text.casefold() == "rest-safe":
        return LabelRest("safe")
    if text.casefold() == "rest-unsure":
        return LabelRest("unsure")
    if text.casefold() in _SIMPLE:
        return _SIMPLE[text.casefold()]
    if word == "bad":
        return Reject(rest) if rest else NotUnderstood("say why: bad REASON")
    if word == "note":
        return Note(rest) if rest else NotUnderstood("say what: note TEXT")
    if word == "why":
        return Why(rest) if rest else NotUnderstood("say why: why TEXT")
    if word == "open":
        return Reopen(rest) if rest else NotUnderstood("say which: open ID, or its beginning")
    if text.startswith("-"):
        return _tokens("abstain", text[1:])
    if text.startswith("?"):
        return _tokens("unsure", text[1:])
    if word == "s":
        return _tokens("safe", rest)
    return _tokens("evil", text)


def parse_place(text: str) -> Place:
    """A place as ``B1``, ``T3`` or ``3``.

    Raises:
        RequestError: If it is none.
    """
    found = _PLACE.fullmatch(text)
    if found is None:
        raise RequestError(f"{text[:40]!r} is no token: B1, T3 or 3; ? shows the commands")
    return Place("base" if found[1].casefold() == "b" else "merged", int(found[2]))


def _tokens(label: Answer, text: str) -> LabelTokens | NotUnderstood:
    try:
        pieces = re.split(r"[,\s]+", text.strip(", \t"))
        return LabelTokens(label, tuple(map(parse_place, pieces)))
    except RequestError as error:
        return NotUnderstood(str(error))
