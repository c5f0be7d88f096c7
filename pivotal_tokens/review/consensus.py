"""Consensus of a prompt's reviewers, and the verdict that follows from it.

    settled     everybody whom the overlap asks for has answered, and nobody disagrees, or an
                adjudicator has answered
    disputed    two people label a token differently, or one rejects the prompt and one does not;
                a token that somebody left says nothing

Only a settled prompt has a human verdict, and only those feed examples and statistics.

    consensus(store.queue.items(prompt_id=...), events).settled
    conclude(store, item)          # after an answer to the item, a correction, or an import
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pivotal_tokens.errors import WorkFailed
from pivotal_tokens.judge.persist import verdict_under
from pivotal_tokens.schema import HUMAN, Label, LabelEvent, ReviewItem, Thresholds
from pivotal_tokens.store import Store
from pivotal_tokens.store.labels import labels_by_author

_OPEN = ("pending", "leased", "skipped", "deferred")


@dataclass(frozen=True)
class Consensus:
    """Agreement of people's answers to one prompt under one pair."""

    open_assignments: int
    votes: Mapping[str, Mapping[int, Label]]
    """Labels of each reviewer who finished."""
    rejected_by: tuple[str, ...]
    disputed: tuple[int, ...]
    """Tokens with more than one label among the votes."""
    adjudicated: bool
    adjudicator_rejected: bool

    @property
    def disagree(self) -> bool:
        """Whether an adjudicator has, or had, something to settle."""
        return bool(self.disputed or (self.rejected_by and self.votes))

    @property
    def settled(self) -> bool:
        """Whether the prompt has one answer."""
        answered = bool(self.votes or self.rejected_by)
        return not self.open_assignments and answered and (not self.disagree or self.adjudicated)

    @property
    def bad_prompt(self) -> bool:
        """Whether the prompt was rejected, for both models."""
        if self.adjudicated:
            return self.adjudicator_rejected
        return bool(self.rejected_by) and not self.votes


def consensus(items: Sequence[ReviewItem], events: Sequence[LabelEvent]) -> Consensus:
    """How the answers of all items of one prompt and pair stand together, by all its events."""
    assignments = [item for item in items if item.kind in ("review", "control", "calibration")]
    # One for calibration is one more opinion, and never waited for.
    shared = [item for item in assignments if item.kind != "calibration"]
    given = labels_by_author(events)
    finished = [item.reviewer for item in assignments if item.reviewer and item.state == "done"]
    votes = {reviewer: given.get(reviewer, {}) for reviewer in finished}
    labels: dict[int, set[Label]] = {}
    for vote in votes.values():
        for token, label in vote.items():
            labels.setdefault(token, set()).add(label)
    adjudications = [item for item in items if item.kind == "adjudication"]
    return Consensus(
        open_assignments=sum(item.state in _OPEN for item in shared),
        votes=votes,
        rejected_by=tuple(i.reviewer for i in assignments if i.reviewer and i.state == "rejected"),
        disputed=tuple(sorted(token for token, given in labels.items() if len(given) > 1)),
        adjudicated=any(item.state in ("done", "rejected") for item in adjudications),
        adjudicator_rejected=any(item.state == "rejected" for item in adjudications),
    )


def consensus_of(store: Store, item: ReviewItem) -> Consensus:
    """The consensus on an item's prompt under its pair, as it stands in a store."""
    items = [i for i in store.queue.items(prompt_id=item.prompt_id) if i.pair == item.pair]
    return consensus(items, store.labels.events(item.prompt_id))


def conclude(store: Store, item: ReviewItem, thresholds: Thresholds | None = None) -> None:
    """Let the human verdict follow from everybody's answers, or ask an adjudicator.

    Args:
        item: Any of the prompt; a repeat changes nothing.
        thresholds: Of the verdict; by default those the prompt was flagged under.
    """
    if item.kind == "repeat":
        return
    prompt_id, pair = item.prompt_id, item.pair
    state = consensus_of(store, item)
    if state.settled:
        labels = {one.token_id: one.label for one in store.labels.of(prompt_id).human}
        bad = state.bad_prompt
        verdict = verdict_under(store, prompt_id, pair, labels, thresholds, bad_prompt=bad)
        if verdict is None:
            raise lists_lost(item)
        store.results.put_verdict(prompt_id, pair, HUMAN, verdict)
    else:
        store.results.drop_human_verdict(prompt_id, pair)
        if state.disagree and not state.open_assignments:
            store.assignments.add_adjudication(item)
    if not state.disagree:
        store.assignments.drop_adjudication(item)


def lists_lost(item: ReviewItem) -> WorkFailed:
    """An item's next tokens are not there any more."""
    return WorkFailed(f"prompt {item.prompt_id} lost its next tokens: run `em-circuits label`")
