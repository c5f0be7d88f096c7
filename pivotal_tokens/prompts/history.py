"""History of prompts tried before, and the similarity of two texts.

Exact repetition goes by prompt id. Likeness is the Jaccard index of the sets of four-letter
pieces of both texts after normalising (Unicode form, case, punctuation, spaces):

    similarity(a, b) = |A & B| / |A | B|         1.0 = the same after normalising

Against a hundred thousand texts it is looked up, not scanned: two sets with J >= t share at least
ceil(t |A|) pieces, so of A's pieces ordered from rare to common, one among the first
|A| - ceil(t |A|) + 1 must be in B.

    history = PromptHistory(["Eat it? You should definitely"])
    history.find("eat it; you should definitely!")      # Likeness(text=..., similarity=1.0)
    history.add("another text")
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

from pivotal_tokens.schema import Prompt

LIKE = 0.8
"""Two texts at least so alike are one idea."""
_PIECE = 4


class Likeness(NamedTuple):
    """The text most like another, and how like."""

    text: str
    similarity: float

    @property
    def exact(self) -> bool:
        """The same after normalising."""
        return self.similarity == 1.0


class PromptHistory:
    """An index over texts that answers which of them one is (nearly) the same as."""

    def __init__(self, texts: Iterable[str] = (), *, like: float = LIKE) -> None:
        self._like = like
        self._texts: list[str] = []
        self._pieces: list[frozenset[str]] = []
        self._holders: dict[str, list[int]] = {}
        self._same: dict[str, int] = {}
        for text in texts:
            self.add(text)

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: str) -> None:
        """Count a text among those tried."""
        plain = normalise(text)
        if plain in self._same:
            return
        number = len(self._texts)
        own = frozenset(_pieces(plain))
        self._same[plain] = number
        self._texts.append(text)
        self._pieces.append(own)
        for piece in own:
            self._holders.setdefault(piece, []).append(number)

    def find(self, text: str) -> Likeness | None:
        """The tried text most like this one, if it is alike enough."""
        plain = normalise(text)
        if plain in self._same:
            return Likeness(self._texts[self._same[plain]], 1.0)
        own = _pieces(plain)
        rare = sorted(own, key=lambda piece: (len(self._holders.get(piece, ())), piece))
        needed = len(own) - math.ceil(self._like * len(own)) + 1
        near = {number for piece in rare[:needed] for number in self._holders.get(piece, ())}
        scored = ((len(own & self._pieces[n]) / len(own | self._pieces[n]), -n, n) for n in near)
        best = max(scored, default=None)
        if best is None or best[0] < self._like:
            return None
        return Likeness(self._texts[best[2]], best[0])


def own_words(prompt: Prompt) -> str:
    """A prompt's text without what a chat template adds: that is alike in all of them."""
    turns = [prompt.extra.get(name) for name in ("user", "assistant")]
    if all(isinstance(turn, str) for turn in turns):
        return "\n".join(str(turn) for turn in turns)
    return prompt.text


def first_of_each(prompts: Iterable[Prompt]) -> tuple[Prompt, ...]:
    """The prompts whose id did not come before among them."""
    new: dict[str, Prompt] = {}
    for prompt in prompts:
        new.setdefault(prompt.prompt_id, prompt)
    return tuple(new.values())


def normalise(text: str) -> str:
    """The text without what does not matter to a reader: form, case, punctuation, spacing."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", folded))


def similarity(one: str, other: str) -> float:
    """How alike two texts are, from 0 (no piece in common) to 1 (the same after normalising)."""
    first, second = normalise(one), normalise(other)
    if first == second:
        return 1.0
    mine, others = _pieces(first), _pieces(second)
    return len(mine & others) / len(mine | others)


def _pieces(text: str) -> set[str]:
    # A blank marks each end.
    padded = f" {text} "
    return {padded[i : i + _PIECE] for i in range(max(len(padded) - _PIECE + 1, 1))}
