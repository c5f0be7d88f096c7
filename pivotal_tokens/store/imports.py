"""Which labels came from outside and contradict what stands here, and which token does a text mean?

A label from a file never replaces a person's: the two are kept side by side, the one in force and
the other here, and the prompt goes back into the review queue until a person has decided.

    store.add_conflict(LabelConflict(event=event, against="safe", by="ada", source="old.csv"))
    store.conflicts()                       # those not decided yet
    store.token_texts("44a71bc74c37")       # {17: " definitely", ...}
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import AwareDatetime, Field
from sqlalchemy import Connection, Row, Table, func, insert, select, update

from pivotal_tokens.schema import (
    Frozen,
    Label,
    LabelEvent,
    NextTokenPair,
    ReviewAction,
    ReviewEvent,
    utc_now,
)
from pivotal_tokens.store import tables
from pivotal_tokens.store.database import Database
from pivotal_tokens.store.dialect import insert_new
from pivotal_tokens.store.results import drop_human_verdict
from pivotal_tokens.store.review_log import insert_review_event

_SETTLED = ("done", "skipped", "deferred", "rejected")


class LabelConflict(Frozen):
    """An imported label that was not applied, and what it contradicts."""

    event: LabelEvent
    against: Label  # the label in force here
    by: str  # whose that is
    source: str  # the file it came from
    at: AwareDatetime = Field(default_factory=utc_now)


class ImportRows(Database):
    """Conflicts of imports, and token texts by prompt."""

    def token_texts(self, prompt_id: str) -> dict[int, str]:
        """Token id -> text, over the next-token lists of a prompt under every pair."""
        return {
            token.token_id: token.text
            for lists in self.lists_of(prompt_id).values()
            for token in lists.base.tokens
        }

    def lists_of(self, prompt_id: str) -> dict[str, NextTokenPair]:
        """Pair -> both models' lists, of one prompt."""
        table = tables.next_tokens
        query = select(table.c.pair, table.c.payload).where(table.c.prompt_id == prompt_id)
        with self.reading() as connection:
            rows = connection.execute(query.order_by(table.c.pair)).all()
        return {row.pair: NextTokenPair.model_validate_json(row.payload) for row in rows}

    def add_conflict(self, conflict: LabelConflict) -> bool:
        """Keep a conflict and queue its prompt for review; False if it was known.

        Under each pair that has next tokens the prompt is queued, or waits again if it was settled;
        an item that somebody holds stays theirs.
        """
        event = conflict.event
        values: dict[str, Any] = {
            "event_id": event.event_id,
            "prompt_id": event.prompt_id,
            "token_id": event.token_id,
            "payload": conflict.model_dump_json(),
        }
        with self.writing() as connection:
            values["after_label"] = _last(connection, tables.label_events)
            values["after_review"] = _last(connection, tables.review_events)
            if not insert_new(connection, tables.label_conflicts, values, ["event_id"]):
                return False
            lists = tables.next_tokens.c
            for pair in connection.execute(
                select(lists.pair).where(lists.prompt_id == event.prompt_id)
            ).scalars():
                self._queue_again(connection, event.prompt_id, pair, conflict)
        return True

    def conflicts(self, prompt_id: str | None = None) -> tuple[LabelConflict, ...]:
        """Conflicts that no person has decided since, oldest first."""
        with self.reading() as connection:
            rows = _undecided(connection, prompt_id)
        return tuple(LabelConflict.model_validate_json(row.payload) for row in rows)

    def import_rejection(self, prompt_id: str, author: str, reason: str) -> bool:
        """A rejection from elsewhere: under every pair of the prompt; False if it was queued here.

        What people of this store do or did with the prompt is left alone.
        """
        pairs = list(self.lists_of(prompt_id)) or ["imported"]
        now = self.now()
        queue = tables.queue
        with self.writing() as connection:
            known = select(queue.c.item_id).where(queue.c.prompt_id == prompt_id).limit(1)
            if connection.execute(known).first() is not None:
                return False
            for pair in pairs:
                values = {
                    "prompt_id": prompt_id,
                    "pair": pair,
                    "reason": "imported",
                    "state": "rejected",
                    "reviewer": author,
                    "fence": 0,
                    "revealed": False,
                    "enqueued_at": now.timestamp(),
                    "updated_at": now.timestamp(),
                }
                connection.execute(insert(queue).values(**values))
                _add_review_event(connection, prompt_id, pair, author, "rejected", reason, now)
        return True

    def _queue_again(
        self, connection: Connection, prompt_id: str, pair: str, conflict: LabelConflict
    ) -> None:
        now = self.now().timestamp()
        reason = f"conflict: {conflict.source}"
        queue = tables.queue
        values = {
            "prompt_id": prompt_id,
            "pair": pair,
            "reason": reason,
            "state": "pending",
            "fence": 0,
            "revealed": False,
            "enqueued_at": now,
            "updated_at": now,
        }
        here = (queue.c.prompt_id == prompt_id) & (queue.c.pair == pair)
        if connection.execute(select(queue.c.item_id).where(here)).first() is None:
            connection.execute(insert(queue).values(**values))
            return
        changed = connection.execute(
            update(queue)
            .where(here, queue.c.state.in_(_SETTLED))
            .values(state="pending", reason=reason, updated_at=now)
        )
        if changed.rowcount:
            drop_human_verdict(connection, prompt_id, pair)
            _add_review_event(connection, prompt_id, pair, "import", "reopened", reason, self.now())


def _add_review_event(
    connection: Connection,
    prompt_id: str,
    pair: str,
    author: str,
    action: ReviewAction,
    text: str,
    at: datetime,
) -> None:
    event = ReviewEvent(
        prompt_id=prompt_id, pair=pair, author=author, action=action, text=text, at=at
    )
    insert_review_event(connection, event)


def _last(connection: Connection, table: Table) -> int:
    return connection.execute(select(func.max(table.c.seq))).scalar_one() or 0


def has_conflict(connection: Connection, prompt_id: str) -> bool:
    """Does a prompt have a conflict that no person has decided? Within a transaction."""
    return bool(_undecided(connection, prompt_id))


def _undecided(connection: Connection, prompt_id: str | None) -> list[Row]:
    table = tables.label_conflicts
    query = select(table).order_by(table.c.seq)
    if prompt_id is not None:
        query = query.where(table.c.prompt_id == prompt_id)
    return [row for row in connection.execute(query).all() if not _decided(connection, row)]


def _decided(connection: Connection, conflict: Row) -> bool:
    """Did a person settle the prompt, or label the token again, since?"""
    labels, reviews = tables.label_events.c, tables.review_events.c
    labelled = select(labels.seq).where(
        labels.prompt_id == conflict.prompt_id,
        labels.token_id == conflict.token_id,
        labels.author_kind == "human",
        labels.seq > conflict.after_label,
    )
    if connection.execute(labelled.limit(1)).first() is not None:
        return True
    since = select(reviews.payload).where(
        reviews.prompt_id == conflict.prompt_id, reviews.seq > conflict.after_review
    )
    payloads = connection.execute(since).scalars().all()
    events = map(ReviewEvent.model_validate_json, payloads)
    return any(event.action in ("done", "rejected") for event in events)
