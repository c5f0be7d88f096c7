"""What has a person arranged for themselves: pins, groups?

store.save_view("ada", "graph:44a71bc74c37", {"pinned": ["2/11/431"]})
store.saved_view("ada", "graph:44a71bc74c37")
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select

from pivotal_tokens.store import tables
from pivotal_tokens.store.database import Database
from pivotal_tokens.store.dialect import upsert


class SavedViewRows(Database):
    """One arrangement per person and subject; the last one saved counts."""

    def save_view(self, author: str, subject: str, view: Mapping[str, Any]) -> None:
        """Keep an arrangement instead of the one before."""
        payload = json.dumps(dict(view), ensure_ascii=False, allow_nan=False)
        values = {"author": author, "subject": subject, "payload": payload}
        with self.writing() as connection:
            upsert(connection, tables.saved_views, values, ["author", "subject"])

    def saved_view(self, author: str, subject: str) -> dict[str, Any] | None:
        """The arrangement of a person, or None."""
        columns = tables.saved_views.c
        query = select(columns.payload).where(columns.author == author, columns.subject == subject)
        with self.reading() as connection:
            found = connection.execute(query).scalar_one_or_none()
        return None if found is None else json.loads(found)
