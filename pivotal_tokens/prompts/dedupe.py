"""Which prompts are new, and how alike are two texts?

Exact repetition goes by prompt id. Likeness is the Jaccard index of the sets of four-letter
pieces of both texts after normalising (Unicode form, case, punctuation, spaces):

    similarity(a, b) = |A & B| / |A | B|         1.0 = the same after normalising

    split_new(prompts, known={"44a71bc74c37"}).new
    similarity("Eat it? You should", "eat it; you should!")      # 1.0
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container, Iterable
from dataclasses import dataclass

from pivotal_tokens.schema import Prompt

_PIECE = 4


@dataclass(frozen=True)
class Split:
    """Prompts parted into first comers and repetitions, each in the order they came."""

    new: tuple[Prompt, ...]
    repeated: tuple[Prompt, ...]


def split_new(prompts: Iterable[Prompt], *, known: Container[str] = frozenset()) -> Split:
    """Part prompts by whether their id is in `known` or came before among them."""
    new: dict[str, Prompt] = {}
    repeated: list[Prompt] = []
    for prompt in prompts:
        if prompt.prompt_id in new or prompt.prompt_id in known:
            repeated.append(prompt)
        else:
            new[prompt.prompt_id] = prompt
    return Split(new=tuple(new.values()), repeated=tuple(repeated))


def normalise(text: str) -> str:
    """The text without what does not matter to a reader: form, case, punctuation, spacing."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", folded))


def similarity(one: str, other: str) -> float:
    """How alike two texts are, from 0 (no piece in common) to 1 (the same after normalising)."""
    first, second = normalise(one), normalise(other)
    if first == second:
        return 1.0
    mine, others = pieces(first), pieces(second)
    return len(mine & others) / len(mine | others)


def nearest(text: str, others: Iterable[Prompt]) -> tuple[Prompt, float] | None:
    """The prompt most like a text, and how like; None without prompts."""
    scored = ((prompt, similarity(text, prompt.text)) for prompt in others)
    return max(scored, key=lambda pair: pair[1], default=None)


def pieces(text: str) -> set[str]:
    """The four-letter pieces of a normalised text, its ends marked."""
    padded = f" {text} "
    return {padded[i : i + _PIECE] for i in range(max(len(padded) - _PIECE + 1, 1))}
