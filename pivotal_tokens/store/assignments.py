"""Assignments of the review queue: overlap, controls, repeats and calibration items.

    review         flagged by the judge
    control        unflagged, drawn with a recorded probability: shows what the judge misses
    calibration    one of the queue's first items, one assignment more for a reviewer who begins
    repeat         an own finished item asked again: shows how steady a reviewer is
    adjudication   reviewers disagree: one person's labels settle it

Reviewers do not see which is which. A control is drawn with

    p = min(1, share / (1 - share) * (F + 1) / (U + 1))

from the F flagged items queued and the U unflagged prompts seen before it, so that controls come to
about `share` of the queue; p is kept with it, and 1/p weighs it in estimates over all prompts.

The column ``seat`` numbers the assignments to a prompt: 0 to overlap - 1 are the overlap's, those
of one reviewer alone (calibration, repeat) and adjudications begin at 100.

    store.assignments.add(prompt_id, pair, "flagged:injection")
    store.assignments.draw_control(prompt_id, pair)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    case,
    delete,
    exists,
    func,
    insert,
    literal,
    select,
)

from pivotal_tokens.schema import ItemKind, ReviewConfig, ReviewEvent, ReviewItem
from pivotal_tokens.store import tables
from pivotal_tokens.store.database import Repository
from pivotal_tokens.store.dialect import insert_new, lock_name
from pivotal_tokens.store.order import known_order
from pivotal_tokens.store.queue import insert_review_event, item_of, lease_values, set_item
from pivotal_tokens.store.rows import count_rows, meta, narrowed, set_meta

_CONFIG = "review_config"
_REPEAT_AFTER = 20  # finished items before the first repeat
_REPEAT_GAP = 10  # answers between an item and its repeat, at least
_OWN_SEATS = 100  # number of the first assignment beyond any overlap
_SHARED: tuple[ItemKind, ...] = ("review", "control")  # the overlap's
_COPIED = (
    "prompt_id",
    "pair",
    "kind",
    "reason",
    "sampling",
    "flagged",
    "evil_mass",
    "uncertainty",
    "disagreement",
)

_queue = tables.queue
_columns = tables.queue.c


class Assignments(Repository):
    """How prompts come into the queue."""

    def config(self) -> ReviewConfig:
        """How the queue is shared out; the defaults unless set."""
        with self._reading() as connection:
            return config_of(connection)

    def set_config(self, config: ReviewConfig) -> None:
        """Reconfigure the queue, including the items already in it.

        Assignments are added where `overlap` rises; where it falls, those that nobody ever took go.
        """
        with self._writing() as connection:
            set_meta(connection, _CONFIG, config.model_dump_json())
            for seat in range(1, config.overlap):
                _add_everywhere(connection, seat)
            connection.execute(
                delete(_queue).where(
                    _columns.seat >= config.overlap,
                    _columns.kind.in_(_SHARED),
                    _columns.state == "pending",
                    _columns.fence == 0,
                )
            )

    def take_config(self, config: ReviewConfig) -> bool:
        """Share the queue out so, unless this store says how already, or has a queue."""
        with self._writing() as connection:
            if count_rows(connection, _queue) or meta(connection, _CONFIG) is not None:
                return False
            set_meta(connection, _CONFIG, config.model_dump_json())
            return True

    def add(
        self,
        prompt_id: str,
        pair: str,
        reason: str,
        *,
        kind: ItemKind = "review",
        sampling: float | None = None,
    ) -> bool:
        """Queue a prompt once for each reviewer that the overlap asks for; False if it was."""
        with self._writing() as connection:
            now = self._now()
            return enqueue(connection, prompt_id, pair, reason, now, kind=kind, sampling=sampling)

    def draw_control(self, prompt_id: str, pair: str) -> bool:
        """Draw once whether an unflagged prompt is queued as a control; was it now?"""
        with self._writing() as connection:
            return draw_control(connection, prompt_id, pair, self._now())

    def control_draws(self, pair: str | None = None) -> dict[str, tuple[float, bool]]:
        """Prompt id -> (probability, drawn?) of every unflagged prompt of a pair."""
        draws = tables.control_draws.c
        query = select(draws.prompt_id, draws.sampling, draws.drawn)
        with self._reading() as connection:
            rows = connection.execute(narrowed(query, tables.control_draws, pair=pair))
            return {row.prompt_id: (row.sampling, row.drawn) for row in rows}

    def take_calibration(
        self, reviewer: str, lease_seconds: float, *, session: str = ""
    ) -> ReviewItem | None:
        """An assignment of the reviewer's own to the next of the queue's first items, or None.

        One that nobody answered goes first: one given back, waiting or deferred, one whose lease
        ran out. Where there is none the item gets one more, but not while somebody is at work on it
        (two people see an item at one time only where an overlap asks for it), nor where somebody
        skipped it (it comes when skipped ones are asked for).
        """
        with self._writing() as connection:
            lock_name(connection, f"reviewer {reviewer}")
            now = self._now()
            held = lease_values(reviewer, session, lease_seconds, now)
            for first in _calibration_items(connection, reviewer):
                if first.answered:
                    continue
                lock_name(connection, f"seats {first.prompt_id} {first.pair}")
                free = _unanswered_assignment(connection, first, reviewer, now)
                if free is not None:
                    held |= {"fence": _columns.fence + 1, "revealed": False}
                    return set_item(connection, free, **held)
                at_work = (_columns.state == "leased") & (_columns.lease_until >= now.timestamp())
                taken = at_work | (_columns.state == "skipped")
                if not count_rows(connection, _queue, *_at(first), taken):
                    return _add_own(connection, first.item_id, held, "calibration")
            return None

    def calibration_waiting(self, reviewer: str) -> int:
        """How many of the queue's first items only this reviewer is still to answer."""
        with self._reading() as connection:
            first = _calibration_items(connection, reviewer)
        return sum(not (item.answered or item.waits) for item in first)

    def take_repeat(
        self, reviewer: str, lease_seconds: float, *, session: str = ""
    ) -> ReviewItem | None:
        """An own finished item to be answered again, when it is time for one, or None.

        Whether it is time is drawn once for each number of finished items.
        """
        with self._writing() as connection:
            lock_name(connection, f"reviewer {reviewer}")
            config = config_of(connection)
            own = and_(_columns.reviewer == reviewer, _columns.state == "done")
            done = count_rows(connection, _queue, own)
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
            held = lease_values(reviewer, session, lease_seconds, self._now())
            return _add_own(connection, chosen, held, "repeat")

    def add_adjudication(self, item: ReviewItem) -> bool:
        """Queue a prompt for one adjudicator; False if it is queued already."""
        here = (_columns.prompt_id == item.prompt_id, _columns.pair == item.pair)
        with self._writing() as connection:
            if count_rows(connection, _queue, *here, _columns.kind == "adjudication"):
                return False
            copied = _copied(connection, item.item_id)
            copied |= {"kind": "adjudication", "reason": "reviewers disagree"}
            seat = _own_seat(connection, item.prompt_id, item.pair)
            return _add(connection, self._now(), **copied, seat=seat)

    def drop_adjudication(self, item: ReviewItem) -> None:
        """Remove an adjudication that nobody began: the reviewers agree now."""
        with self._writing() as connection:
            connection.execute(
                delete(_queue).where(
                    _columns.prompt_id == item.prompt_id,
                    _columns.pair == item.pair,
                    _columns.kind == "adjudication",
                    _columns.state.in_(("pending", "skipped", "deferred")),
                )
            )

    def import_rejection(self, prompt_id: str, author: str, reason: str) -> bool:
        """A rejection from elsewhere: under every pair of the prompt; False if it was queued here.

        What people of this store do or did with the prompt is left alone.
        """
        lists, now = tables.next_tokens.c, self._now()
        with self._writing() as connection:
            if count_rows(connection, _queue, _columns.prompt_id == prompt_id):
                return False
            query = select(lists.pair).where(lists.prompt_id == prompt_id).order_by(lists.pair)
            for pair in connection.execute(query).scalars().all() or ["imported"]:
                rejected = {"state": "rejected", "reviewer": author, "reason": "imported"}
                _add(connection, now, prompt_id=prompt_id, pair=pair, seat=0, **rejected)
                event = ReviewEvent(
                    prompt_id=prompt_id,
                    pair=pair,
                    author=author,
                    action="rejected",
                    text=reason,
                    at=now,
                )
                insert_review_event(connection, event)
        return True


