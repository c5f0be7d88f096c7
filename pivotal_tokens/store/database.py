"""An open store: its engine, its clock and its transactions.

A store is one SQLite file or one PostgreSQL database. Opening reads its schema version first: an
older one is brought up to date, a newer one, another program's database or none at all is a
`RequestError` that names it. Every operation is one transaction, so a process killed at any moment
leaves whole operations only; `batch` makes one transaction of several.

    with store.batch():
        store.results.put_judgement(...); store.results.put_verdict(...)
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Self

from pydantic import ValidationError
from sqlalchemy import Connection, Engine, select
from sqlalchemy.exc import DBAPIError, IntegrityError

from pivotal_tokens.errors import NoStore, RequestError, WorkFailed
from pivotal_tokens.schema import utc_now
from pivotal_tokens.seal import DamagedText
from pivotal_tokens.store import tables
from pivotal_tokens.store.address import Address, address
from pivotal_tokens.store.dialect import BUSY_SECONDS, is_half_done, lock_name, lock_sessions
from pivotal_tokens.store.host import (
    HOST,
    MARK_SECONDS,
    Host,
    lock_holders,
    marked,
    require_same_host,
    this_host,
)
from pivotal_tokens.store.migrations import bring_up_to_date, has_tables, needs_change
from pivotal_tokens.store.rows import set_meta

DEFAULT_NAME = "em-circuits.sqlite"
CHECKED_BYTES = 32 << 20
"""Largest SQLite file that is checked whole on opening; larger ones by `Database.check`, and their
pages before a run writes where the last did not end well."""
_AT_ONCE = 10_000
"""Rows in memory at a time."""


def default_url(root: Path) -> str:
    """The URL of the store under a root directory: ``ROOT/results/em-circuits.sqlite``."""
    return f"sqlite:///{root / 'results' / DEFAULT_NAME}"


class _Turns:
    """A lock that is given in the order in which it was asked for.

    SQLite lets whoever happens to look first have the file, so that with many writers one waits
    until its patience ends. Within a process they take turns instead.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Wait for one's turn, and have it."""
        own = object()
        with self._changed:
            self._waiting.append(own)
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting[0] is own)
            yield
        finally:
            with self._changed:
                self._waiting.remove(own)
                self._changed.notify_all()


class Database:
    """An open store: its engine, its clock, and its transactions."""

    def __init__(self, engine: Engine, place: Address, clock: Callable[[], datetime]) -> None:
        self._engine = engine
        self._address = place
        self._clock = clock
        self._marked_at = 0.0  # UTC seconds: when the store last recorded this host
        self._found: Host | None = None  # recorded when it was opened, of a machine that is gone
        self._turns = _Turns() if place.path is not None else None
        self._open = threading.local()  # .connection: the writing transaction of this thread

    @property
    def where(self) -> str:
        """The store's place for messages: a path, or a URL without its password."""
        return self._address.shown

    @property
    def path(self) -> Path | None:
        """The file of an SQLite store."""
        return self._address.path

    @classmethod
    def open(
        cls, url: str | Path, *, create: bool = False, clock: Callable[[], datetime] = utc_now
    ) -> Self:
        """Open the store at a URL.

        Args:
            url: ``sqlite:///PATH``, relative to the working directory, ``sqlite:////PATH``, the
                path itself, or ``postgresql+psycopg://USER:PASSWORD@HOST/DATABASE``.
            create: Make the tables where they are missing, and an SQLite file and its directory;
                a PostgreSQL database must exist.
            clock: Gives the time now, with its zone (UTC); leases are measured by it.

        Raises:
            RequestError: If there is no store, or it cannot be used as one.
        """
        place = address(url)
        if place.path is not None:
            _require_file(place.path, create=create)
        store = cls(place.engine(), place, clock)
        half_done = place.path is not None and is_half_done(place.path)
        try:
            store._prepare(create=create, half_done=half_done)
        except (sqlite3.Error, DBAPIError) as error:
            store.close()
            raise _not_usable(place, error) from error
        except (RequestError, WorkFailed):
            store.close()
            raise
        except ValueError as error:
            store.close()
            raise damaged(place.shown, "what it says of itself cannot be read") from error
        return store

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def now(self) -> datetime:
        """The time by the store's clock."""
        return self._clock()

    def check(self) -> int:
        """Look at everything: every page and index of an SQLite file, every sealed text.

        Returns:
            How many values were read.

        Raises:
            WorkFailed: If something is damaged.
        """
        read = 0
        with self.reading() as connection:
            if self.path is not None:
                _check_pages(connection, self.path, "integrity_check")
            for table in tables.metadata.sorted_tables:
                if "payload" in table.c:
                    found = connection.execution_options(yield_per=_AT_ONCE)
                    read += sum(1 for _ in found.execute(select(table.c.payload)))
        return read

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Join every operation of this thread into one transaction, committed whole or not at all.

        Others wait with their writes until it ends: no model call and no `await` within it.
        """
        with self.writing():
            yield

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One transaction that sees one state of the store."""
        joined = getattr(self._open, "connection", None)
        if joined is not None:
            yield joined
            return
        with self._transaction(writes=False) as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction, committed whole, or not at all after an exception.

        Within another one of the same thread it is part of it, and undone alone if it fails.
        """
        joined = getattr(self._open, "connection", None)
        if joined is not None:
            with self._translate_errors(), joined.begin_nested():
                yield joined
            return
        turn = nullcontext() if self._turns is None else self._turns.taken()
        with turn, self._transaction(writes=True) as connection:
            self._open.connection = connection
            try:
                self._check_host(connection)
                yield connection
            finally:
                self._open.connection = None

    @contextmanager
    def _transaction(self, *, writes: bool) -> Iterator[Connection]:
        with self._translate_errors():
            connection = self._engine.connect().execution_options(writes=writes)
            with connection, connection.begin():
                try:
                    yield connection
                except (ValidationError, json.JSONDecodeError) as error:
                    if writes:
                        raise
                    raise DamagedText("a stored value cannot be read") from error

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Say in one line what a database refused."""
        try:
            yield
        except IntegrityError as error:
            raise RequestError(
                f"{self.where}: refused ({_first_line(error)}); add the prompt to the store first"
            ) from error
        except DBAPIError as error:
            raise _work_failed(self._address, self._engine, error) from error
        except DamagedText as error:
            raise damaged(self.where, error) from error
        except OverflowError as error:  # SQLite's driver, of an integer beyond 64 bits
            raise RequestError(f"{self.where}: a number is beyond what it holds") from error

    def _prepare(self, *, create: bool, half_done: bool) -> None:
        connection = self._engine.connect().execution_options(writes=False)
        with connection, connection.begin():
            if self.path is not None and self.path.stat().st_size <= CHECKED_BYTES:
                _check_pages(connection, self.path, "integrity_check")
            elif self.path is not None and create and half_done:
                _check_pages(connection, self.path, "quick_check")
            empty = not has_tables(connection)
            if empty and not create:
                raise NoStore(self.where)
            ready = not empty and not needs_change(connection, self.where)
            # Reading never writes: this host is recorded with the first write.
            if ready and not (self._is_new_host(connection) and self._address.take):
                return
        connection = self._engine.connect().execution_options(writes=True)
        with connection, connection.begin():
            lock_name(connection, "em-circuits opening a store")  # one at a time changes tables
            if not has_tables(connection) or needs_change(connection, self.where):
                bring_up_to_date(connection)
            if self._is_new_host(connection):
                self._mark(connection)

    def _is_new_host(self, connection: Connection) -> bool:
        """Does this host have to say that it uses the store? Another one's is refused."""
        if self.path is None:
            return False
        here, take = this_host(self.now()), self._address.take
        self._found = marked(connection)
        new = require_same_host(self._found, here, self.path, take=take)
        self._marked_at = here.seen if not new else self._marked_at
        return new

    def _mark(self, connection: Connection) -> None:
        here = this_host(self.now())
        set_meta(connection, HOST, here.model_dump_json())
        self._marked_at = here.seen

    def _check_host(self, connection: Connection) -> None:
        """Now and then, with a write: this host uses the store, and no other has taken it."""
        if self.path is None or self.now().timestamp() - self._marked_at < MARK_SECONDS:
            return
        recorded, here = marked(connection), this_host(self.now())
        known = recorded in (None, self._found)
        if recorded is not None and not known and not recorded.same_machine(here):
            raise WorkFailed(
                f"{self.where}: host {recorded.name} has taken this store over; nothing was written"
            )
        self._mark(connection)


