"""Which prompts has a reviewer yet to answer, so that nothing of a judge may be told to them?

in hand    an item is theirs now, and no judge's label was shown after an answer to it
waiting    an item may still be given to them: put off, skipped or with a lease that ran out too

store.unanswered(Unanswered(reviewer="ada"), ["964a7382b6b7"])
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import get_args

from sqlalchemy import ColumnElement, exists, select

from pivotal_tokens.schema import Frozen
from pivotal_tokens.store import tables
from pivotal_tokens.store.database import Database
from pivotal_tokens.store.queue import (
    REVIEWER_KINDS,
    ClaimableState,
    not_of_another,
    not_seated,
)

_queue = tables.queue.c


class Unanswered(Frozen):
    """Prompts that a reviewer has yet to answer."""

    reviewer: str
    waiting: bool = True  # those that wait for them too, not only what they have in hand

    def holds(self, prompt_id: ColumnElement[str], now: datetime) -> ColumnElement[bool]:
        """Is the prompt of this column one of them?"""
        mine = _queue.reviewer == self.reviewer
        blind = ~(mine & _queue.revealed)
        found = mine & (_queue.state == "leased")
        if self.waiting:
            over = (_queue.state == "leased") & (_queue.lease_until < now.timestamp())
            free = _queue.state.in_(get_args(ClaimableState)) | over
            free &= _queue.kind.in_(REVIEWER_KINDS)
            found |= free & not_of_another(self.reviewer) & not_seated(self.reviewer)
        return exists().where(_queue.prompt_id == prompt_id, blind, found)


class UnansweredRows(Database):
    """What is to be kept from whom."""

    def unanswered(self, who: Unanswered, prompts: Collection[str]) -> frozenset[str]:
        """Those of some prompts that the reviewer has yet to answer."""
        column = tables.prompts.c.prompt_id
        query = select(column).where(column.in_(list(prompts)), who.holds(column, self.now()))
        with self.reading() as connection:
            return frozenset(connection.execute(query).scalars())
