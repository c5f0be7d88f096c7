"""What did reviewers do with the queue's items, and write about them?

Events are added, never changed. From their times follows how fast each reviewer works.

    store.review_events(prompt_id)        # oldest first
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, func, insert, select

from pivotal_tokens.schema import ReviewAction, ReviewEvent, ReviewItem
from pivotal_tokens.store import tables
from pivotal_tokens.store.database import Database

_events = tables.review_events.c


class ReviewLogRows(Database):
    """The events of reviewing."""

    def add_note(self, item: ReviewItem, author: str, text: str) -> None:
        """Keep what a reviewer wrote about an item."""
        self.add_review_event(item, author, "note", text=text)

    def add_review_event(
        self,
        item: ReviewItem,
        author: str,
        action: ReviewAction,
        *,
        text: str | None = None,
        tokens: tuple[int, ...] = (),
    ) -> None:
        """Keep what a reviewer did with an item."""
        with self.writing() as connection:
            add_review_event(connection, item, author, action, self.now(), text=text, tokens=tokens)

    def review_events(self, prompt_id: str) -> tuple[ReviewEvent, ...]:
        """What reviewers did with a prompt and wrote about it, oldest first."""
        with self.reading() as connection:
            return review_events_of(connection, prompt_id)

    def answer_times(self, reviewer: str, last: int = 50) -> tuple[float, ...]:
        """When a reviewer finished or rejected items, UTC seconds, oldest first; the last few."""
        query = (
            select(_events.at)
            .where(_events.author == reviewer, _events.action.in_(("done", "rejected")))
            .order_by(_events.seq.desc())
            .limit(last)
        )
        with self.reading() as connection:
            return tuple(connection.execute(query).scalars())[::-1]

    def answer_counts(self) -> dict[str, dict[str, int]]:
        """Reviewer -> action -> how often, over everything that was ever done."""
        query = (
            select(_events.author, _events.action, func.count())
            .group_by(_events.author, _events.action)
            .order_by(_events.author)
        )
        counts: dict[str, dict[str, int]] = {}
        with self.reading() as connection:
            for author, action, number in connection.execute(query):
                counts.setdefault(author, {})[action] = number
        return counts


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
    """Add an event within a transaction."""
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
    """Add an event that is made already, within a transaction."""
    connection.execute(
        insert(tables.review_events).values(
            prompt_id=event.prompt_id,
            pair=event.pair,
            author=event.author,
            action=event.action,
            at=event.at.timestamp(),
            payload=event.model_dump_json(),
        )
    )


def review_events_of(connection: Connection, prompt_id: str) -> tuple[ReviewEvent, ...]:
    """A prompt's review events, oldest first, within a transaction."""
    query = select(_events.payload).where(_events.prompt_id == prompt_id).order_by(_events.seq)
    return tuple(map(ReviewEvent.model_validate_json, connection.execute(query).scalars()))