# --- Within a transaction ---------------------------------------------------------------------


def enqueue(
    connection: Connection,
    prompt_id: str,
    pair: str,
    reason: str,
    now: datetime,
    *,
    kind: ItemKind = "review",
    sampling: float | None = None,
) -> bool:
    """Queue a prompt; see `Assignments.add`."""
    row = known_order(connection, prompt_id, pair) | {
        "prompt_id": prompt_id,
        "pair": pair,
        "kind": kind,
        "reason": reason,
        "sampling": sampling,
    }
    if not _add(connection, now, **row, seat=0):
        return False
    for seat in range(1, config_of(connection).overlap):
        _add(connection, now, **row, seat=seat)
    return True


def draw_control(connection: Connection, prompt_id: str, pair: str, now: datetime) -> bool:
    """Draw a control; see `Assignments.draw_control`."""
    config = config_of(connection)
    probability = _control_probability(connection, pair, config.control_share)
    drawn = uniform(config.seed, "control", prompt_id, pair) < probability
    row = {"prompt_id": prompt_id, "pair": pair, "sampling": probability, "drawn": drawn}
    if not insert_new(connection, tables.control_draws, row):
        return False
    return drawn and enqueue(
        connection, prompt_id, pair, "control", now, kind="control", sampling=probability
    )


