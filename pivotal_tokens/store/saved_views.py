"""Saved views of the viewer, by person: pins and groups.

store.views.save("ada", "graph:44a71bc74c37", {"pinned": ["2/11/431"]})
store.views.get("ada", "graph:44a71bc74c37")
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select

from pivotal_tokens.store import tables
from pivotal_tokens.store.database import Repository
from pivotal_tokens.store.dialect import upsert
from pivotal_tokens.store.rows import narrowed


class SavedViews(Repository):
    """One arrangement per person and subject; the last one saved counts."""

    def save(self, author: str, subject: str, view: Mapping[str, Any]) -> None:
        """Keep an arrangement instead of the one before."""
        payload = json.dumps(dict(view), ensure_ascii=False, allow_nan=False)
        row = {"author": author, "subject": subject, "payload": payload}
        with self._writing() as connection:
            upsert(connection, tables.saved_views, row)

    def get(self, author: str, subject: str) -> dict[str, Any] | None:
        """The arrangement of a person, or None."""
        table = tables.saved_views
        query = narrowed(select(table.c.payload), table, author=author, subject=subject)
        with self._reading() as connection:
            found = connection.execute(query).scalar_one_or_none()
        return None if found is None else json.loads(found)
