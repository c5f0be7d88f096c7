"""Who reviews which prompt now, and what became of the others?

    pending -> leased -> done | rejected          (reopened: leased again)
                      -> skipped | deferred       (claimed again when asked for)

A lease ends by settling, by release, by time, or because somebody takes the item on purpose; an
item whose lease ran out is given to the next reviewer. No state is a dead end. A row is one seat:
with an overlap of N a prompt has N of them, and nobody sits on two.

    item = store.claim("ada", 1800)
    store.settle(item, "done", item.fence)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, get_args

from sqlalchemy import ColumnElement, Connection, Row, Select, exists, func, or_, select, update

from pivotal_tokens.errors import LeaseLost, RequestError
from pivotal_tokens.schema import (
    HUMAN,
    ItemKind,
    ReviewAction,
    ReviewItem,
    ReviewOrder,
    ReviewState,
    SettledState,
    Verdict,
)
from pivotal_tokens.store import tables
from pivotal_tokens.store.database import Database
from pivotal_tokens.store.dialect import lock_name
from pivotal_tokens.store.leases import require_lease
from pivotal_tokens.store.results import drop_human_verdict, put_verdict
from pivotal_tokens.store.review_log import add_review_event

ClaimableState = Literal["pending", "deferred", "skipped"]
REVIEWER_KINDS: tuple[ItemKind, ...] = ("review", "control", "calibration", "repeat")
OWN_KINDS: tuple[ItemKind, ...] = ("calibration", "repeat")  # made for one reviewer
_NO_SEATS: tuple[ItemKind, ...] = ("repeat", "adjudication")

_queue = tables.queue
_columns = tables.queue.c


@dataclass(frozen=True)
class Wanted:
    """Which waiting items a reviewer wants, and in which order."""

    kinds: tuple[ItemKind, ...] = REVIEWER_KINDS
    only_flagged: bool = False
    """Without unflagged controls: what is learnt then says nothing about the judge's misses."""
    since: datetime | None = None
    """Queued at or after this moment."""
    prompts: tuple[str, ...] = ()
    """Prompt ids, or beginnings of them; empty: any."""
    pair: str | None = None
    order: ReviewOrder = "queue"

    @property
    def narrowed(self) -> bool:
        """Are particular items asked for, so that nothing is to be mixed in?"""
        return bool(self.only_flagged or self.since or self.prompts or self.pair)

    def conditions(self, reviewer: str) -> list[ColumnElement[bool]]:
        """What an item must fulfil to be given to a reviewer."""
        found = [_columns.kind.in_(self.kinds), not_of_another(reviewer), not_seated(reviewer)]
        if self.only_flagged:
            found.append(_columns.flagged)
        if self.since is not None:
            found.append(_columns.enqueued_at >= self.since.timestamp())
        if self.prompts:
            named = (_columns.prompt_id.startswith(p, autoescape=True) for p in self.prompts)
            found.append(or_(*named))
        if self.pair is not None:
            found.append(_columns.pair == self.pair)
        return found

    def ordering(self) -> list[ColumnElement]:
        """By what the waiting items are sorted."""
        if self.order == "queue":
            return [_columns.item_id]
        return [_columns[self.order].desc(), _columns.item_id]


ANYTHING = Wanted()


