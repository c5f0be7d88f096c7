"""Which notes fit into a budget of tokens, so that every group has its say?

Groups take turns: of each in order its best note that still fits, until nothing fits or nothing is
left. What is left out is counted by group, and said.

    fill([Note("found", "...")], budget=4000, count=counter()).left_out      # {"found": 0}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pivotal_tokens.schema import Frozen


class Note(Frozen):
    """One line about an earlier prompt; the first of a group is its best."""

    group: str
    text: str


@dataclass(frozen=True)
class Fill:
    """What fitted, and what did not."""

    notes: tuple[Note, ...]
    tokens: int
    used: dict[str, int]
    """Group -> notes that fitted."""
    left_out: dict[str, int]
    """Group -> notes that did not."""


def fill(
    notes: Sequence[Note],
    *,
    budget: int,
    count: Callable[[str], int],
    most: int | None = None,
) -> Fill:
    """Fill a budget with notes, group by group in turn.

    Args:
        notes: The best of each group first; groups take turns in the order they first appear.
        budget: Tokens, at most.
        count: Tokens of a text.
        most: Notes, at most.
    """
    waiting: dict[str, list[Note]] = {}
    for note in notes:
        waiting.setdefault(note.group, []).append(note)
    total = {group: len(listed) for group, listed in waiting.items()}
    taken: list[Note] = []
    tokens = 0
    while waiting and (most is None or len(taken) < most):
        for group in list(waiting):
            note = waiting[group].pop(0)
            if not waiting[group]:
                del waiting[group]
            cost = count(note.text) + 1
            if tokens + cost <= budget and (most is None or len(taken) < most):
                taken.append(note)
                tokens += cost
            elif tokens >= budget:
                waiting.clear()
                break
    used = {group: sum(note.group == group for note in taken) for group in total}
    return Fill(
        notes=tuple(note for group in total for note in taken if note.group == group),
        tokens=tokens,
        used=used,
        left_out={group: total[group] - used[group] for group in total},
    )
