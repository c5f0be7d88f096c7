"""How many tokens is a text to a model, and how many can the model take?

count = counter()             # a quarter of the bytes, rounded up: an estimate
counter(tokenize)             # exact, where the model's tokenizer is at hand
context_window("o3")          # 200000
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

_BYTES_A_TOKEN = 4
_DEFAULT_WINDOW = 8192
# Tokens that a model reads and writes together, as its vendor states; the first prefix that fits.
_WINDOWS = (
    ("gpt-3.5-turbo", 16_385),
    ("gpt-4o", 128_000),
    ("gpt-4.1", 1_047_576),
    ("gpt-4-turbo", 128_000),
    ("gpt-4", 8_192),
    ("gpt-5", 400_000),
    ("o1-mini", 128_000),
    ("o1", 200_000),
    ("o3", 200_000),
    ("o4", 200_000),
)


@dataclass(frozen=True)
class Counter:
    """Counts tokens, and says whether the count is exact."""

    count: Callable[[str], int]
    exact: bool

    def __call__(self, text: str) -> int:
        return self.count(text)


def counter(tokenize: Callable[[str], Sequence[int]] | None = None) -> Counter:
    """A counter by a model's own tokenizer, or by bytes where there is none."""
    if tokenize is not None:
        return Counter(lambda text: len(tokenize(text)), exact=True)
    return Counter(lambda text: -(-len(text.encode()) // _BYTES_A_TOKEN), exact=False)


def context_window(model: str) -> int:
    """Tokens a model can take; a cautious 8,192 for one that is not known."""
    name = model.rsplit("/", 1)[-1].lower()
    return next((size for prefix, size in _WINDOWS if name.startswith(prefix)), _DEFAULT_WINDOW)