class QueueRows(Database):
    """The review queue and its leases."""

    def queue(
        self,
        state: ReviewState | None = None,
        *,
        reviewer: str | None = None,
        prompt_id: str | None = None,
        kind: ItemKind | None = None,
    ) -> tuple[ReviewItem, ...]:
        """Items in the order they were queued, narrowed to what is given."""
        query = select(_queue).order_by(_columns.item_id)
        wanted = {"state": state, "reviewer": reviewer, "prompt_id": prompt_id, "kind": kind}
        for name, value in wanted.items():
            if value is not None:
                query = query.where(_columns[name] == value)
        with self.reading() as connection:
            return tuple(map(item_of, connection.execute(query)))

    def queue_item(self, item_id: int) -> ReviewItem:
        """One item as it is now.

        Raises:
            RequestError: If there is none of this number.
        """
        with self.reading() as connection:
            return item_of(_row(connection, item_id))

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
        wanted: Wanted = ANYTHING,
    ) -> ReviewItem | None:
        """Take the next item to review.

        First comes what this reviewer held in a session that is over, then what has an expired
        lease, then each of `states` in turn.

        Args:
            reviewer: Who asks.
            lease_seconds: How long the item is theirs without a sign of life.
            session: Names the asking process.
            resume: Sessions of this reviewer that are known to be over.
            states: Which waiting items to take.
            settled_before: Of deferred and skipped items, only those put off before this moment.
            wanted: Filters and order.

        Returns:
            The item with its new fence, or None when nothing waits.
        """
        unknown = set(states) - set(get_args(ClaimableState))
        if unknown:
            raise RequestError(f"items in state {sorted(unknown)} cannot be claimed; reopen them")
        leased, now = _columns.state == "leased", self.now()
        choices: list[ColumnElement[bool]] = [leased & (_columns.lease_until < now.timestamp())]
        if resume:
            mine = (_columns.reviewer == reviewer) & _columns.session.in_(list(resume))
            choices.insert(0, leased & mine)
        for state in states:
            choice = _columns.state == state
            if state != "pending" and settled_before is not None:
                choice &= _columns.updated_at < settled_before.timestamp()
            choices.append(choice)
        conditions, ordering = wanted.conditions(reviewer), wanted.ordering()
        with self.writing() as connection:
            lock_name(connection, f"reviewer {reviewer}")  # two sessions of one, one seat
            for choice in choices:
                query = select(_queue).where(choice, *conditions).order_by(*ordering).limit(1)
                query = query.with_for_update(skip_locked=True, of=_queue)
                row = connection.execute(query).one_or_none()
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
            held = require_lease(connection, item, token)
            if verdict is not None:
                put_verdict(connection, item.prompt_id, item.pair, HUMAN, verdict)
            add_review_event(connection, item, held, state, self.now(), text=text)
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
        self,
        item_id: int,
        reviewer: str,
        lease_seconds: float,
        *,
        session: str = "",
        steal: bool = False,
    ) -> ReviewItem:
        """Take a particular item, whatever its state; its labels stay, the human verdict goes.

        Args:
            item_id: Which one.
            reviewer: Who takes it.
            lease_seconds: How long it is theirs without a sign of life.
            session: Names the asking process.
            steal: Take it even from somebody whose lease has not run out; they are fenced.

        Raises:
            LeaseLost: If somebody holds a lease on it that has not run out.
            RequestError: If the reviewer has another seat at the prompt.
        """
        with self.writing() as connection:
            row = _row(connection, item_id, lock=True)
            item = item_of(row)
            action: ReviewAction = "reopened"
            if row.state == "leased" and row.lease_until >= self.now().timestamp():
                if not steal:
                    raise LeaseLost(f"prompt {row.prompt_id} is under review by {row.reviewer}")
                action = "stolen"
            _require_seat(connection, item, reviewer)
            if item.kind != "repeat":
                drop_human_verdict(connection, row.prompt_id, row.pair)
            add_review_event(connection, item, reviewer, action, self.now())
            return self._lease(connection, row, reviewer, lease_seconds, session)

    def return_items(self, states: Sequence[ClaimableState] = ("skipped", "deferred")) -> int:
        """Put what was skipped or deferred back in the queue, for anybody; how many there were."""
        with self.writing() as connection:
            statement = update(_queue).where(_columns.state.in_(states)).values(state="pending")
            return connection.execute(statement).rowcount

    def waiting_for(self, reviewer: str, wanted: Wanted = ANYTHING) -> int:
        """Pending prompts of the wanted kinds a reviewer may be asked; filters do not count."""
        mine = _queue.alias("mine").c
        pending = (_columns.state == "pending") & _columns.kind.in_(wanted.kinds)
        pending &= not_of_another(reviewer)
        prompts = select(_columns.prompt_id, _columns.pair).where(pending)
        beside = (mine.prompt_id == _columns.prompt_id) & (mine.pair == _columns.pair)
        beside &= mine.kind.not_in(_NO_SEATS) & (mine.state != "pending")
        seated = prompts.join(mine.prompt_id.table, beside)
        seated = seated.where(_columns.kind.not_in(_NO_SEATS), mine.reviewer == reviewer)
        several = exists().where(_columns.seat > 0, _columns.state == "pending")
        with self.reading() as connection:

            def number(query: Select) -> int:
                rows = query.subquery()
                return connection.execute(select(func.count()).select_from(rows)).scalar_one()

            if connection.execute(select(several)).scalar_one():
                prompts = prompts.distinct()
            return number(prompts) - number(seated.distinct())

    def last_settled(self, reviewer: str) -> ReviewItem | None:
        """The item that this reviewer settled last and that is still settled."""
        return next(iter(self.settled_by(reviewer, 1)), None)

    def settled_by(
        self, reviewer: str, last: int, *, repeats: bool = True
    ) -> tuple[ReviewItem, ...]:
        """A reviewer's last items that are still settled, latest first."""
        query = (
            select(_queue)
            .where(_columns.reviewer == reviewer)
            .where(_columns.state.in_(get_args(SettledState)))
            .order_by(_columns.updated_at.desc(), _columns.item_id.desc())
            .limit(last)
        )
        if not repeats:
            query = query.where(_columns.kind != "repeat")
        with self.reading() as connection:
            return tuple(map(item_of, connection.execute(query)))

    def answered_by(self, reviewer: str) -> int:
        """How many items a reviewer has finished or rejected and not reopened."""
        query = select(func.count()).select_from(_queue).where(_columns.reviewer == reviewer)
        query = query.where(_columns.state.in_(("done", "rejected")))
        with self.reading() as connection:
            return connection.execute(query).scalar_one()

    def drop_human_verdict(self, prompt_id: str, pair: str) -> None:
        """Take the people's verdict back: the prompt is not settled any more."""
        with self.writing() as connection:
            drop_human_verdict(connection, prompt_id, pair)

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
            # What one reviewer was shown, another was not.
            revealed=row.revealed and row.reviewer == reviewer,
            lease_until=until.timestamp(),
            updated_at=self.now().timestamp(),
        )


