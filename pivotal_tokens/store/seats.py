"""Which prompts stand in the queue, at how many seats, and what is mixed in among them?

    review         flagged by the judge
    control        unflagged, drawn with a recorded probability: shows what the judge misses
    calibration    one of the queue's first items, one seat more for a reviewer who begins
    repeat         an own finished item asked again: shows how steady a reviewer is
    adjudication   reviewers disagree: one person's labels settle it

Reviewers are not told which is which. A control is drawn with

    p = min(1, share / (1 - share) * (F + 1) / (U + 1))

from the F flagged items queued and the U unflagged prompts seen before it, so that controls come to
about `share` of the queue; p is kept with it, and 1/p weighs it in estimates over all prompts.

    store.enqueue(prompt_id, pair, "flagged:injection")
    store.enqueue_control(prompt_id, pair)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Table,
    and_,
    case,
    delete,
    exists,
    func,
    insert,
    literal,
    select,
)

from pivotal_tokens.schema import ItemKind, ReviewConfig, ReviewItem
from pivotal_tokens.store import tables
from pivotal_tokens.store.database import Database
from pivotal_tokens.store.dialect import insert_new, lock_name, upsert
from pivotal_tokens.store.order import known_order
from pivotal_tokens.store.queue import item_of

_CONFIG = "review_config"
_REPEAT_AFTER = 20  # finished items before the first repeat
_REPEAT_GAP = 10  # answers between an item and its repeat, at least

_queue = tables.queue
_columns = tables.queue.c
_SHARED = ("review", "control")


class SeatRows(Database):
    """How prompts come into the queue."""

    def review_config(self) -> ReviewConfig:
        """How the queue is shared out; the defaults unless set."""
        with self.reading() as connection:
            return _config(connection)

    def set_review_config(self, config: ReviewConfig) -> None:
        """Share the queue out in another way, what stands in it included.

        Seats are added where `overlap` rises; where it falls, those that nobody ever took go.
        """
        with self.writing() as connection:
            set_config(connection, config)
            for seat in range(1, config.overlap):
                _add_seat(connection, seat)
            connection.execute(
                delete(_queue).where(
                    _columns.seat >= config.overlap,
                    _columns.kind.in_(_SHARED),
                    _columns.state == "pending",
                    _columns.fence == 0,
                )
            )

    def enqueue(
        self,
        prompt_id: str,
        pair: str,
        reason: str,
        *,
        kind: ItemKind = "review",
        sampling: float | None = None,
    ) -> bool:
        """Queue a prompt for review, a seat for each reviewer that the overlap asks for.

        Args:
            prompt_id: Which prompt.
            pair: Under which model pair.
            reason: Why; a reviewer does not see it.
            kind: What it is.
            sampling: With which probability it was drawn, where it was.

        Returns:
            False if it was queued before, whatever became of it.
        """
        with self.writing() as connection:
            now = self.now()
            return queue_prompt(
                connection, prompt_id, pair, reason, now, kind=kind, sampling=sampling
            )

    def enqueue_control(self, prompt_id: str, pair: str) -> bool:
        """Draw once whether an unflagged prompt is queued as a control, and keep the draw.

        Returns:
            True if it is queued now by this call.
        """
        with self.writing() as connection:
            return draw_control(connection, prompt_id, pair, self.now())

    def control_draws(self, pair: str | None = None) -> dict[str, tuple[float, bool]]:
        """Prompt id -> (probability, drawn?) of every unflagged prompt of a pair."""
        draws = tables.control_draws.c
        query = select(draws.prompt_id, draws.sampling, draws.drawn)
        if pair is not None:
            query = query.where(draws.pair == pair)
        with self.reading() as connection:
            return {row.prompt_id: (row.sampling, row.drawn) for row in connection.execute(query)}

    def claim_calibration(
        self, reviewer: str, lease_seconds: float, *, session: str = ""
    ) -> ReviewItem | None:
        """A seat of the reviewer's own at the next of the queue's first items, or None.

        A seat that nobody answered goes first: one given back, waiting or deferred, one whose
        lease ran out. Where there is none the item gets one more, but not while somebody is at
        work on it (two people see an item at one time only where an overlap asks for it), nor
        where somebody skipped it (it comes when skipped ones are asked for).
        """
        with self.writing() as connection:
            lock_name(connection, f"reviewer {reviewer}")
            now = self.now().timestamp()
            for first in _first_items(connection, reviewer):
                if first.answered:
                    continue
                lock_name(connection, f"seats {first.prompt_id} {first.pair}")
                free = _free_seat_of(connection, first, reviewer, now)
                if free is not None:
                    held = self._held(reviewer, lease_seconds, session)
                    held |= {"fence": _columns.fence + 1, "revealed": False}
                    taken = _queue.update().where(_columns.item_id == free).values(**held)
                    return item_of(connection.execute(taken.returning(*_columns)).one())
                if not _closed(connection, first, now):
                    return self._own_seat(
                        connection, first.item_id, reviewer, lease_seconds, session, "calibration"
                    )
            return None

    def calibration_waiting(self, reviewer: str) -> int:
        """How many of the queue's first items only this reviewer is still to answer."""
        with self.reading() as connection:
            first = _first_items(connection, reviewer)
        return sum(not (item.answered or item.waits) for item in first)

    def claim_repeat(
        self, reviewer: str, lease_seconds: float, *, session: str = ""
    ) -> ReviewItem | None:
        """An own finished item to be answered again, when it is time for one, or None.

        Whether it is time is drawn once for each number of finished items.
        """
        with self.writing() as connection:
            lock_name(connection, f"reviewer {reviewer}")
            config = _config(connection)
            own = and_(_columns.reviewer == reviewer, _columns.state == "done")
            count = select(func.count()).select_from(_queue).where(own)
            done = connection.execute(count).scalar_one()
            if (
                done < _REPEAT_AFTER
                or uniform(config.seed, "repeat", reviewer, str(done)) >= config.repeat_share
            ):
                return None
            again = _queue.alias("again").c
            repeated = exists().where(
                again.prompt_id == _columns.prompt_id,
                again.pair == _columns.pair,
                again.kind == "repeat",
                again.reviewer == reviewer,
            )
            query = (
                select(_columns.item_id)
                .where(own, _columns.kind.in_((*_SHARED, "calibration")), ~repeated)
                .order_by(_columns.updated_at)
                .limit(max(1, done - _REPEAT_GAP))
            )
            ids = connection.execute(query).scalars().all()
            if not ids:
                return None
            chosen = ids[int(uniform(config.seed, "which", reviewer, str(done)) * len(ids))]
            return self._own_seat(connection, chosen, reviewer, lease_seconds, session, "repeat")

    def add_adjudication(self, item: ReviewItem) -> bool:
        """Queue a prompt for one person to settle; False if it stands there already."""
        with self.writing() as connection:
            if _adjudications(connection, item):
                return False
            copied = _copied(connection, item.item_id)
            copied |= {"kind": "adjudication", "reason": "reviewers disagree"}
            seat = _free_seat(connection, item)
            return _add(connection, self.now(), **copied, seat=seat)

    def drop_adjudication(self, item: ReviewItem) -> None:
        """Take an adjudication that nobody began out of the queue: reviewers agree now."""
        with self.writing() as connection:
            connection.execute(
                delete(_queue).where(
                    _columns.prompt_id == item.prompt_id,
                    _columns.pair == item.pair,
                    _columns.kind == "adjudication",
                    _columns.state.in_(("pending", "skipped", "deferred")),
                )
            )

    def _own_seat(
        self,
        connection: Connection,
        item_id: int,
        reviewer: str,
        lease_seconds: float,
        session: str,
        kind: ItemKind,
    ) -> ReviewItem:
        """One seat more at an item's prompt, leased."""
        item = item_of(connection.execute(select(_queue).where(_columns.item_id == item_id)).one())
        lock_name(connection, f"seats {item.prompt_id} {item.pair}")
        held = self._held(reviewer, lease_seconds, session)
        values = _copied(connection, item_id) | held | {"kind": kind, "fence": 1}
        values |= {"seat": _free_seat(connection, item), "enqueued_at": held["updated_at"]}
        made = insert(_queue).values(**values).returning(*_columns)
        return item_of(connection.execute(made).one())

    def _held(self, reviewer: str, lease_seconds: float, session: str) -> dict[str, Any]:
        """What a seat says while somebody is at work on it."""
        now = self.now()
        return {
            "state": "leased",
            "reviewer": reviewer,
            "session": session,
            "lease_until": (now + timedelta(seconds=lease_seconds)).timestamp(),
            "updated_at": now.timestamp(),
        }


