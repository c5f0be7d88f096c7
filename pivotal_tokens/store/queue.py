"""The review queue: leases of items by reviewers, and the state of every item.

    pending -> leased -> done | rejected          (reopened: leased again)
                      -> skipped | deferred       (taken again when asked for)

A row is one reviewer's assignment to one prompt: with an overlap of N a prompt has N of them, and
nobody has two. A lease ends by settling, by release, by time, or because somebody takes the item
on purpose; an item whose lease ran out is given to the next reviewer. No state is a dead end.

Each lease raises the item's fence. A reviewer who was away past the lease, and whose item another
one has taken since, comes back with an older fence and is refused. An expired lease on an item that
nobody took is still good: nobody else can have answered.

    item = store.queue.take("ada", 1800)
    store.queue.settle(item, "done", item.fence)
    store.queue.events(item.prompt_id)             # what reviewers did, oldest first
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, get_args

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)

from pivotal_tokens.errors import LeaseLost, RequestError
from pivotal_tokens.schema import (
    HUMAN,
    ItemKind,
    ReviewAction,
    ReviewEvent,
    ReviewItem,
    ReviewOrder,
    ReviewState,
    SettledState,
)
from pivotal_tokens.store import tables
from pivotal_tokens.store.database import Repository
from pivotal_tokens.store.dialect import lock_name
from pivotal_tokens.store.rows import count_rows, narrowed, numbers, row_of, values, where

WaitingState = Literal["pending", "deferred", "skipped"]
REVIEWER_KINDS: tuple[ItemKind, ...] = ("review", "control", "calibration", "repeat")
OWN_KINDS: tuple[ItemKind, ...] = ("calibration", "repeat")  # created for one reviewer
_BESIDE: tuple[ItemKind, ...] = ("repeat", "adjudication")  # not one of the overlap's assignments

_queue = tables.queue
_columns = tables.queue.c
_events = tables.review_events.c


@dataclass(frozen=True)
class Wanted:
    """Filter and order of the waiting items that a reviewer gets."""

    kinds: tuple[ItemKind, ...] = REVIEWER_KINDS
    only_flagged: bool = False
    """Without unflagged controls: the labels then say nothing about the judge's misses."""
    since: datetime | None = None
    """Queued at or after this moment."""
    prompts: tuple[str, ...] = ()
    """Prompt ids, or beginnings of them; empty: any."""
    pair: str | None = None
    order: ReviewOrder = "queue"

    @property
    def narrowed(self) -> bool:
        """Whether particular items are requested, so that nothing is mixed in."""
        return bool(self.only_flagged or self.since or self.prompts or self.pair)

    def conditions(self, reviewer: str) -> list[ColumnElement[bool]]:
        """What an item must fulfil to be given to a reviewer."""
        found = [_columns.kind.in_(self.kinds), not_of_another(reviewer), not_assigned(reviewer)]
        found += where(_queue, pair=self.pair, flagged=self.only_flagged or None)
        if self.since is not None:
            found.append(_columns.enqueued_at >= self.since.timestamp())
        if self.prompts:
            named = (_columns.prompt_id.startswith(p, autoescape=True) for p in self.prompts)
            found.append(or_(*named))
        return found

    def ordering(self) -> list[ColumnElement]:
        """By what the waiting items are sorted; in the queue's own order disagreement is first."""
        if self.order == "queue":
            return [_columns.disagreement.desc(), _columns.item_id]
        return [_columns[self.order].desc(), _columns.item_id]


ANYTHING = Wanted()


