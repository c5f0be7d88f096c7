"""How does what people did with the queue come over from another store?

A `ReviewHistory` is one prompt's seats, the log of what became of them, the draws of controls and
people's verdicts. Leases stay behind: what somebody holds is waiting elsewhere, its labels kept.

Under one model pair seats are taken over together, and only where nobody of this store has begun
with any of them; else what is here stays, and the history's seats and log are left out. A history
taken twice changes nothing.

    other.queue_histories(histories)              # as waiting, in the order of the other queue
    taken = other.take_history(histories[0])      # then what became of them
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field
from sqlalchemy import Connection, func, select, update

from pivotal_tokens.schema import HUMAN, Frozen, ReviewConfig, ReviewEvent, ReviewItem, Verdict
from pivotal_tokens.store import tables
from pivotal_tokens.store.database import Database
from pivotal_tokens.store.dialect import insert_new
from pivotal_tokens.store.imports import has_conflict
from pivotal_tokens.store.queue import OWN_KINDS, item_of
from pivotal_tokens.store.review_log import insert_review_event, review_events_of
from pivotal_tokens.store.seats import config_set, set_config

_queue = tables.queue
_KEPT = {"prompt_id", "pair", "seat", "kind", "reason", "sampling", "flagged"}
_KEPT |= {"evil_mass", "uncertainty"}


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
        """Was the prompt never looked at for review?"""
        return not (self.items or self.events or self.draws)


@dataclass(frozen=True)
class Taken:
    """What became of a history."""

    items: tuple[ReviewItem, ...]
    """Seats that have an answer now and had none; from them a verdict may follow."""
    ids: Mapping[int, int]
    """The other store's number of an item -> this one's."""
    kept: int
    """Seats of which something else is known here; that stays."""


class HistoryRows(Database):
    """Seats and their log, out and in."""

    def review_history(self, prompt_id: str) -> ReviewHistory:
        """What people did with a prompt, without leases."""
        draws, verdicts = tables.control_draws, tables.verdicts
        with self.reading() as connection:
            people = connection.execute(
                select(verdicts.c.pair, verdicts.c.payload)
                .where(verdicts.c.prompt_id == prompt_id, verdicts.c.judge == HUMAN)
                .order_by(verdicts.c.pair)
            ).all()
            drawn = connection.execute(
                select(draws.c.pair, draws.c.sampling, draws.c.drawn)
                .where(draws.c.prompt_id == prompt_id)
                .order_by(draws.c.pair)
            ).all()
            return ReviewHistory(
                prompt_id=prompt_id,
                items=tuple(map(_without_lease, _seats(connection, prompt_id))),
                events=review_events_of(connection, prompt_id),
                draws=tuple(ControlDraw(**row._mapping) for row in drawn),
                verdicts={row.pair: Verdict.model_validate_json(row.payload) for row in people},
            )

    def take_review_config(self, config: ReviewConfig) -> bool:
        """Share the queue out so, unless this store says how already, or has a queue."""
        with self.writing() as connection:
            queued = connection.execute(select(func.count()).select_from(_queue)).scalar_one()
            if queued or config_set(connection) is not None:
                return False
            set_config(connection, config)
            return True

    def queue_histories(self, histories: Iterable[ReviewHistory]) -> None:
        """Queue the seats of histories as waiting, in the order they were queued elsewhere."""
        items = [item for history in histories for item in history.items]
        with self.writing() as connection:
            open_pairs = {
                place: _untouched(_seats(connection, *place))
                for place in {(item.prompt_id, item.pair) for item in items}
            }
            for item in sorted(items, key=lambda item: item.item_id):
                if open_pairs[item.prompt_id, item.pair]:
                    row = item.model_dump(include=_KEPT) | {
                        "state": "pending",
                        "reviewer": item.reviewer if item.kind in OWN_KINDS else None,
                        "enqueued_at": item.enqueued_at.timestamp(),
                        "updated_at": item.updated_at.timestamp(),
                    }
                    insert_new(connection, _queue, row, ["prompt_id", "pair", "seat"])

    def take_history(self, history: ReviewHistory) -> Taken:
        """Take over what became of queued seats; their labels are taken over elsewhere."""
        settled: list[ReviewItem] = []
        ids: dict[int, int] = {}
        kept = 0
        with self.writing() as connection:
            disputed = has_conflict(connection, history.prompt_id)
            for draw in history.draws:
                row = draw.model_dump() | {"prompt_id": history.prompt_id}
                insert_new(connection, tables.control_draws, row, ["prompt_id", "pair"])
            events: list[ReviewEvent] = []
            pairs = [*(i.pair for i in history.items), *(e.pair for e in history.events)]
            for pair in dict.fromkeys(pairs):
                theirs = [item for item in history.items if item.pair == pair]
                here = {seat.seat: seat for seat in _seats(connection, history.prompt_id, pair)}
                ids |= {i.item_id: here[i.seat].item_id for i in theirs if _same(i, here)}
                if disputed or not _untouched(here.values()):
                    kept += sum(not _answered_alike(item, here) for item in theirs)
                    continue
                for item in theirs:
                    if item.item_id in ids and item.state != "pending":
                        settled.append(_settle(connection, ids[item.item_id], item))
                events += [event for event in history.events if event.pair == pair]
            _add_events(connection, sorted(events, key=lambda event: event.at), ids)
        return Taken(tuple(settled), ids, kept)


def _seats(
    connection: Connection, prompt_id: str, pair: str | None = None
) -> tuple[ReviewItem, ...]:
    query = select(_queue).where(_queue.c.prompt_id == prompt_id).order_by(_queue.c.item_id)
    if pair is not None:
        query = query.where(_queue.c.pair == pair)
    return tuple(map(item_of, connection.execute(query)))


def _without_lease(item: ReviewItem) -> ReviewItem:
    """The item as another store may give it out: nobody holds it, nobody ever did."""
    if item.state not in ("pending", "leased"):
        return item
    nobody: dict[str, Any] = {"state": "pending", "session": None, "lease_until": None, "fence": 0}
    nobody |= {} if item.kind in OWN_KINDS else {"reviewer": None}
    return item.model_copy(update=nobody)


def _untouched(seats: Iterable[ReviewItem]) -> bool:
    """Has nobody of this store taken one of them, or answered it?"""
    return all(seat.state == "pending" and seat.fence == 0 for seat in seats)


def _same(item: ReviewItem, here: Mapping[int, ReviewItem]) -> bool:
    """Is the seat of this number here the same one?"""
    seat = here.get(item.seat)
    if seat is None or (seat.kind in OWN_KINDS and seat.reviewer != item.reviewer):
        return False
    return seat.kind == item.kind or {seat.kind, item.kind} == {"review", "control"}


def _answered_alike(item: ReviewItem, here: Mapping[int, ReviewItem]) -> bool:
    """Is nothing else known of the seat here?"""
    if item.state == "pending":
        return True
    return _same(item, here) and (here[item.seat].state, here[item.seat].reviewer) == (
        item.state,
        item.reviewer,
    )


def _settle(connection: Connection, item_id: int, item: ReviewItem) -> ReviewItem:
    statement = update(_queue).where(_queue.c.item_id == item_id)
    statement = statement.values(
        state=item.state,
        reviewer=item.reviewer,
        fence=max(item.fence, 1),  # from now on somebody had it
        revealed=item.revealed,
        updated_at=item.updated_at.timestamp(),
    )
    return item_of(connection.execute(statement.returning(*_queue.c)).one())


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