def uniform(seed: int, *names: str) -> float:
    """A number in [0, 1) that follows from names alone, evenly spread over them."""
    digest = hashlib.sha256("\n".join([str(seed), *names]).encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def config_of(connection: Connection) -> ReviewConfig:
    """How the queue is shared out; the defaults unless set."""
    found = meta(connection, _CONFIG)
    return ReviewConfig() if found is None else ReviewConfig.model_validate_json(found)


def _control_probability(connection: Connection, pair: str, share: float) -> float:
    shared = (_columns.pair == pair, _columns.seat == 0, _columns.kind == "review")
    flagged = count_rows(connection, _queue, *shared)
    unflagged = count_rows(connection, tables.control_draws, tables.control_draws.c.pair == pair)
    return min(1.0, share / (1 - share) * (flagged + 1) / (unflagged + 1))


def _calibration_items(connection: Connection, reviewer: str) -> Sequence[Row]:
    """The items that everybody begins with, with this reviewer's state of each."""
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
        .limit(config_of(connection).calibration)
    )
    return connection.execute(query).all()


def _unanswered_assignment(
    connection: Connection, first: Row, reviewer: str, now: datetime
) -> int | None:
    """An assignment that nobody answered, the reviewer's own before others'; locked."""
    mine = _columns.reviewer == reviewer
    order = (case((mine, 0), else_=1), case((_columns.state == "pending", 0), else_=1))
    query = (
        select(_columns.item_id)
        .where(
            *_at(first),
            _columns.kind.in_(_SHARED) | ((_columns.kind == "calibration") & mine),
            _columns.state.in_(("pending", "deferred"))
            | ((_columns.state == "leased") & (_columns.lease_until < now.timestamp())),
        )
        .order_by(*order, _columns.seat)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    return connection.execute(query).scalar_one_or_none()


def _at(row: Row) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """The assignments to the same prompt under the same pair."""
    return _columns.prompt_id == row.prompt_id, _columns.pair == row.pair


def _add(connection: Connection, now: datetime, **row: Any) -> bool:
    at = now.timestamp()
    row = {"state": "pending", "enqueued_at": at, "updated_at": at} | row
    return insert_new(connection, _queue, row)


def _add_own(
    connection: Connection, item_id: int, held: dict[str, Any], kind: ItemKind
) -> ReviewItem:
    """One assignment more to an item's prompt, leased."""
    copied = _copied(connection, item_id)
    prompt_id, pair = copied["prompt_id"], copied["pair"]
    lock_name(connection, f"seats {prompt_id} {pair}")
    row = copied | held | {"kind": kind, "fence": 1, "enqueued_at": held["updated_at"]}
    row["seat"] = _own_seat(connection, prompt_id, pair)
    return item_of(connection.execute(insert(_queue).values(**row).returning(*_columns)).one())


def _add_everywhere(connection: Connection, seat: int) -> None:
    """A further assignment to every prompt that has a first one but not this one."""
    other = _queue.alias("other").c
    there = exists().where(
        other.prompt_id == _columns.prompt_id, other.pair == _columns.pair, other.seat == seat
    )
    names = [*_COPIED, "enqueued_at", "updated_at"]
    rows = select(literal(seat), literal("pending"), *(_columns[name] for name in names))
    rows = rows.where(_columns.seat == 0, ~there)
    connection.execute(insert(_queue).from_select(["seat", "state", *names], rows))


def _copied(connection: Connection, item_id: int) -> dict[str, Any]:
    """What every assignment to a prompt has in common."""
    query = select(*(_columns[name] for name in _COPIED)).where(_columns.item_id == item_id)
    return dict(connection.execute(query).one()._mapping)


def _own_seat(connection: Connection, prompt_id: str, pair: str) -> int:
    """A number beyond any that the overlap may ask for."""
    query = select(func.max(_columns.seat))
    last = connection.execute(narrowed(query, _queue, prompt_id=prompt_id, pair=pair)).scalar_one()
    return max(_OWN_SEATS - 1, last) + 1
