"""Register of attribution graph files.

The row is written after the file and its provenance: whoever finds the row finds the file.

    store.graphs.put(GraphRecord(key=..., prompt_id=..., ...))
    store.graphs.get("3fa9")              # by key or unique beginning of it
"""

from __future__ import annotations

from sqlalchemy import delete, select

from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import GraphRecord
from pivotal_tokens.store import tables
from pivotal_tokens.store.database import Repository
from pivotal_tokens.store.dialect import upsert
from pivotal_tokens.store.rows import narrowed, row_of, values

_columns = tables.graphs.c


class Graphs(Repository):
    """Path of each graph, by its key."""

    def put(self, record: GraphRecord) -> None:
        """Register a graph's file, or the new file under the same key."""
        with self._writing() as connection:
            upsert(connection, tables.graphs, row_of(tables.graphs, record))

    def get(self, prefix: str) -> GraphRecord:
        """The graph whose key is, or begins with, `prefix`.

        Raises:
            RequestError: If no graph has it, or more than one.
        """
        if not prefix.strip():
            raise RequestError("an empty graph key; `em-circuits graphs list` shows them")
        begins = _columns.key.startswith(prefix.strip().lower(), autoescape=True)
        query = select(_columns.payload).where(begins).order_by(_columns.key).limit(2)
        with self._reading() as connection:
            found = values(connection, GraphRecord, query)
        if not found:
            raise RequestError(
                f"no graph {prefix!r} in the store; `em-circuits graphs list` shows what there is"
            )
        if len(found) > 1:
            raise RequestError(f"{prefix!r} begins several graph keys; give more of it")
        return found[0]

    def all(self, prompt_id: str | None = None, pair: str | None = None) -> tuple[GraphRecord, ...]:
        """The graphs of a prompt and pair, or all; base before merged."""
        order = (_columns.prompt_id, _columns.pair, _columns.model)
        query = select(_columns.payload).order_by(*order)
        with self._reading() as connection:
            query = narrowed(query, tables.graphs, prompt_id=prompt_id, pair=pair)
            return values(connection, GraphRecord, query)

    def drop(self, key: str) -> None:
        """Forget a graph whose file is gone."""
        with self._writing() as connection:
            connection.execute(delete(tables.graphs).where(_columns.key == key))
