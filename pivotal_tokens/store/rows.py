"""Rows of the store's tables read back as values.

Each value's JSON stands in its row's ``payload``; the keys by which it is found are columns.

    query = narrowed(select(table.c.payload), table, pair=pair, judge=None)   # None: any judge
    values(connection, Judgement, query)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Select, Table, func, select

from pivotal_tokens.schema import Frozen
from pivotal_tokens.store import tables
from pivotal_tokens.store.dialect import upsert

_PARAMETERS = 500  # ids in one query; databases limit the number of parameters

Row = dict[str, Any]
Value = TypeVar("Value", bound=Frozen)
Parsed = TypeVar("Parsed")
Query = TypeVar("Query", bound=Select)


def row_of(table: Table, value: Frozen, **more: Any) -> Row:
    """The row of a value: what of it is a column, further columns, and its JSON."""
    fields = type(value).model_fields
    own = {c.name: getattr(value, c.name) for c in table.columns if c.name in fields}
    return own | more | {"payload": value.model_dump_json()}


def meta(connection: Connection, name: str) -> str | None:
    """What the store says of itself under a name."""
    query = narrowed(select(tables.meta.c.value), tables.meta, name=name)
    return connection.execute(query).scalar_one_or_none()


def set_meta(connection: Connection, name: str, value: str) -> None:
    """Say something of the store under a name."""
    upsert(connection, tables.meta, {"name": name, "value": value})


def values(connection: Connection, kind: type[Value], query: Select) -> tuple[Value, ...]:
    """The values whose JSON a query selects."""
    return tuple(map(kind.model_validate_json, connection.execute(query).scalars()))


def value(
    connection: Connection, kind: type[Value], table: Table, **keys: str | int
) -> Value | None:
    """The value of the one row with these keys, or None."""
    query = narrowed(select(table.c.payload), table, **keys)
    payload = connection.execute(query).scalar_one_or_none()
    return None if payload is None else kind.model_validate_json(payload)


def values_by(
    connection: Connection, kind: type[Value], table: Table, key: str, **wanted: Any
) -> dict[str, Value]:
    """A key column -> value, ordered by that column."""
    columns = table.c
    query = narrowed(select(columns[key], columns.payload).order_by(columns[key]), table, **wanted)
    rows = connection.execute(query)
    return {name: kind.model_validate_json(payload) for name, payload in rows}


def values_of_prompts(
    connection: Connection,
    kind: type[Value],
    table: Table,
    prompt_ids: Iterable[str],
    **keys: Any,
) -> dict[str, Value]:
    """Prompt id -> value, of those prompts that have a row with these keys."""
    found: dict[str, Value] = {}
    for chunk in chunks(prompt_ids):
        query = select(table.c.prompt_id, table.c.payload).where(table.c.prompt_id.in_(chunk))
        for prompt_id, payload in connection.execute(narrowed(query, table, **keys)).all():
            found[prompt_id] = kind.model_validate_json(payload)
    return found


def events_of_prompts(
    connection: Connection,
    parse: Callable[[str], Parsed],
    table: Table,
    prompt_ids: Iterable[str],
    **wanted: str | None,
) -> dict[str, list[Parsed]]:
    """Prompt id -> what is read of its JSON in a table of a log, oldest first."""
    found: dict[str, list[Parsed]] = defaultdict(list)
    for chunk in chunks(prompt_ids):
        query = select(table.c.prompt_id, table.c.payload).where(table.c.prompt_id.in_(chunk))
        # By prompt first: SQLite would rather walk the whole log than sort these. No other index
        # may serve, either: that of an author's kind finds half the log for every few prompts.
        query = query.order_by(table.c.prompt_id, table.c.seq)
        for name, value in wanted.items():
            if value is not None:
                query = query.where(table.c[name].concat("") == value)
        for prompt_id, payload in connection.execute(query).all():
            found[prompt_id].append(parse(payload))
    return found


def narrowed(query: Query, table: Table, **wanted: Any) -> Query:
    """A query with a condition for every column whose value is not None."""
    return query.where(*where(table, **wanted))


def where(table: Table, **wanted: Any) -> list[ColumnElement[bool]]:
    """A condition for every column whose value is not None."""
    return [table.c[name] == value for name, value in wanted.items() if value is not None]


def count_rows(connection: Connection, table: Table, *conditions: ColumnElement[bool]) -> int:
    """How many rows of a table fulfil the conditions."""
    query = select(func.count()).select_from(table).where(*conditions)
    return connection.execute(query).scalar_one()


def numbers(connection: Connection, query: Select) -> dict[str, int]:
    """The rows of a query of (name, number)."""
    return {name: count for name, count in connection.execute(query)}  # noqa: C416 - not tuples


def chunks(prompt_ids: Iterable[str]) -> Iterator[Sequence[str]]:
    """Ids in portions that one query can take."""
    ids = list(prompt_ids)
    return (ids[i : i + _PARAMETERS] for i in range(0, len(ids), _PARAMETERS))
