"""Addresses of stores: the database that a URL names.

sqlite:///results/em-circuits.sqlite      a file; sqlite:////absolute/path
postgresql+psycopg://ada@host:5432/em     a database on a server

address("postgresql://ada:secret@host/em").shown      # the password as ***
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from pivotal_tokens.errors import RequestError
from pivotal_tokens.store.dialect import postgresql_engine, sqlite_engine

TAKE = "take"
_FORMS = "write --store sqlite:///PATH or postgresql+psycopg://USER@HOST/DATABASE"
_DRIVERS = ("postgresql", "postgres", "postgresql+psycopg")


@dataclass(frozen=True)
class Address:
    """Where a store is."""

    url: URL
    path: Path | None
    """The file of an SQLite store."""
    take: bool = False
    """This host takes an SQLite store over from another."""

    @property
    def shown(self) -> str:
        """For messages: the path, or the URL without its password."""
        if self.path:
            return str(self.path)
        return self.url.difference_update_query(["password"]).render_as_string(hide_password=True)

    def engine(self) -> Engine:
        """An engine on it; nothing is opened yet.

        Raises:
            RequestError: If the database's driver is not installed.
        """
        if self.path is not None:
            return sqlite_engine(self.path)
        try:
            return postgresql_engine(self.url)
        except ModuleNotFoundError as error:
            raise RequestError(
                "a store on PostgreSQL needs psycopg: pip install 'em-circuits[postgres]'"
            ) from error


def address(url: str | Path) -> Address:
    """The address in a URL, or of a path as it is.

    Raises:
        RequestError: If it names no database that can hold a store.
    """
    if isinstance(url, Path):
        return Address(URL.create("sqlite", database=str(url)), url)
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise RequestError(
            f"not the URL of a store: {without_password(url)!r}; {_FORMS}"
        ) from error
    if parsed.drivername in _DRIVERS:
        return _postgresql(parsed)
    if parsed.get_backend_name() != "sqlite":
        raise RequestError(f"no store on {parsed.drivername}; {_FORMS}")
    query = dict(parsed.query)
    take = query.pop("host", None) == TAKE
    if not parsed.database or parsed.database == ":memory:" or query or parsed.host:
        raise RequestError(f"a store is a file: write --store sqlite:///PATH instead of {url!r}")
    return Address(parsed, Path(parsed.database), take)


def without_password(url: str) -> str:
    """A URL as it may be shown, even where it is none."""
    scheme, mark, rest = url.partition("://")
    credentials, at, place = rest.rpartition("@")
    user, colon, _ = credentials.partition(":")
    return f"{scheme}{mark}{user}{':***' if colon else ''}{at}{place}"


def _postgresql(parsed: URL) -> Address:
    if not parsed.database:
        raise RequestError(
            f"{parsed.render_as_string()} names no database; "
            "write --store postgresql+psycopg://USER@HOST/DATABASE"
        )
    return Address(parsed.set(drivername="postgresql+psycopg"), None)
