"""Who reviews which prompt now, and what became of the others?

    pending -> leased -> done | rejected          (reopened: leased again)
                      -> skipped | deferred       (claimed again when asked for)

A lease ends by settling, by release, or by time; an item whose lease ran out is given to the next
reviewer. No state is a dead end.

    item = store.claim("ada", 1800)
    store.settle(item, "done", item.fence)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal, get_args

from sqlalchemy import ColumnElement, Connection, Row, func, insert, select, update

from pivotal_tokens.errors import LeaseLost, RequestError
from pivotal_tokens.schema import (
    ReviewAction,
    ReviewEvent,
    ReviewItem,
    ReviewState,
    SettledState,
    Verdict,
)
from pivotal_tokens.store import tables
from pivotal_tokens.store.database import Database
from pivotal_tokens.store.dialect import insert_new
from pivotal_tokens.store.leases import require_lease
from pivotal_tokens.store.results import HUMAN, drop_human_verdict, put_verdict

ClaimableState = Literal["pending", "deferred", "skipped"]

_queue = tables.queue
_columns = tables.queue.c


class QueueRows(Database):
    """The review queue with its leases, and the events of reviewing."""

    def enqueue(self, prompt_id: str, pair: str, reason: str) -> bool:
        """Queue a prompt for review; False if it was queued before, whatever became of it."""
        with self.writing() as connection:
            return queue_prompt(connection, prompt_id, pair, reason, self.now())

    def queue(
        self, state: ReviewState | None = None, *, reviewer: str | None = None
    ) -> tuple[ReviewItem, ...]:
        """Items in the order they were queued, of one state or reviewer if given."""
        query = select(_queue).order_by(_columns.item_id)
        if state is not None:
            query = query.where(_columns.state == state)
        if reviewer is not None:
            query = query.where(_columns.reviewer == reviewer)
        with self.reading() as connection:
            return tuple(map(item_of, connection.execute(query)))

    def queue_counts(self) -> dict[str, int]:
        """State -> number of items in it; a state without items is left out."""
        query = select(_columns.state, func.count()).group_by(_columns.state)
        with self.reading() as connection:
            return {state: number for state, number in connection.execute(query)}  # noqa: C416

    def claim(
        self,
        reviewer: str,
        lease_seconds: float,
        *,
        session: str = "",
        resume: Collection[str] = (),
        states: Sequence[ClaimableState] = ("pending", "deferred"),
        settled_before: datetime | None = None,
    ) -> ReviewItem | None:
        """Take the next item to review.

        First comes what this reviewer held in a session that is over, then what has an expired
        lease, then each of `states` in turn, oldest item first.

        Args:
            reviewer: Who asks.
            lease_seconds: How long the item is theirs without a sign of life.
            session: Names the asking process.
            resume: Sessions of this reviewer that are known to be over.
            states: Which waiting items to take.
            settled_before: Of deferred and skipped items, only those put off before this moment.

        Returns:
            The item with its new fence, or None when nothing waits.
        """
        unknown = set(states) - set(get_args(ClaimableState))
        if unknown:
            raise RequestError(f"items in state {sorted(unknown)} cannot be claimed; reopen them")
        leased, now = _columns.state == "leased", self.now()
        choices: list[ColumnElement[bool]] = [
            leased & (_columns.reviewer == reviewer) & _columns.session.in_(list(resume)),
            leased & (_columns.lease_until < now.timestamp()),
        ]
        for state in states:
            choice = _columns.state == state
            if state != "pending" and settled_before is not None:
                choice &= _columns.updated_at < settled_before.timestamp()
            choices.append(choice)
        with self.writing() as connection:
            for choice in choices:
                query = select(_queue).where(choice).order_by(_columns.item_id).limit(1)
                row = connection.execute(query.with_for_update(skip_locked=True)).one_or_none()
                if row is not None:
                    return self._lease(connection, row, reviewer, lease_seconds, session)
        return None

    def renew(self, item: ReviewItem, lease_seconds: float) -> ReviewItem:
        """Prolong a lease.

        Raises:
            LeaseLost: If somebody else holds the item now.
        """
        until = self.now() + timedelta(seconds=lease_seconds)
        with self.writing() as connection:
            require_lease(connection, item)
            return _set(connection, item.item_id, lease_until=until.timestamp())

    def release(self, item: ReviewItem) -> ReviewItem:
        """Give an item back unanswered; what was labelled so far stays.

        Raises:
            LeaseLost: If somebody else holds the item now.
        """
        with self.writing() as connection:
            require_lease(connection, item)
            return _set(connection, item.item_id, state="pending", session=None, lease_until=None)

    def settle(
        self,
        item: ReviewItem,
        state: SettledState,
        token: int,
        *,
        verdict: Verdict | None = None,
        text: str | None = None,
    ) -> ReviewItem:
        """End a lease with an answer: state, event and verdict in one transaction.

        Args:
            item: The item.
            state: What became of it.
            token: The fence it was claimed under.
            verdict: What follows from the reviewer's labels; kept under judge "human".
            text: The reason, where there is one.

        Raises:
            LeaseLost: If somebody else holds the item now; nothing was written.
        """
        if state not in get_args(SettledState):
            raise RequestError(f"an item cannot be settled as {state!r}")
        with self.writing() as connection:
            require_lease(connection, item, token)
            if verdict is not None:
                put_verdict(connection, item.prompt_id, item.pair, HUMAN, verdict)
            self._add_event(connection, item, item.reviewer or "", state, text)
            return _set(
                connection,
                item.item_id,
                state=state,
                session=None,
                lease_until=None,
                revealed=item.revealed or state == "done",
                updated_at=self.now().timestamp(),
            )

    def reopen(
        self, item_id: int, reviewer: str, lease_seconds: float, *, session: str = ""
    ) -> ReviewItem:
        """Take an item again that was settled; its labels stay, the human verdict goes.

        Raises:
            LeaseLost: If somebody holds a lease on it that has not run out.
        """
        with self.writing() as connection:
            row = connection.execute(
                select(_queue).where(_columns.item_id == item_id)
            ).one_or_none()
            if row is None:
                raise RequestError(f"no review item {item_id}")
            if row.state == "leased" and row.lease_until >= self.now().timestamp():
                raise LeaseLost(f"prompt {row.prompt_id} is under review by {row.reviewer}")
            drop_human_verdict(connection, row.prompt_id, row.pair)
            self._add_event(connection, item_of(row), reviewer, "reopened", None)
            return self._lease(connection, row, reviewer, lease_seconds, session)

    def last_settled(self, reviewer: str) -> ReviewItem | None:
        """The item that this reviewer settled last and that is still settled."""
        query = (
            select(_queue)
            .where(_columns.reviewer == reviewer)
            .where(_columns.state.in_(get_args(SettledState)))
            .order_by(_columns.updated_at.desc(), _columns.item_id.desc())
            .limit(1)
        )
        with self.reading() as connection:
            row = connection.execute(query).one_or_none()
        return item_of(row) if row else None

    def add_note(self, item: ReviewItem, author: str, text: str) -> None:
        """Keep what a reviewer wrote about an item."""
        with self.writing() as connection:
            self._add_event(connection, item, author, "note", text)

    def review_events(self, prompt_id: str) -> tuple[ReviewEvent, ...]:
        """What reviewers did with a prompt and wrote about it, oldest first."""
        with self.reading() as connection:
            return review_events_of(connection, prompt_id)

    def _lease(
        self, connection: Connection, row: Row, reviewer: str, seconds: float, session: str
    ) -> ReviewItem:
        until = self.now() + timedelta(seconds=seconds)
        return _set(
            connection,
            row.item_id,
            state="leased",
            reviewer=reviewer,
            session=session,
            fence=row.fence + 1,
            lease_until=until.timestamp(),
            updated_at=self.now().timestamp(),
        )

    def _add_event(
        self,
        connection: Connection,
        item: ReviewItem,
        author: str,
        action: ReviewAction,
        text: str | None,
    ) -> None:
        event = ReviewEvent(
            prompt_id=item.prompt_id,
            pair=item.pair,
            author=author,
            action=action,
            text=text,
            at=self.now(),
        )
        connection.execute(
            insert(tables.review_events).values(
                prompt_id=item.prompt_id,
                pair=item.pair,
                author=author,
                payload=event.model_dump_json(),
            )
        )


def queue_prompt(
    connection: Connection, prompt_id: str, pair: str, reason: str, now: datetime
) -> bool:
    """Queue a prompt within a transaction; False if it was queued before."""
    values = {
        "prompt_id": prompt_id,
        "pair": pair,
        "reason": reason,
        "state": "pending",
        "fence": 0,
        "revealed": False,
        "enqueued_at": now.timestamp(),
        "updated_at": now.timestamp(),
    }
    return insert_new(connection, _queue, values, ["prompt_id", "pair"])


def item_of(row: Row) -> ReviewItem:
    """The review item of a row."""
    return ReviewItem(
        item_id=row.item_id,
        prompt_id=row.prompt_id,
        pair=row.pair,
        reason=row.reason,
        state=row.state,
        reviewer=row.reviewer,
        session=row.session,
        fence=row.fence,
        lease_until=_moment(row.lease_until) if row.lease_until is not None else None,
        revealed=row.revealed,
        enqueued_at=_moment(row.enqueued_at),
        updated_at=_moment(row.updated_at),
    )


def review_events_of(connection: Connection, prompt_id: str) -> tuple[ReviewEvent, ...]:
    """A prompt's review events, oldest first, within a transaction."""
    query = (
        select(tables.review_events.c.payload)
        .where(tables.review_events.c.prompt_id == prompt_id)
        .order_by(tables.review_events.c.seq)
    )
    return tuple(map(ReviewEvent.model_validate_json, connection.execute(query).scalars()))


def _set(connection: Connection, item_id: int, **values: object) -> ReviewItem:
    statement = update(_queue).where(_columns.item_id == item_id).values(**values)
    return item_of(connection.execute(statement.returning(*_columns)).one())


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