class Repository:
    """Some tables of an open store; every method is one transaction, or part of a batch."""

    def __init__(self, database: Database) -> None:
        self._reading, self._writing, self._now = database.reading, database.writing, database.now


def damaged(where: str, reason: object) -> WorkFailed:
    """The error for a store that the disk changed."""
    return WorkFailed(
        f"{where} is damaged: {reason}; restore it from a copy, or import what 'em-circuits "
        "export' wrote before into a new store"
    )


def _check_pages(connection: Connection, path: Path, how: str) -> None:
    """Have SQLite look at every page; the time is that of reading the file.

    Args:
        how: ``integrity_check`` compares rows with indexes, too; ``quick_check`` does not.

    Raises:
        WorkFailed: If it finds something.
    """
    found = connection.exec_driver_sql(f"PRAGMA {how}(1)").scalars().all()
    if found != ["ok"]:
        first = " ".join(str(found[0]).split()) if found else "nothing can be read"
        raise damaged(str(path), first)


def _require_file(path: Path, *, create: bool) -> None:
    if not create and not (path.exists() and path.stat().st_size):
        raise NoStore(path)
    if create:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(
                f"cannot make the store's directory {path.parent}: {error.strerror}"
            ) from error


def _not_usable(place: Address, error: sqlite3.Error | DBAPIError) -> RequestError:
    if place.path is None:
        return RequestError(
            f"{place.shown} cannot be used as a store ({_first_line(error)}): is the server "
            "running, does the database exist (createdb), are user and password right?"
        )
    if "locked" in _first_line(error):
        holders = ", ".join(lock_holders(place.path)) or "another process"
        return RequestError(
            f"{place.shown} cannot be used now: {holders} has locked it; run again "
            "when that has ended"
        )
    return RequestError(
        f"{place.shown} cannot be used as a store ({_first_line(error)}): "
        "check the file, or name another with --store sqlite:///PATH"
    )


def _work_failed(place: Address, engine: Engine, error: DBAPIError) -> WorkFailed:
    where, cause = place.shown, _first_line(error)
    if "readonly" in cause:
        return WorkFailed(
            f"{where} cannot be written here: copy it to where it can, and name that with --store"
        )
    if "locked" in cause or "lock timeout" in cause:
        holders = lock_holders(place.path) if place.path else lock_sessions(engine)
        who = ", ".join(holders) or "another process"
        return WorkFailed(
            f"{where}: {who} held the store for more than {BUSY_SECONDS:.0f} s; run again"
        )
    return WorkFailed(f"{where}: {cause}; what was finished is kept, run again to resume")


def _first_line(error: sqlite3.Error | DBAPIError) -> str:
    cause = error.orig if isinstance(error, DBAPIError) else error
    return " ".join(str(cause).split("\n")[0].split())
