"""Which attribution graphs exist, and where do they lie?

The row is written after the file and its provenance: whoever finds the row finds the file.

    store.put_graph(GraphRecord(key=..., prompt_id=..., ...))
    store.graph("3fa9")                   # by key or unique beginning of it
"""

from __future__ import annotations

from sqlalchemy import delete, select

from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import GraphRecord
from pivotal_tokens.store import tables
from pivotal_tokens.store.database import Database
from pivotal_tokens.store.dialect import upsert


class GraphRows(Database):
    """The register of graph files."""

    def put_graph(self, record: GraphRecord) -> None:
        """Register a graph's file, or the new file under the same key."""
        values = {
            "key": record.key,
            "prompt_id": record.prompt_id,
            "pair": record.pair,
            "model": record.model,
            "bytes": record.bytes,
            "payload": record.model_dump_json(),
        }
        with self.writing() as connection:
            upsert(connection, tables.graphs, values, ["key"])

    def graph(self, prefix: str) -> GraphRecord:
        """The graph whose key is, or begins with, `prefix`.

        Raises:
            RequestError: If no graph has it, or more than one.
        """
        if not prefix.strip():
            raise RequestError("an empty graph key; `em-circuits graphs list` shows them")
        query = (
            select(tables.graphs.c.payload)
            .where(tables.graphs.c.key.startswith(prefix.strip().lower(), autoescape=True))
            .order_by(tables.graphs.c.key)
            .limit(2)
        )
        with self.reading() as connection:
            found = connection.execute(query).scalars().all()
        if not found:
            raise RequestError(
                f"no graph {prefix!r} in the store; `em-circuits graphs list` shows what there is"
            )
        if len(found) > 1:
            raise RequestError(f"{prefix!r} begins several graph keys; give more of it")
        return GraphRecord.model_validate_json(found[0])

    def graphs(
        self, prompt_id: str | None = None, pair: str | None = None
    ) -> tuple[GraphRecord, ...]:
        """The graphs of a prompt and pair, or all; base before merged."""
        columns = tables.graphs.c
        query = select(columns.payload).order_by(columns.prompt_id, columns.pair, columns.model)
        if prompt_id is not None:
            query = query.where(columns.prompt_id == prompt_id)
        if pair is not None:
            query = query.where(columns.pair == pair)
        with self.reading() as connection:
            return tuple(map(GraphRecord.model_validate_json, connection.execute(query).scalars()))

    def drop_graph(self, key: str) -> None:
        """Forget a graph whose file is gone."""
        with self.writing() as connection:
            connection.execute(delete(tables.graphs).where(tables.graphs.c.key == key))
