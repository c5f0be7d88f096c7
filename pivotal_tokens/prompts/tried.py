"""Was this, or nearly this, tried before?

Likeness is `dedupe.similarity`: Jaccard over four-letter pieces. Against a hundred thousand texts
it is looked up, not scanned: two sets with J >= t share at least ceil(t |A|) pieces, so of A's
pieces ordered from rare to common, one among the first |A| - ceil(t |A|) + 1 must be in B.

    tried = Tried(["Eat it? You should definitely"])
    tried.find("eat it; you should definitely!")      # Likeness(text=..., similarity=1.0)
    tried.add("another text")
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from pivotal_tokens.prompts.dedupe import normalise, pieces
from pivotal_tokens.schema import Prompt

LIKE = 0.8
"""Two texts at least so alike are one idea."""


class Likeness(NamedTuple):
    """The text most like another, and how like."""

    text: str
    similarity: float

    @property
    def exact(self) -> bool:
        """The same after normalising."""
        return self.similarity == 1.0


class Tried:
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
        """Count a text among the tried ones."""
        plain = normalise(text)
        if plain in self._same:
            return
        number = len(self._texts)
        own = frozenset(pieces(plain))
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
        own = pieces(plain)
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
