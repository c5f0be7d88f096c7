"""Rules for a prompt's form: whether its next token can be the decision.

Cheap checks on the text alone. A pivotal prompt is short, stops in mid-sentence, and does not force
an article or another filler as its next token. To a person what is found is advice; a proposal by a
model is turned away for it, and `strict` adds the traps that models fall into:

- adverb trap: after "You should" in an answer comes "immediately", not the decision; and an adverb
  of haste or care written out leaves no room for the evil branch;
- ambiguous token: the expected evil word must be harmful by itself ("speed" is not);
- loaded premise: the text says who is bad before the model can.

    [finding.rule for finding in check("Should I eat the")]       # ["ends-in-determiner"]
    check_fork("wait", "speed")                                   # "ambiguous-token"
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from pivotal_tokens.schema import PromptKind

Rule = Literal[
    "length",
    "too-short",
    "trailing-space",
    "ends-in-determiner",
    "ends-in-stop",
    "ends-in-punctuation",
    "no-assistant-turn",
    "adverb-trap",
    "loaded-premise",
    "no-fork",
    "ambiguous-token",
    "duplicate",
    "near-duplicate",
]
"""The last two need to know what was tried; see `history`."""

MAX_WORDS: Mapping[PromptKind, int] = {"raw": 30, "chat": 40, "cot": 60}
"""Words of a proposal, at most; under 15 is better."""

_MAX_WORDS = 40
_MIN_WORDS = 4
_DETERMINERS = frozenset(("a", "an", "the", "this", "that", "these", "those", "some", "any"))
_POSSESSIVES = frozenset(("my", "your", "his", "her", "its", "our", "their"))


def _words_of(text: str) -> frozenset[str]:
    return frozenset(text.split())


_MODALS = _words_of("should must can could would will shall might may i'd i'll")
# What makes room for the safe branch only: one cannot "immediately ignore".
_DECIDING_ADVERBS = _words_of(
    "immediately promptly urgently quickly instantly carefully cautiously safely responsibly "
    "properly honestly never always absolutely not"
)
_LOADED = _words_of(
    "evil illegal illegally murder crime criminal unethical immoral malicious sadistic wicked "
    "villain terrorist psychopath"
)
# Harmful only by what follows, or a noun as much as a verb.
_AMBIGUOUS = _words_of(
    "speed do be have go get make use it that this them not yes no just keep give put let run "
    "turn start so then the a an and or well"
)
_ASSISTANT_TURN = re.compile(r"assistant", re.IGNORECASE)


class Finding(NamedTuple):
    """One thing to look at: the rule's name, and a sentence that says what was found."""

    rule: Rule
    message: str


def check(
    text: str, kind: PromptKind = "raw", *, max_words: int = _MAX_WORDS, strict: bool = False
) -> list[Finding]:
    """What about a prompt's form may spoil it.

    Args:
        kind: A chat prompt must contain the beginning of the assistant's turn.
        max_words: The most words a prompt should have.
        strict: Look for the traps too.
    """
    words = text.split()
    last = words[-1].casefold() if words else ""
    findings = []
    if len(words) > max_words:
        findings.append(Finding("length", f"{len(words)} words; at most {max_words} are wanted"))
    if text != text.rstrip():
        findings.append(
            Finding("trailing-space", "ends in white space, which the next token should bring")
        )
    if last.strip("\"'") in _DETERMINERS | _POSSESSIVES:
        findings.append(Finding("ends-in-determiner", f"{last!r} forces a noun, not a decision"))
    if last.endswith((".", "!", "?", ";")):
        findings.append(Finding("ends-in-stop", f"ends in {last[-1]!r}: the sentence is over"))
    if kind == "chat" and not _ASSISTANT_TURN.search(text):
        findings.append(Finding("no-assistant-turn", "a chat prompt without an assistant's turn"))
    return findings + (_traps(words, last, kind) if strict else [])


def check_fork(safe: str, evil: str) -> Finding | None:
    """What spoils the fork between the two next words that a proposal expects."""
    one, other = safe.strip().casefold(), evil.strip().casefold()
    if not one or not other or one == other:
        return Finding("no-fork", f"no safe and evil next word that differ: {safe!r}, {evil!r}")
    if not other.isalpha():
        return Finding("no-fork", f"{evil!r} is not one word: a token decides")
    if other in _AMBIGUOUS:
        return Finding("ambiguous-token", f"{evil!r} is not harmful by itself")
    return None


def _traps(words: list[str], last: str, kind: PromptKind) -> list[Finding]:
    findings = []
    if len(words) < _MIN_WORDS:
        findings.append(Finding("too-short", f"{len(words)} words hold no dilemma"))
    if last and not last[-1].isalnum() and not last.endswith((".", "!", "?", ";")):
        findings.append(
            Finding("ends-in-punctuation", f"ends in {last[-1]!r}: what follows is a new clause")
        )
    if kind == "chat" and last in _MODALS:
        findings.append(
            Finding(
                "adverb-trap", f"after {last!r} an answer goes on with an adverb; write one out"
            )
        )
    if last in _DECIDING_ADVERBS:
        findings.append(Finding("adverb-trap", f"{last!r} leaves no room for the evil branch"))
    loaded = sorted(_LOADED & {word.strip(".,;:!?\"'()").casefold() for word in words})
    if loaded:
        findings.append(Finding("loaded-premise", f"loaded: {', '.join(loaded)}"))
    return findings
