"""Migrations: creation of a store's tables, and upgrades of older stores.

    version 1 -> 2   a queue row becomes an assignment: unique by (prompt, pair, seat)
    within a version a table or column that is missing is added, nothing is taken away

All of it happens in one transaction when a store is opened, and again does nothing.

    if needs_change(connection): bring_up_to_date(connection)
"""

from __future__ import annotations

import hashlib

from sqlalchemy import Column, Connection, Table, inspect, select, text, update
from sqlalchemy.schema import CreateColumn

from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import ReviewEvent
from pivotal_tokens.store import tables
from pivotal_tokens.store.dialect import forbid_changes
from pivotal_tokens.store.order import reorder
from pivotal_tokens.store.rows import meta, set_meta

_VERSION, _FORM = "schema_version", "schema_form"


def has_tables(connection: Connection) -> bool:
    """Whether there is any table."""
    return bool(inspect(connection).get_table_names())


def needs_change(connection: Connection, where: str) -> bool:
    """Must a store's tables be changed before it can be used?

    Raises:
        RequestError: If it is no store, or of a version this package cannot bring up to date.
    """
    if not inspect(connection).has_table("meta"):
        raise RequestError(
            f"{where} is a database of another program: name a new one with --store URL"
        )
    version = meta(connection, _VERSION)
    if version is None or not version.isdigit():
        raise RequestError(f"{where} has no readable schema version: restore it from a copy")
    if not 1 <= int(version) <= tables.SCHEMA_VERSION:
        newer = int(version) > tables.SCHEMA_VERSION
        advice = "use the newer em-circuits that wrote it" if newer else "restore it from a copy"
        raise RequestError(
            f"{where} has schema version {version}, this em-circuits knows "
            f"{tables.SCHEMA_VERSION}: {advice}"
        )
    return int(version) < tables.SCHEMA_VERSION or meta(connection, _FORM) != _form()


def bring_up_to_date(connection: Connection) -> None:
    """Make the tables what this package expects, within the caller's transaction."""
    old = inspect(connection).has_table("meta") and meta(connection, _VERSION) == "1"
    if old:
        _assignments_from_version_1(connection)
    tables.metadata.create_all(connection, checkfirst=True)
    for table in tables.metadata.sorted_tables:
        _add_missing(connection, table)
    if old:
        _actions_from_version_1(connection)
    forbid_changes(connection)
    set_meta(connection, _VERSION, str(tables.SCHEMA_VERSION))
    set_meta(connection, _FORM, _form())


def _assignments_from_version_1(connection: Connection) -> None:
    """Rebuild the table, the only way to drop the rule that a prompt has one row."""
    for index in ("queue_by_state", "queue_by_reviewer"):
        connection.execute(text(f"DROP INDEX IF EXISTS {index}"))
    connection.execute(text("ALTER TABLE queue RENAME TO queue_of_version_1"))
    tables.queue.create(connection)
    names = [column["name"] for column in inspect(connection).get_columns("queue_of_version_1")]
    listed = ", ".join(names)
    connection.execute(
        text(f"INSERT INTO queue ({listed}) SELECT {listed} FROM queue_of_version_1")
    )
    connection.execute(text("DROP TABLE queue_of_version_1"))
    queue = tables.queue.c  # evil mass and uncertainty were not kept then
    for row in connection.execute(select(queue.prompt_id, queue.pair)).all():
        reorder(connection, row.prompt_id, row.pair)


def _actions_from_version_1(connection: Connection) -> None:
    """What stood in an event's payload only becomes columns, its trigger set aside meanwhile."""
    connection.execute(text("DROP TRIGGER review_events_no_update"))
    events = tables.review_events
    for row in connection.execute(select(events.c.seq, events.c.payload)).all():
        event = ReviewEvent.model_validate_json(row.payload)
        changed = update(events).where(events.c.seq == row.seq)
        connection.execute(changed.values(action=event.action, at=event.at.timestamp()))


def _add_missing(connection: Connection, table: Table) -> None:
    inspector = inspect(connection)
    there = {column["name"] for column in inspector.get_columns(table.name)}
    for column in table.columns:
        if column.name not in there:
            connection.execute(
                text(f"ALTER TABLE {table.name} ADD COLUMN {_ddl(connection, column)}")
            )
    indexes = {index["name"] for index in inspector.get_indexes(table.name)}
    for index in table.indexes:
        if index.name not in indexes:
            index.create(connection)


def _ddl(connection: Connection, column: Column) -> str:
    """A column's definition.

    Raises:
        TypeError: If old rows would have no value for it: a mistake in `tables.py`.
    """
    if not column.nullable and column.server_default is None:
        raise TypeError(f"column {column} needs a server_default to be added to old stores")
    return str(CreateColumn(column).compile(dialect=connection.dialect))


def _form() -> str:
    """A short name of all tables, columns and indexes: equal forms need no second look."""
    parts = [
        f"{table.name}({','.join(table.columns.keys())})"
        f"[{','.join(sorted(str(index.name) for index in table.indexes))}]"
        for table in tables.metadata.sorted_tables
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