def queue_prompt(
    connection: Connection,
    prompt_id: str,
    pair: str,
    reason: str,
    now: datetime,
    *,
    kind: ItemKind = "review",
    sampling: float | None = None,
) -> bool:
    """Queue a prompt within a transaction; see `SeatRows.enqueue`."""
    values = known_order(connection, prompt_id, pair) | {
        "prompt_id": prompt_id,
        "pair": pair,
        "kind": kind,
        "reason": reason,
        "sampling": sampling,
    }
    if not _add(connection, now, **values, seat=0):
        return False
    for seat in range(1, _config(connection).overlap):
        _add(connection, now, **values, seat=seat)
    return True


def draw_control(connection: Connection, prompt_id: str, pair: str, now: datetime) -> bool:
    """Draw a control within a transaction; see `SeatRows.enqueue_control`."""
    config = _config(connection)
    probability = _control_probability(connection, pair, config.control_share)
    drawn = uniform(config.seed, "control", prompt_id, pair) < probability
    values = {"prompt_id": prompt_id, "pair": pair, "sampling": probability, "drawn": drawn}
    if not insert_new(connection, tables.control_draws, values, ["prompt_id", "pair"]):
        return False
    return drawn and queue_prompt(
        connection, prompt_id, pair, "control", now, kind="control", sampling=probability
    )


