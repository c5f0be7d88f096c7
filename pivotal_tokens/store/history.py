"""Review histories: people's work on the queue, from one store into another.

A `ReviewHistory` is one prompt's assignments, the log of what became of them, the draws of controls
and people's verdicts. Leases stay behind: what somebody holds waits elsewhere, its labels kept.

Under one model pair assignments are taken over together, and only where nobody of this store has
begun with any of them; else what is here stays, and the history's assignments and log are left out.
A history taken twice changes nothing.

    other.histories.queue(histories)              # as waiting, in the order of the other queue
    taken = other.histories.take(histories[0])    # then what became of them
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field
from sqlalchemy import Connection, select

from pivotal_tokens.schema import HUMAN, Frozen, ReviewEvent, ReviewItem, Verdict
from pivotal_tokens.store import tables
from pivotal_tokens.store.database import Repository
from pivotal_tokens.store.dialect import insert_new
from pivotal_tokens.store.labels import undecided
from pivotal_tokens.store.queue import (
    OWN_KINDS,
    insert_review_event,
    items_of,
    review_events_of,
    set_item,
)
from pivotal_tokens.store.rows import narrowed, values_by

_queue = tables.queue
_QUEUED = {"prompt_id", "pair", "seat", "kind", "reason", "sampling", "flagged"}
_QUEUED |= {"evil_mass", "uncertainty", "disagreement"}


class ControlDraw(Frozen):
    """Whether an unflagged prompt was drawn for review under a pair, and how probable that was."""

    pair: str
    sampling: float = Field(ge=0, le=1)
    drawn: bool


class ReviewHistory(Frozen):
    """What people did with one prompt."""

    prompt_id: str
    items: tuple[ReviewItem, ...] = ()  # none of them leased
    events: tuple[ReviewEvent, ...] = ()  # oldest first
    draws: tuple[ControlDraw, ...] = ()
    verdicts: dict[str, Verdict] = Field(default_factory=dict)  # people's, by pair

    @property
    def empty(self) -> bool:
        """Whether the prompt was never reviewed."""
        return not (self.items or self.events or self.draws)


@dataclass(frozen=True)
class Taken:
    """What became of a history."""

    items: tuple[ReviewItem, ...]
    """Assignments that have an answer now and had none; from them a verdict may follow."""
    ids: Mapping[int, int]
    """The other store's number of an item -> this one's."""
    left_alone: int
    """Assignments that differ in this store, which stay as they are."""


class Histories(Repository):
    """Assignments and their log, out and in."""

    def of(self, prompt_id: str) -> ReviewHistory:
        """What people did with a prompt, without leases."""
        draws = tables.control_draws
        query = select(draws.c.pair, draws.c.sampling, draws.c.drawn).order_by(draws.c.pair)
        people = {"prompt_id": prompt_id, "judge": HUMAN}
        with self._reading() as connection:
            drawn = connection.execute(narrowed(query, draws, prompt_id=prompt_id)).all()
            return ReviewHistory(
                prompt_id=prompt_id,
                items=tuple(map(_without_lease, _assignments(connection, prompt_id))),
                events=review_events_of(connection, prompt_id),
                draws=tuple(ControlDraw(**row._mapping) for row in drawn),
                verdicts=values_by(connection, Verdict, tables.verdicts, "pair", **people),
            )

    def queue(self, histories: Iterable[ReviewHistory]) -> None:
        """Queue the assignments as waiting, in the order they were queued elsewhere."""
        items = [item for history in histories for item in history.items]
        with self._writing() as connection:
            open_pairs = {
                place: _untouched(_assignments(connection, *place))
                for place in {(item.prompt_id, item.pair) for item in items}
            }
            for item in sorted(items, key=lambda item: item.item_id):
                if open_pairs[item.prompt_id, item.pair]:
                    row = item.model_dump(include=_QUEUED) | {
                        "state": "pending",
                        "reviewer": item.reviewer if item.kind in OWN_KINDS else None,
                        "enqueued_at": item.enqueued_at.timestamp(),
                        "updated_at": item.updated_at.timestamp(),
                    }
                    insert_new(connection, _queue, row)

    def take(self, history: ReviewHistory) -> Taken:
        """Take over what became of queued assignments; `Labels.add` takes their labels."""
        settled: list[ReviewItem] = []
        ids: dict[int, int] = {}
        left_alone = 0
        with self._writing() as connection:
            disputed = bool(undecided(connection, history.prompt_id))
            for draw in history.draws:
                row = draw.model_dump() | {"prompt_id": history.prompt_id}
                insert_new(connection, tables.control_draws, row)
            events: list[ReviewEvent] = []
            pairs = [*(i.pair for i in history.items), *(e.pair for e in history.events)]
            for pair in dict.fromkeys(pairs):
                theirs = [item for item in history.items if item.pair == pair]
                there = _assignments(connection, history.prompt_id, pair)
                here = {item.seat: item for item in there}
                ids |= {i.item_id: here[i.seat].item_id for i in theirs if _same(i, here)}
                if disputed or not _untouched(here.values()):
                    left_alone += sum(not _answered_alike(item, here) for item in theirs)
                    continue
                for item in theirs:
                    if item.item_id in ids and item.state != "pending":
                        done = item.model_dump(include={"state", "reviewer", "revealed"})
                        done["fence"] = max(item.fence, 1)  # from now on somebody had it
                        done["updated_at"] = item.updated_at.timestamp()
                        settled.append(set_item(connection, ids[item.item_id], **done))
                events += [event for event in history.events if event.pair == pair]
            _add_events(connection, sorted(events, key=lambda event: event.at), ids)
        return Taken(tuple(settled), ids, left_alone)


def _assignments(
    connection: Connection, prompt_id: str, pair: str | None = None
) -> tuple[ReviewItem, ...]:
    query = select(_queue).order_by(_queue.c.item_id)
    return items_of(connection, narrowed(query, _queue, prompt_id=prompt_id, pair=pair))


def _without_lease(item: ReviewItem) -> ReviewItem:
    """The item as another store may lease it: nobody holds it, nobody ever did."""
    if item.state not in ("pending", "leased"):
        return item
    nobody: dict[str, Any] = {"state": "pending", "session": None, "lease_until": None, "fence": 0}
    nobody |= {} if item.kind in OWN_KINDS else {"reviewer": None}
    return item.model_copy(update=nobody)


def _untouched(items: Iterable[ReviewItem]) -> bool:
    """Whether nobody of this store has claimed or answered one of them."""
    return all(item.state == "pending" and item.fence == 0 for item in items)


def _same(item: ReviewItem, here: Mapping[int, ReviewItem]) -> bool:
    """Whether the assignment of this number is the same one in this store."""
    other = here.get(item.seat)
    if other is None or (other.kind in OWN_KINDS and other.reviewer != item.reviewer):
        return False
    return other.kind == item.kind or {other.kind, item.kind} == {"review", "control"}


def _answered_alike(item: ReviewItem, here: Mapping[int, ReviewItem]) -> bool:
    """Whether this store knows nothing else of the assignment."""
    if item.state == "pending":
        return True
    return _same(item, here) and (here[item.seat].state, here[item.seat].reviewer) == (
        item.state,
        item.reviewer,
    )


def _add_events(
    connection: Connection, events: Sequence[ReviewEvent], ids: Mapping[int, int]
) -> None:
    """Add what the log does not have yet."""
    if not events:
        return
    known = set(review_events_of(connection, events[0].prompt_id))
    for event in events:
        item_id = None if event.item_id is None else ids.get(event.item_id)
        event = event.model_copy(update={"item_id": item_id})
        if event not in known:
            insert_review_event(connection, event)
