"""SQL dialects: everything that differs between SQLite and PostgreSQL.

This is the only file that knows which database is behind the store. SQLite's rules:

- every writing transaction begins IMMEDIATE, so it never finds half-way that it may not write;
- write-ahead logging only from SQLite 3.51.3 on (before that a reset of the log can corrupt the
  file), else the rollback journal; synchronous=FULL in both, so that what was acknowledged stays;
- foreign keys on, a busy timeout, never a memory map.

PostgreSQL's: READ COMMITTED with row locks where a write follows from what was read, a limit on
waiting for a lock, and synchronous commit whatever the server's default.

    engine = sqlite_engine(Path("results/em-circuits.sqlite"))
    engine = postgresql_engine(make_url("postgresql+psycopg://ada@localhost/em"))
"""

from __future__ import annotations

import os
import socket
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    Table,
    UniqueConstraint,
    create_engine,
    event,
    func,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL
from sqlalchemy.pool import QueuePool

BUSY_SECONDS = 30.0
CONNECT_SECONDS = 10
_WAL_IS_SOUND = (3, 51, 3)
_APPEND_ONLY = ("label_events", "review_events")


def journal_mode(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> str:
    """The journal mode that is safe with a version of SQLite: "wal" or "delete"."""
    return "wal" if version >= _WAL_IS_SOUND else "delete"


def sqlite_engine(path: Path) -> Engine:
    """An engine on an SQLite file; nothing is opened yet.

    A file on a read-only file system is read as it stands.
    """
    there = path.exists()
    if there and not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
        return _reading_engine(path)
    engine = create_engine(
        URL.create("sqlite", database=str(path)), connect_args={"timeout": BUSY_SECONDS}
    )
    event.listen(engine, "connect", _set_up_connection)
    event.listen(engine, "begin", _begin)
    return engine


def is_half_done(path: Path) -> bool:
    """Whether a writer of an SQLite file was killed, or is at work."""
    return any(Path(f"{path}{end}").exists() for end in ("-wal", "-journal"))


def _reading_engine(path: Path) -> Engine:
    """SQLite makes no file beside one that cannot change, and locks nothing."""
    uri = path.absolute().as_uri()
    # What a writer left half done has to be read, too, and that takes locks.
    fixed = "" if is_half_done(path) else "&immutable=1"

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(f"{uri}?mode=ro{fixed}", uri=True, timeout=BUSY_SECONDS)

    engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool)

    @event.listens_for(engine, "connect")
    def set_up(connection: sqlite3.Connection, _record: Any) -> None:
        connection.isolation_level = None

    event.listen(engine, "begin", _begin)
    return engine


def postgresql_engine(url: URL) -> Engine:
    """An engine on a PostgreSQL database; nothing is opened yet.

    Raises:
        ModuleNotFoundError: If psycopg is not installed.
    """
    options = f"-c lock_timeout={BUSY_SECONDS * 1000:.0f} -c synchronous_commit=on"
    return create_engine(
        url,
        isolation_level="READ COMMITTED",
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": CONNECT_SECONDS,
            "options": options,
            "application_name": f"em-circuits, process {os.getpid()} on {socket.gethostname()}"[
                :63
            ],
        },
    )


def lock_sessions(engine: Engine) -> list[str]:
    """Other programs whose transaction is older than the longest wait for a lock, in words.

    Every lock of a store, of a name too, ends with its transaction. `pg_blocking_pids` knows of
    waiting sessions only, and this one has given up.
    """
    query = text(
        "SELECT pid, usename, application_name AS program FROM pg_stat_activity "
        "WHERE datname = current_database() "
        "AND xact_start < now() - make_interval(secs => :waited) "
        "AND application_name <> current_setting('application_name') ORDER BY xact_start"
    )
    with engine.connect() as connection:
        rows = connection.execute(query, {"waited": BUSY_SECONDS}).all()
    return [f"{row.program or 'a program'} (user {row.usename}, session {row.pid})" for row in rows]


def lock_name(connection: Connection, name: str) -> None:
    """Wait until nobody else holds this name, and hold it until the transaction ends.

    SQLite has one writer at a time anyway.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(name, 0))))


def upsert(connection: Connection, table: Table, row: Mapping[str, Any]) -> None:
    """Insert a row, or replace the rest of the row that has the same keys."""
    connection.execute(_replacing(connection, table, row))


def put_payload(connection: Connection, table: Table, row: Mapping[str, Any]) -> bool:
    """As `upsert`, unless the row that stands there has this payload; True if anything changed."""
    changed = _replacing(connection, table, row, unless_same="payload")
    return connection.execute(changed.returning(table.c[_keys(table)[0]])).first() is not None


def _replacing(
    connection: Connection, table: Table, row: Mapping[str, Any], *, unless_same: str | None = None
) -> sqlite.Insert | postgresql.Insert:
    keys = _keys(table)
    statement = _insert(connection, table).values(**row)
    there = statement.excluded
    differs = None if unless_same is None else table.c[unless_same] != there[unless_same]
    rest = {name: there[name] for name in row if name not in keys}
    return statement.on_conflict_do_update(index_elements=keys, set_=rest, where=differs)


def insert_new(connection: Connection, table: Table, row: Mapping[str, Any]) -> bool:
    """Insert a row unless one with the same keys stands there; True if it was inserted."""
    keys = _keys(table)
    statement = _insert(connection, table).values(**row)
    # What comes back says whether it was inserted; a row count is not given on PostgreSQL.
    new = statement.on_conflict_do_nothing(index_elements=keys).returning(table.c[keys[0]])
    return connection.execute(new).first() is not None


def _keys(table: Table) -> list[str]:
    """The columns that name a row: those of the rule of uniqueness, else the primary key."""
    rules = [rule for rule in table.constraints if isinstance(rule, UniqueConstraint)]
    return [column.name for column in (rules[0] if rules else table.primary_key).columns]


def forbid_changes(connection: Connection) -> None:
    """Make the database itself refuse to change or delete an event."""
    on_postgresql = connection.dialect.name == "postgresql"
    if on_postgresql:
        connection.exec_driver_sql(
            "CREATE OR REPLACE FUNCTION em_circuits_append_only() RETURNS trigger AS $$ "
            "BEGIN RAISE EXCEPTION '%% is append-only', TG_TABLE_NAME "
            "USING ERRCODE = 'integrity_constraint_violation'; END $$ LANGUAGE plpgsql"
        )
    for table in _APPEND_ONLY:
        for verb in ("UPDATE", "DELETE"):
            name = f"{table}_no_{verb.lower()}"
            if on_postgresql:
                statement = (
                    f"CREATE OR REPLACE TRIGGER {name} BEFORE {verb} ON {table} "
                    "FOR EACH ROW EXECUTE FUNCTION em_circuits_append_only()"
                )
            else:
                statement = (
                    f"CREATE TRIGGER IF NOT EXISTS {name} BEFORE {verb} ON {table} "
                    f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
                )
            connection.exec_driver_sql(statement)


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