def uniform(seed: int, *names: str) -> float:
    """A number in [0, 1) that follows from names alone, evenly spread over them."""
    digest = hashlib.sha256("\n".join([str(seed), *names]).encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def _first_items(connection: Connection, reviewer: str) -> Sequence[Row]:
    """The items that everybody begins with; did this reviewer answer them, do they wait anyway?"""
    other = _queue.alias("other").c
    here = (other.prompt_id == _columns.prompt_id) & (other.pair == _columns.pair)
    mine = other.reviewer == reviewer
    begun = (other.state != "pending") | (other.kind == "adjudication")  # who saw all labels
    waiting = other.kind.in_(_SHARED) | ((other.kind == "calibration") & mine)
    unanswered = other.state.in_(("pending", "skipped"))
    query = (
        select(
            _columns.item_id,
            _columns.prompt_id,
            _columns.pair,
            exists().where(here, mine, begun).label("answered"),
            exists().where(here, waiting, unanswered).label("waits"),
        )
        .where(_columns.seat == 0, _columns.kind.in_(_SHARED))
        .order_by(_columns.item_id)
        .limit(_config(connection).calibration)
    )
    return connection.execute(query).all()


def _free_seat_of(connection: Connection, first: Row, reviewer: str, now: float) -> int | None:
    """A seat that nobody answered, the reviewer's own before others; locked."""
    mine = _columns.reviewer == reviewer
    over = (_columns.state == "leased") & (_columns.lease_until < now)
    query = (
        select(_columns.item_id)
        .where(
            _columns.prompt_id == first.prompt_id,
            _columns.pair == first.pair,
            _columns.kind.in_(_SHARED) | ((_columns.kind == "calibration") & mine),
            _columns.state.in_(("pending", "deferred")) | over,
        )
        .order_by(
            case((mine, 0), else_=1), case((_columns.state == "pending", 0), else_=1), _columns.seat
        )
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    return connection.execute(query).scalar_one_or_none()


def _closed(connection: Connection, first: Row, now: float) -> bool:
    """Is somebody at work on the item, or did somebody skip it?"""
    query = select(_columns.item_id).where(
        _columns.prompt_id == first.prompt_id,
        _columns.pair == first.pair,
        ((_columns.state == "leased") & (_columns.lease_until >= now))
        | (_columns.state == "skipped"),
    )
    return connection.execute(query.limit(1)).first() is not None


def _add(connection: Connection, now: datetime, **values: Any) -> bool:
    at = now.timestamp()
    row = {"state": "pending", "enqueued_at": at, "updated_at": at} | values
    return insert_new(connection, _queue, row, ["prompt_id", "pair", "seat"])


def set_config(connection: Connection, config: ReviewConfig) -> None:
    """Keep how the queue is shared out, within a transaction; seats are not added."""
    values = {"name": _CONFIG, "value": config.model_dump_json()}
    upsert(connection, tables.meta, values, ["name"])


def config_set(connection: Connection) -> ReviewConfig | None:
    """How somebody said that the queue is shared out, if anybody did."""
    query = select(tables.meta.c.value).where(tables.meta.c.name == _CONFIG)
    value = connection.execute(query).scalar_one_or_none()
    return None if value is None else ReviewConfig.model_validate_json(value)


def _config(connection: Connection) -> ReviewConfig:
    return config_set(connection) or ReviewConfig()


def _control_probability(connection: Connection, pair: str, share: float) -> float:
    def number(table: Table, *where: ColumnElement[bool]) -> int:
        query = select(func.count()).select_from(table).where(table.c.pair == pair, *where)
        return connection.execute(query).scalar_one()

    flagged = number(_queue, _columns.seat == 0, _columns.kind == "review")
    unflagged = number(tables.control_draws)
    return min(1.0, share / (1 - share) * (flagged + 1) / (unflagged + 1))


def _add_seat(connection: Connection, seat: int) -> None:
    """A further seat at every prompt that has a first one but not this one."""
    other = _queue.alias("other").c
    there = exists().where(
        other.prompt_id == _columns.prompt_id, other.pair == _columns.pair, other.seat == seat
    )
    names = [*_COPIED, "enqueued_at", "updated_at"]
    rows = select(literal(seat), literal("pending"), *(_columns[name] for name in names))
    rows = rows.where(_columns.seat == 0, ~there)
    connection.execute(insert(_queue).from_select(["seat", "state", *names], rows))


_COPIED = (
    "prompt_id",
    "pair",
    "kind",
    "reason",
    "sampling",
    "flagged",
    "evil_mass",
    "uncertainty",
)


def _copied(connection: Connection, item_id: int) -> dict[str, object]:
    """What every seat at a prompt has in common."""
    query = select(*(_columns[name] for name in _COPIED)).where(_columns.item_id == item_id)
    return dict(connection.execute(query).one()._mapping)


def _free_seat(connection: Connection, item: ReviewItem) -> int:
    """A seat number beyond any that the overlap may ask for."""
    query = select(func.max(_columns.seat)).where(
        _columns.prompt_id == item.prompt_id, _columns.pair == item.pair
    )
    return max(99, connection.execute(query).scalar_one()) + 1


def _adjudications(connection: Connection, item: ReviewItem) -> bool:
    query = select(_columns.item_id).where(
        _columns.prompt_id == item.prompt_id,
        _columns.pair == item.pair,
        _columns.kind == "adjudication",
    )
    return connection.execute(query).first() is not None
