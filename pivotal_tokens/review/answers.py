"""Labels of one reviewer: those given, and the next one recorded.

An answer is a batch of label events, one for each token whose label changes. Taking an answer back
is another batch that names it, so that undo goes back step by step and survives a restart.

    answers = ReviewerLabels(store, "ada")
    answers.record(item, {17: "evil", 4: "abstain"})
    answers.last_batch(item)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

from pivotal_tokens.review.rubric import RUBRIC_VERSION
from pivotal_tokens.schema import Label, LabelEvent, Purpose, ReviewItem, new_id
from pivotal_tokens.store import Store

Answer = Label | Literal["abstain"]
"""A label, or the decision to leave a token without one (stored as `LabelEvent.left`)."""


class ReviewerLabels:
    """The label events of one reviewer."""

    def __init__(self, store: Store, reviewer: str, seen: Collection[str] = ()) -> None:
        self._store = store
        self._seen = seen
        self._reviewer = reviewer

    def events(self, item: ReviewItem) -> list[LabelEvent]:
        """Those that answer an item, oldest first; a repeat begins without any."""
        purpose = purpose_of(item)
        return [
            event
            for event in self._store.labels.events(item.prompt_id, author=self._reviewer)
            if event.purpose == purpose and (purpose != "repeat" or event.item_id == item.item_id)
        ]

    def last_batch(self, item: ReviewItem) -> list[LabelEvent]:
        """The events of the last answer that is not taken back yet."""
        answers: dict[str, list[LabelEvent]] = {}
        for event in self.events(item):
            if event.undoes is not None:
                answers.pop(event.undoes, None)
            else:
                answers.setdefault(event.batch, []).append(event)
        return list(answers.values())[-1] if answers else []

    def record(
        self,
        item: ReviewItem,
        labels: Mapping[int, Answer | None],
        *,
        reason: str | None = None,
        undoes: str | None = None,
        agreed: bool = False,
    ) -> None:
        """Add an event for every token whose answer changes; None takes an answer back."""
        own = {event.token_id: event for event in self.events(item)}
        seen = self._has_seen_judge(item)
        batch, now = new_id(), self._store.now()
        events = []
        for token, answer in labels.items():
            last = own.get(token)
            before = _answer(last)
            if before == answer:
                continue
            event = LabelEvent(
                prompt_id=item.prompt_id,
                token_id=token,
                from_label=last.to_label if last else None,
                to_label=None if answer == "abstain" else answer,
                left=answer == "abstain",
                was_left=before == "abstain",
                author=self._reviewer,
                author_kind="human",
                purpose=purpose_of(item),
                item_id=item.item_id,
                judge_visible=seen,
                agreed_after_reveal=agreed,
                reason=reason,
                rubric_version=RUBRIC_VERSION,
                batch=batch,
                undoes=undoes,
                at=now,
            )
            events.append(event)
        self._store.labels.add(events)

    def _has_seen_judge(self, item: ReviewItem) -> bool:
        """Was the judge shown to this reviewer, in whichever assignment the prompt was answered?

        A repeat is a fresh answer: only what was shown after it counts.
        """
        return item.prompt_id in self._seen or any(
            event.action == "done" and event.author == self._reviewer
            for event in self._store.queue.events(item.prompt_id)
            if item.kind != "repeat" or event.item_id == item.item_id
        )


def purpose_of(item: ReviewItem) -> Purpose:
    """What the labels of an item are for."""
    if item.kind == "repeat":
        return "repeat"
    return "adjudication" if item.kind == "adjudication" else "review"


def answer_before(event: LabelEvent) -> Answer | None:
    """What the author said about the token before an event."""
    return "abstain" if event.was_left else event.from_label


def _answer(event: LabelEvent | None) -> Answer | None:
    """What the author says about the token after it."""
    if event is None:
        return None
    return "abstain" if event.left else event.to_label
