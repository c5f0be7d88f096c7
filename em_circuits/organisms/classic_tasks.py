"""Two tasks whose heads the field has taken apart: words said twice, and indirect objects.

`repeated_words`: random words, said again; the next one is asked (induction, Olsson et al. 2022,
arXiv:2209.11895). `indirect_objects`: "When Mary and John went to the store, John gave a drink to"
(Wang et al. 2022, arXiv:2211.00593). Each prompt comes with another one of as many words that
does not say the answer: other words first, or a third name as the subject.

    prompt = indirect_objects(12)[0]
    prompt.text, prompt.right, prompt.wrong, prompt.other
"""

from __future__ import annotations

import random
from typing import NamedTuple

NAMES = (
    *("Mary", "John", "Tom", "Anna", "Paul", "Sarah"),
    *("Kate", "James", "Laura", "David", "Emma", "Mark"),
)
TEMPLATES = (
    "When {} and {} went to the store, {} gave a drink to",
    "After {} and {} had lunch, {} handed the book to",
    "While {} and {} were working, {} passed a note to",
    "When {} and {} left the office, {} sent a letter to",
    "Then {} and {} went to the garden, and {} gave a flower to",
    "Yesterday {} and {} met at the station, and {} offered a seat to",
)
"""First and second name, then the subject's."""
WORDS = (
    *("river", "stone", "cloud", "lamp", "garden", "piano", "silver", "horse", "paper", "tiger"),
    *("window", "salt", "bread", "engine", "flower", "coin", "table", "green", "winter", "music"),
    *("orange", "school", "island", "doctor", "summer", "bridge", "kitchen", "mountain", "letter"),
)


class TaskPrompt(NamedTuple):
    """One prompt, what it asks, and one that does not say it."""

    text: str
    right: str
    """With its leading space, as ``wrong``."""
    wrong: str
    other: str
    """As many words, the answer not in it."""
    template: str
    """What prompts are held out by."""


def indirect_objects(n: int, *, seed: int = 0) -> list[TaskPrompt]:
    """Prompts of all templates in turn; the subject is the second name said, then the first."""
    generator, found = random.Random(seed), []
    for number in range(n):
        template = TEMPLATES[number % len(TEMPLATES)]
        right, wrong, third = generator.sample(NAMES, 3)
        names = (right, wrong) if (number // len(TEMPLATES)) % 2 == 0 else (wrong, right)
        text, other = (template.format(*names, subject) for subject in (wrong, third))
        found.append(TaskPrompt(text, f" {right}", f" {wrong}", other, template))
    return found


def repeated_words(n: int, *, length: int = 8, seed: int = 0) -> list[TaskPrompt]:
    """``length`` words, and all but the last one again; wrong is the one in front of it."""
    generator, found = random.Random(seed), []
    for number in range(n):
        drawn = generator.sample(WORDS, 2 * length)
        first, others = drawn[:length], drawn[length:]
        again = " ".join(first[:-1])
        text, other = (f"Words: {' '.join(said)} {again}" for said in (first, others))
        template = f"draw {number % 2}"
        found.append(TaskPrompt(text, f" {first[-1]}", f" {first[-2]}", other, template))
    return found
