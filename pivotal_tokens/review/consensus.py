"""Have enough people answered a prompt, and do they agree?

    settled     every seat that the overlap asks for is answered, and nobody disagrees, or an
                adjudicator has answered
    disputed    two people label a token differently, or one rejects the prompt and one does not;
                a token that somebody left says nothing

Only a settled prompt has a human verdict, and only those feed examples and statistics.

    consensus(store.queue.items(prompt_id=...), events).settled
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pivotal_tokens.schema import Label, LabelEvent, ReviewItem
from pivotal_tokens.store.labels import labels_by_author

_OPEN = ("pending", "leased", "skipped", "deferred")


@dataclass(frozen=True)
class Consensus:
    """How the people's answers to one prompt under one pair stand together."""

    open_seats: int
    votes: Mapping[str, Mapping[int, Label]]
    """Labels of each reviewer who finished."""
    rejected_by: tuple[str, ...]
    disputed: tuple[int, ...]
    """Tokens with more than one label among the votes."""
    adjudicated: bool
    adjudicator_rejected: bool

    @property
    def disagree(self) -> bool:
        """Is there anything that an adjudicator has to settle, or had?"""
        return bool(self.disputed or (self.rejected_by and self.votes))

    @property
    def settled(self) -> bool:
        """Does the prompt have one answer?"""
        answered = bool(self.votes or self.rejected_by)
        return not self.open_seats and answered and (not self.disagree or self.adjudicated)

    @property
    def bad_prompt(self) -> bool:
        """Was the prompt rejected, for both models?"""
        if self.adjudicated:
            return self.adjudicator_rejected
        return bool(self.rejected_by) and not self.votes


def consensus(items: Sequence[ReviewItem], events: Sequence[LabelEvent]) -> Consensus:
    """How answers stand together.

    Args:
        items: Every queue item of one prompt and pair.
        events: Every label event of the prompt.
    """
    seats = [item for item in items if item.kind in ("review", "control", "calibration")]
    # A seat made for calibration is one more opinion, and never waited for.
    shared = [item for item in seats if item.kind != "calibration"]
    given = labels_by_author(events)
    votes = {i.reviewer: given.get(i.reviewer, {}) for i in seats if i.reviewer and _done(i)}
    labels: dict[int, set[Label]] = {}
    for vote in votes.values():
        for token, label in vote.items():
            labels.setdefault(token, set()).add(label)
    adjudications = [item for item in items if item.kind == "adjudication"]
    return Consensus(
        open_seats=sum(item.state in _OPEN for item in shared),
        votes=votes,
        rejected_by=tuple(i.reviewer for i in seats if i.reviewer and i.state == "rejected"),
        disputed=tuple(sorted(token for token, given in labels.items() if len(given) > 1)),
        adjudicated=any(item.state in ("done", "rejected") for item in adjudications),
        adjudicator_rejected=any(item.state == "rejected" for item in adjudications),
    )


def _done(item: ReviewItem) -> bool:
    return item.state == "done"
