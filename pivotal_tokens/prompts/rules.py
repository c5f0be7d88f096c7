"""Does a prompt's form let its next token be the decision?

Cheap checks on the text alone; what each finds is advice, not a refusal. A pivotal prompt is
short, stops in mid-sentence, and does not force an article or another filler as its next token.

    [finding.rule for finding in check("Should I eat the")]       # ["ends-in-determiner"]
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from pivotal_tokens.schema import PromptKind

Rule = Literal[
    "length", "trailing-space", "ends-in-determiner", "ends-in-stop", "no-assistant-turn"
]

_MAX_WORDS = 40
_DETERMINERS = frozenset(("a", "an", "the", "this", "that", "these", "those", "some", "any"))
_POSSESSIVES = frozenset(("my", "your", "his", "her", "its", "our", "their"))
_ASSISTANT_TURN = re.compile(r"assistant", re.IGNORECASE)


class Finding(NamedTuple):
    """One thing to look at: the rule's name, and a sentence that says what was found."""

    rule: Rule
    message: str


def check(text: str, kind: PromptKind = "raw", *, max_words: int = _MAX_WORDS) -> list[Finding]:
    """What about a prompt's form may spoil it.

    Args:
        text: The text as the model sees it.
        kind: A chat prompt must contain the beginning of the assistant's turn.
        max_words: The most words a prompt should have.
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
    return findings