def item_of(row: Row) -> ReviewItem:
    """The review item of a row."""
    fields = row._asdict()
    for name in ("lease_until", "enqueued_at", "updated_at"):
        fields[name] = None if fields[name] is None else _moment(fields[name])
    return ReviewItem(**fields)


def not_of_another(reviewer: str) -> ColumnElement[bool]:
    """The item was not made for another reviewer."""
    return _columns.kind.not_in(OWN_KINDS) | (_columns.reviewer == reviewer)


def not_seated(reviewer: str) -> ColumnElement[bool]:
    """The reviewer has no other seat at the prompt; repeats and adjudications are no seats."""
    other = _queue.alias("other_seat").c
    taken = exists().where(
        other.prompt_id == _columns.prompt_id,
        other.pair == _columns.pair,
        other.item_id != _columns.item_id,
        other.reviewer == reviewer,
        other.state != "pending",
        other.kind.not_in(_NO_SEATS),
    )
    return _columns.kind.in_(_NO_SEATS) | ~taken


def _require_seat(connection: Connection, item: ReviewItem, reviewer: str) -> None:
    if item.kind == "repeat" and item.reviewer != reviewer:
        raise RequestError(f"item {item.item_id} asks {item.reviewer} a second time, nobody else")
    query = select(_columns.item_id).where(_columns.item_id == item.item_id, not_seated(reviewer))
    if connection.execute(query).first() is None:
        raise RequestError(
            f"{reviewer} has another seat at prompt {item.prompt_id}: reopen that one"
        )


def _row(connection: Connection, item_id: int, *, lock: bool = False) -> Row:
    query = select(_queue).where(_columns.item_id == item_id)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise RequestError(f"no review item {item_id}")
    return row


def _set(connection: Connection, item_id: int, **values: object) -> ReviewItem:
    statement = update(_queue).where(_columns.item_id == item_id).values(**values)
    return item_of(connection.execute(statement.returning(*_columns)).one())


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