class Queue(Repository):
    """Review items, their leases, and the log of what reviewers did with them.

    What needs a lease raises `LeaseLost` where somebody else holds the item; nothing is written.
    """

    def items(
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
        with self._reading() as connection:
            return items_of(connection, narrowed(query, _queue, **wanted))

    def get(self, item_id: int) -> ReviewItem:
        """One item as it is now.

        Raises:
            RequestError: If there is none of this number.
        """
        with self._reading() as connection:
            return item_of(_row(connection, item_id))

    def counts(self) -> dict[str, int]:
        """State -> number of items in it; a state without items is left out."""
        query = select(_columns.state, func.count()).group_by(_columns.state)
        with self._reading() as connection:
            return numbers(connection, query)

    def take(
        self,
        reviewer: str,
        lease_seconds: float,
        *,
        session: str = "",
        resume: Collection[str] = (),
        states: Sequence[WaitingState] = ("pending", "deferred"),
        settled_before: datetime | None = None,
        wanted: Wanted = ANYTHING,
    ) -> ReviewItem | None:
        """Take the next item to review.

        First comes what this reviewer held in a session that is over, then what has an expired
        lease, then each of `states` in turn.

        Args:
            lease_seconds: How long the item is theirs without a sign of life.
            resume: Sessions of this reviewer that are known to be over.
            settled_before: Of deferred and skipped items, only those put off before this moment.

        Returns:
            The item with its new fence, or None when nothing waits.
        """
        unknown = set(states) - set(get_args(WaitingState))
        if unknown:
            raise RequestError(f"items in state {sorted(unknown)} cannot be claimed; reopen them")
        leased, now = _columns.state == "leased", self._now()
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
        with self._writing() as connection:
            lock_name(connection, f"reviewer {reviewer}")  # two sessions of one, one assignment
            for choice in choices:
                query = select(_queue).where(choice, *conditions).order_by(*ordering).limit(1)
                query = query.with_for_update(skip_locked=True, of=_queue)
                row = connection.execute(query).one_or_none()
                if row is not None:
                    return _lease(connection, row, reviewer, lease_seconds, session, now)
        return None

    def renew(self, item: ReviewItem, lease_seconds: float) -> ReviewItem:
        """Prolong a lease."""
        until = self._now() + timedelta(seconds=lease_seconds)
        with self._writing() as connection:
            require_lease(connection, item)
            return set_item(connection, item.item_id, lease_until=until.timestamp())

    def release(self, item: ReviewItem) -> ReviewItem:
        """Give an item back unanswered; what was labelled so far stays."""
        with self._writing() as connection:
            require_lease(connection, item)
            values = {"state": "pending", "session": None, "lease_until": None}
            return set_item(connection, item.item_id, **values)

    def settle(
        self, item: ReviewItem, state: SettledState, fence: int, *, text: str | None = None
    ) -> ReviewItem:
        """End a lease with an answer: state and event in one transaction."""
        if state not in get_args(SettledState):
            raise RequestError(f"an item cannot be settled as {state!r}")
        with self._writing() as connection:
            reviewer = require_lease(connection, item, fence)
            add_review_event(connection, item, reviewer, state, self._now(), text=text)
            return set_item(
                connection,
                item.item_id,
                state=state,
                session=None,
                lease_until=None,
                revealed=item.revealed or state == "done",
                updated_at=self._now().timestamp(),
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
        """Claim a particular item in any state; its labels stay, the human verdict is removed.

        Args:
            steal: Take it even from somebody whose lease has not run out; they are fenced.

        Raises:
            LeaseLost: If somebody holds a lease on it that has not run out.
            RequestError: If the reviewer has another assignment at the prompt.
        """
        with self._writing() as connection:
            row, now = _row(connection, item_id, lock=True), self._now()
            item = item_of(row)
            action: ReviewAction = "reopened"
            if row.state == "leased" and row.lease_until >= now.timestamp():
                if not steal:
                    raise LeaseLost(f"prompt {row.prompt_id} is under review by {row.reviewer}")
                action = "stolen"
            _require_assignable(connection, item, reviewer)
            if item.kind != "repeat":
                drop_human_verdict(connection, row.prompt_id, row.pair)
            add_review_event(connection, item, reviewer, action, now)
            return _lease(connection, row, reviewer, lease_seconds, session, now)

    def return_items(self) -> int:
        """Put what was skipped or deferred back in the queue, for anybody; how many there were."""
        put_off = _columns.state.in_(("skipped", "deferred"))
        with self._writing() as connection:
            return connection.execute(
                update(_queue).where(put_off).values(state="pending")
            ).rowcount

    def waiting_for(self, reviewer: str, wanted: Wanted = ANYTHING) -> int:
        """Pending prompts of the wanted kinds a reviewer may be asked; filters do not count."""
        mine = _queue.alias("mine").c
        pending = (_columns.state == "pending") & _columns.kind.in_(wanted.kinds)
        pending &= not_of_another(reviewer)
        prompts = select(_columns.prompt_id, _columns.pair).where(pending)
        beside = (mine.prompt_id == _columns.prompt_id) & (mine.pair == _columns.pair)
        beside &= mine.kind.not_in(_BESIDE) & (mine.state != "pending")
        assigned = prompts.join(mine.prompt_id.table, beside)
        assigned = assigned.where(_columns.kind.not_in(_BESIDE), mine.reviewer == reviewer)
        several = exists().where(_columns.seat > 0, _columns.state == "pending")
        with self._reading() as connection:

            def count(query: Select) -> int:
                rows = query.subquery()
                return connection.execute(select(func.count()).select_from(rows)).scalar_one()

            if connection.execute(select(several)).scalar_one():
                prompts = prompts.distinct()
            return count(prompts) - count(assigned.distinct())

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
        with self._reading() as connection:
            return items_of(connection, query)

    def answered_by(self, reviewer: str) -> int:
        """How many items a reviewer has finished or rejected and not reopened."""
        answered = _columns.state.in_(("done", "rejected"))
        with self._reading() as connection:
            return count_rows(connection, _queue, _columns.reviewer == reviewer, answered)

    def log(
        self,
        item: ReviewItem,
        author: str,
        action: ReviewAction,
        *,
        text: str | None = None,
        tokens: tuple[int, ...] = (),
    ) -> None:
        """Keep what a reviewer did with an item, or wrote about it (action "note")."""
        with self._writing() as connection:
            now = self._now()
            add_review_event(connection, item, author, action, now, text=text, tokens=tokens)

    def events(self, prompt_id: str) -> tuple[ReviewEvent, ...]:
        """What reviewers did with a prompt and wrote about it, oldest first."""
        with self._reading() as connection:
            return review_events_of(connection, prompt_id)

    def answer_times(self, reviewer: str, last: int = 50) -> tuple[float, ...]:
        """When a reviewer finished or rejected items, UTC seconds, oldest first; the last few."""
        query = (
            select(_events.at)
            .where(_events.author == reviewer, _events.action.in_(("done", "rejected")))
            .order_by(_events.seq.desc())
            .limit(last)
        )
        with self._reading() as connection:
            return tuple(connection.execute(query).scalars())[::-1]


# --- Items, within a transaction --------------------------------------------------------------


def item_of(row: Row) -> ReviewItem:
    """The review item of a row."""
    fields = row._asdict()
    for name in ("lease_until", "enqueued_at", "updated_at"):
        if fields[name] is not None:
            fields[name] = datetime.fromtimestamp(fields[name], UTC)
    return ReviewItem(**fields)


def items_of(connection: Connection, query: Select) -> tuple[ReviewItem, ...]:
    """The review items of the rows that a query selects."""
    return tuple(map(item_of, connection.execute(query)))


def not_of_another(reviewer: str) -> ColumnElement[bool]:
    """The item was not created for another reviewer."""
    return _columns.kind.not_in(OWN_KINDS) | (_columns.reviewer == reviewer)


def not_assigned(reviewer: str) -> ColumnElement[bool]:
    """The reviewer has no other assignment at the prompt; repeats and adjudications are none."""
    other = _queue.alias("other_assignment").c
    taken = exists().where(
        other.prompt_id == _columns.prompt_id,
        other.pair == _columns.pair,
        other.item_id != _columns.item_id,
        other.reviewer == reviewer,
        other.state != "pending",
        other.kind.not_in(_BESIDE),
    )
    return _columns.kind.in_(_BESIDE) | ~taken


def lease_values(
    reviewer: str, session: str, lease_seconds: float, now: datetime
) -> dict[str, Any]:
    """What a row says while somebody is at work on its item."""
    return {
        "state": "leased",
        "reviewer": reviewer,
        "session": session,
        "lease_until": (now + timedelta(seconds=lease_seconds)).timestamp(),
        "updated_at": now.timestamp(),
    }


def set_item(connection: Connection, item_id: int, **values: object) -> ReviewItem:
    """Change a row, and give the item as it is then."""
    statement = update(_queue).where(_columns.item_id == item_id).values(**values)
    return item_of(connection.execute(statement.returning(*_columns)).one())


def require_lease(connection: Connection, item: ReviewItem, fence: int | None = None) -> str:
    """Refuse unless the item is leased under this fence (default: the item's own).

    The row stays locked until the transaction ends: nobody can take it meanwhile.

    Returns:
        Who holds it.

    Raises:
        LeaseLost: If it is not.
    """
    query = select(_columns.state, _columns.fence, _columns.reviewer)
    query = query.where(_columns.item_id == item.item_id).with_for_update()
    row = connection.execute(query).one_or_none()
    wanted = ("leased", item.fence if fence is None else fence)
    if row is None or (row.state, row.fence) != wanted:
        holder = f" (now {row.state}, {row.reviewer})" if row is not None else ""
        raise LeaseLost(
            f"your lease on prompt {item.prompt_id} ended and the item went on{holder}: "
            "your last answer was not saved; go on with the next item"
        )
    return str(row.reviewer)


def drop_human_verdict(connection: Connection, prompt_id: str, pair: str) -> None:
    """Take back a reviewer's verdict: its item is open again."""
    table = tables.verdicts
    these = where(table, prompt_id=prompt_id, pair=pair, judge=HUMAN)
    connection.execute(delete(table).where(*these))


def _lease(
    connection: Connection,
    row: Row,
    reviewer: str,
    lease_seconds: float,
    session: str,
    now: datetime,
) -> ReviewItem:
    values = lease_values(reviewer, session, lease_seconds, now)
    # What one reviewer was shown, another was not.
    values |= {"fence": row.fence + 1, "revealed": row.revealed and row.reviewer == reviewer}
    return set_item(connection, row.item_id, **values)


def _require_assignable(connection: Connection, item: ReviewItem, reviewer: str) -> None:
    if item.kind == "repeat" and item.reviewer != reviewer:
        raise RequestError(f"item {item.item_id} asks {item.reviewer} a second time, nobody else")
    if not count_rows(connection, _queue, _columns.item_id == item.item_id, not_assigned(reviewer)):
        raise RequestError(
            f"{reviewer} has another assignment at prompt {item.prompt_id}: reopen that one"
        )


def _row(connection: Connection, item_id: int, *, lock: bool = False) -> Row:
    query = select(_queue).where(_columns.item_id == item_id)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise RequestError(f"no review item {item_id}")
    return row


# --- The log, within a transaction: events are added, never changed ---------------------------


def add_review_event(
    connection: Connection,
    item: ReviewItem,
    author: str,
    action: ReviewAction,
    at: datetime,
    *,
    text: str | None = None,
    tokens: tuple[int, ...] = (),
) -> None:
    """Add what a reviewer did with an item."""
    event = ReviewEvent(
        prompt_id=item.prompt_id,
        pair=item.pair,
        author=author,
        action=action,
        item_id=item.item_id,
        text=text,
        tokens=tokens,
        at=at,
    )
    insert_review_event(connection, event)


def insert_review_event(connection: Connection, event: ReviewEvent) -> None:
    """Add an event."""
    row = row_of(tables.review_events, event, at=event.at.timestamp())
    connection.execute(insert(tables.review_events).values(**row))


def review_events_of(connection: Connection, prompt_id: str) -> tuple[ReviewEvent, ...]:
    """A prompt's events, oldest first."""
    query = select(_events.payload).where(_events.prompt_id == prompt_id).order_by(_events.seq)
    return values(connection, ReviewEvent, query)
