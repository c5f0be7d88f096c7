"""How is a store opened, and how does a transaction on it begin and end?

A store is one SQLite file. Opening reads its schema version first: another version, another
program's file or no database at all is a `RequestError` that names the file. Every operation is
one transaction, so a process killed at any moment leaves whole operations only.

    with database.writing() as connection:
        connection.execute(...)
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import Connection, Engine, insert, inspect, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError

from pivotal_tokens.errors import RequestError, WorkFailed
from pivotal_tokens.schema import utc_now
from pivotal_tokens.store import tables
from pivotal_tokens.store.dialect import BUSY_SECONDS, forbid_changes, sqlite_engine

DEFAULT_NAME = "em-circuits.sqlite"


def default_url(root: Path) -> str:
    """The URL of the store under a root directory: ``ROOT/results/em-circuits.sqlite``."""
    return f"sqlite:///{root / 'results' / DEFAULT_NAME}"


class Database:
    """An open store: its engine, its clock, and its transactions."""

    def __init__(self, engine: Engine, path: Path, clock: Callable[[], datetime]) -> None:
        self._engine = engine
        self.path = path
        self._clock = clock

    @classmethod
    def open(
        cls, url: str | Path, *, create: bool = False, clock: Callable[[], datetime] = utc_now
    ) -> Self:
        """Open the store at a URL.

        Args:
            url: ``sqlite:///PATH``, relative to the working directory, ``sqlite:////PATH``, or
                the path itself.
            create: Make the file, its directory and its tables where they are missing.
            clock: Gives the time now, with its zone (UTC); leases are measured by it.

        Raises:
            RequestError: If there is no store, or the file cannot be used as one.
        """
        path = _sqlite_path(url)
        if not create and not (path.exists() and path.stat().st_size):
            raise RequestError(
                f"no store at {path}: run `em-circuits label` first, or name one with --store"
            )
        if create:
            _make_directory(path.parent)
        store = cls(sqlite_engine(path), path, clock)
        try:
            store._check_schema(create=create)
        except (sqlite3.Error, DBAPIError) as error:
            store.close()
            raise _not_usable(path, error) from error
        except RequestError:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Let go of the file."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def now(self) -> datetime:
        """The time by the store's clock."""
        return self._clock()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One transaction that sees one state of the store."""
        with self._transaction(writes=False) as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction that is kept whole, or not at all after an exception."""
        with self._transaction(writes=True) as connection:
            yield connection

    @contextmanager
    def _transaction(self, *, writes: bool) -> Iterator[Connection]:
        try:
            connection = self._engine.connect().execution_options(writes=writes)
            with connection, connection.begin():
                yield connection
        except IntegrityError as error:
            raise RequestError(
                f"{self.path}: refused ({error.orig}); add the prompt to the store first"
            ) from error
        except DBAPIError as error:
            raise _work_failed(self.path, error) from error

    def _check_schema(self, *, create: bool) -> None:
        connection = self._engine.connect().execution_options(writes=create)
        with connection, connection.begin():
            found = set(inspect(connection).get_table_names())
            if create and not found:
                _create_tables(connection)
            elif "meta" not in found:
                raise RequestError(
                    f"{self.path} is a database of another program: "
                    "name a new file with --store sqlite:///PATH"
                )
            else:
                _refuse_other_version(self.path, connection)


def _sqlite_path(url: str | Path) -> Path:
    if isinstance(url, Path):
        return url
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise RequestError(
            f"not the URL of a store: {url!r}; write --store sqlite:///PATH"
        ) from error
    if parsed.get_backend_name() != "sqlite":
        raise RequestError(
            f"no store on {parsed.get_backend_name()} yet; write --store sqlite:///PATH"
        )
    if not parsed.database or parsed.database == ":memory:" or parsed.query:
        raise RequestError(f"a store is a file: write --store sqlite:///PATH instead of {url!r}")
    return Path(parsed.database)


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"cannot make the store's directory {path}: {error.strerror}") from error


def _create_tables(connection: Connection) -> None:
    tables.metadata.create_all(connection, checkfirst=False)
    forbid_changes(connection)
    connection.execute(
        insert(tables.meta).values(name="schema_version", value=str(tables.SCHEMA_VERSION))
    )


def _refuse_other_version(path: Path, connection: Connection) -> None:
    version = connection.execute(
        select(tables.meta.c.value).where(tables.meta.c.name == "schema_version")
    ).scalar_one_or_none()
    if version == str(tables.SCHEMA_VERSION):
        return
    if version is None or not version.isdigit():
        raise RequestError(f"{path} has no readable schema version: restore it from a copy")
    newer = int(version) > tables.SCHEMA_VERSION
    advice = (
        "use the newer em-circuits that wrote it"
        if newer
        else "export it with the em-circuits that wrote it, and import that into a new store"
    )
    raise RequestError(
        f"{path} has schema version {version}, this em-circuits knows {tables.SCHEMA_VERSION}: "
        f"{advice}"
    )


def _not_usable(path: Path, error: sqlite3.Error | DBAPIError) -> RequestError:
    cause = error.orig if isinstance(error, DBAPIError) else error
    return RequestError(
        f"{path} cannot be used as a store ({cause}): "
        "check the file, or name another with --store sqlite:///PATH"
    )


def _work_failed(path: Path, error: DBAPIError) -> WorkFailed:
    if "locked" in str(error.orig):
        return WorkFailed(
            f"{path}: another process held the store for more than {BUSY_SECONDS:.0f} s; run again"
        )
    return WorkFailed(f"{path}: {error.orig}; what was finished is kept, run again to resume")
