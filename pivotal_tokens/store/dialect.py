"""What must be said differently to SQLite than to another database?

This is the only file that knows which database is behind the store. SQLite's rules:

- every writing transaction begins IMMEDIATE, so it never finds half-way that it may not write;
- write-ahead logging only from SQLite 3.51.3 on (before that a reset of the log can corrupt the
  file), else the rollback journal; synchronous=FULL in both, so that what was acknowledged stays;
- foreign keys on, a busy timeout, never a memory map.

    engine = sqlite_engine(Path("results/em-circuits.sqlite"))
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL

BUSY_SECONDS = 30.0
_WAL_IS_SOUND = (3, 51, 3)
_APPEND_ONLY = ("label_events", "review_events")


def journal_mode(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> str:
    """The journal mode that is safe with a version of SQLite: "wal" or "delete"."""
    return "wal" if version >= _WAL_IS_SOUND else "delete"


def sqlite_engine(path: Path) -> Engine:
    """An engine on an SQLite file; nothing is opened yet."""
    engine = create_engine(
        URL.create("sqlite", database=str(path)), connect_args={"timeout": BUSY_SECONDS}
    )
    event.listen(engine, "connect", _set_up_connection)
    event.listen(engine, "begin", _begin)
    return engine


def upsert(
    connection: Connection, table: Table, values: Mapping[str, Any], keys: Sequence[str]
) -> None:
    """Insert a row, or replace the rest of the row that has the same keys."""
    statement = _insert(connection, table).values(**values)
    rest = {name: statement.excluded[name] for name in values if name not in keys}
    connection.execute(statement.on_conflict_do_update(index_elements=list(keys), set_=rest))


def insert_new(
    connection: Connection, table: Table, values: Mapping[str, Any], keys: Sequence[str]
) -> bool:
    """Insert a row unless one with the same keys stands there; True if it was inserted."""
    statement = _insert(connection, table).values(**values)
    done = connection.execute(statement.on_conflict_do_nothing(index_elements=list(keys)))
    return done.rowcount == 1


def forbid_changes(connection: Connection) -> None:
    """Make the database itself refuse to change or delete an event."""
    for table in _APPEND_ONLY:
        for verb in ("UPDATE", "DELETE"):
            connection.exec_driver_sql(
                f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )


def _insert(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    build = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    return build(table)


def _set_up_connection(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin transactions by itself
    cursor = connection.cursor()
    wanted = journal_mode()
    # Only where it differs: setting it needs the file for itself for a moment.
    if cursor.execute("PRAGMA journal_mode").fetchone()[0] != wanted:
        cursor.execute(f"PRAGMA journal_mode={wanted}")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA mmap_size=0")
    cursor.close()


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
