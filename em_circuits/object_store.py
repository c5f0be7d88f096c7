"""Artefact roots in object stores: paths whose files lie at ``s3://BUCKET/PREFIX`` (by obstore).

    root = artefact_root("s3://bucket/run")     # or gs://, memory://, file://, or a folder
    write_json(root / "results" / "a.json", {})  # one PUT, of a whole local file
    (root / "results" / "a.json").read_text()    # from a local copy of this version of the object

A root of either kind is a `Path`, so nothing that reads or writes below it knows the difference:

    on this machine  hidden names (temporary files, rows of unfinished graphs), and a file that is
                     open for writing, which is uploaded when it is closed
    in the store     everything else; a PUT is atomic, so an object is whole or not there
    copies           of objects that were read or written here, named by key and ETag, memory-mapped
                     like any file; beyond a limit the least recently used ones go

Credentials come from the environment alone (``AWS_*``, ``GOOGLE_*``), never from an address.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import hashlib
import io
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import cache
from pathlib import Path, PosixPath
from typing import IO, Any, ClassVar
from urllib.parse import urlsplit

from em_circuits.models.fingerprint import user_cache
from pivotal_tokens.errors import RequestError

COPIES_GB = 50.0
"""Disk that copies may take, unless ``$EM_CIRCUITS_COPIES_GB`` says otherwise."""
_KINDS = ("s3", "gs", "memory")
"""Stores whose PUT is atomic, and that tell versions of an object apart."""
_CONNECT_TIME, _OBJECT_TIME = "5s", "1h"
"""How long a connection and the transfer of a whole object may take."""
_TRIES, _TRY_SECONDS = 4, 60
_READ_BYTES = 1 << 16
"""What is read at once of an object that has no copy."""
_FETCH_BYTES = 8 << 20
_FRESH_SECONDS = 2.0
"""How long what a listing said of an object is believed."""


def artefact_root(place: str) -> Path:
    """The root at an address, or a folder.

    Raises:
        RequestError: If the address has credentials in it, is of no known kind, or cannot be
            reached; before anything else is done.
    """
    kind, scheme, rest = place.partition("://")
    if not scheme:
        return Path(place)
    if "@" in rest or "?" in rest:
        raise RequestError(
            f"--root {kind}://... has credentials or options in it; give them in the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL), and only "
            f"{kind}://BUCKET/PREFIX here"
        )
    if kind == "file":
        return Path(urlsplit(place).path)
    if kind not in _KINDS or not rest.strip("/"):
        known = ", ".join(f"{one}://BUCKET/PREFIX" for one in _KINDS)
        raise RequestError(f"--root {place} is no folder, and none of {known}")
    return _opened(place.rstrip("/"))


def require_store(root: Path, url: str | None) -> None:
    """Refuse a root without a disk for the store to stand on.

    Raises:
        RequestError: If the root is in an object store and no store is named.
    """
    if isinstance(root, ObjectPath) and url is None:
        raise RequestError(
            f"--root {root} holds graphs and results but no database; add --store "
            "postgresql+psycopg://USER@HOST/DATABASE, or sqlite:///PATH on this machine"
        )


def drop_copy(path: Path) -> bool:
    """Remove this machine's copy of an object, so that it is fetched again; False if there is
    none."""
    copy = path.copied_to() if isinstance(path, ObjectPath) else None
    if copy is None or not copy.exists():
        return False
    copy.unlink()
    return True


@cache
def _opened(address: str) -> Path:
    objects = ObjectStore(address)
    root: ObjectPath = type("ObjectPath", (ObjectPath,), {"objects": objects})(objects.place)
    try:
        with root.saying():
            next(iter(objects.files.list(chunk_size=1)), None)
    except OSError as error:
        raise RequestError(
            f"--root {address} cannot be reached: {error.strerror}; check the address, and the "
            "credentials in the environment"
        ) from error
    objects.place.mkdir(parents=True, exist_ok=True)
    return root


def _below(address: str, parts: Sequence[str]) -> Path:
    return _opened(address).joinpath(*parts)


class ObjectStore:
    """An open address: its client, and where this machine keeps unfinished files and copies."""

    def __init__(self, address: str) -> None:
        """Open without a request.

        Raises:
            RequestError: If the client library is not installed.
        """
        try:
            from obstore.store import from_url
        except ImportError as error:
            raise RequestError(f"--root {address} needs pip install 'em-circuits[s3]'") from error
        plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
        in_memory = address.startswith("memory:")
        how: dict[str, Any] = {
            "client_options": {
                "allow_http": plain,
                "connect_timeout": _CONNECT_TIME,
                "timeout": _OBJECT_TIME,
            },
            "retry_config": {
                "max_retries": _TRIES,
                "retry_timeout": timedelta(seconds=_TRY_SECONDS),
            },
        }
        self.files: Any = from_url(
            "memory:///" if in_memory else address, **({} if in_memory else how)
        )
        self.address = address
        folder = user_cache().absolute() / "objects"
        own = f"{address} {uuid.uuid4()}" if in_memory else address  # gone with the process
        self._name = hashlib.sha256(own.encode()).hexdigest()[:16]
        self.place = folder / self._name
        self._copies = folder / "copies"
        self.changes = 0
        """Made by this process; what was listed before one is asked for again."""
        self._limit = float(os.environ.get("EM_CIRCUITS_COPIES_GB", COPIES_GB)) * 1e9

    def copy(self, key: str, info: Mapping[str, Any]) -> Path:
        """Where a copy of this version of an object is, or would be."""
        version = f"{self._name}\n{key}\n{_version(info)}"
        suffix = Path(key).suffix
        return self._copies / f"{hashlib.sha256(version.encode()).hexdigest()[:40]}{suffix}"

    def fetched(self, key: str, info: Mapping[str, Any]) -> Path:
        """A copy of an object, fetched if there is none of this version."""
        copy = self.copy(key, info)
        if copy.is_file() and copy.stat().st_size == info["size"]:
            os.utime(copy)
            return copy
        self._copies.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._copies, prefix=".", delete=False) as file:
            name = Path(file.name)
            try:
                found = self.files.get(key)
                for chunk in found.stream(min_chunk_size=_FETCH_BYTES):
                    file.write(chunk)
                file.flush()
                return self.take(key, found.meta, name)
            finally:
                name.unlink(missing_ok=True)

    def take(self, key: str, info: Mapping[str, Any], file: Path) -> Path:
        """Make a file of this machine the copy of an object; the oldest others make room.

        Raises:
            OSError: If it is not as long as the object.
        """
        copy, size = self.copy(key, info), file.stat().st_size
        if size != info["size"]:
            raise OSError(errno.EIO, f"{info['size']} bytes in the store, {size} here")
        self._copies.mkdir(parents=True, exist_ok=True)
        file.replace(copy)
        os.utime(copy)
        copies = [(one.stat(), one.path) for one in os.scandir(self._copies) if one.name[0] != "."]
        total = sum(about.st_size for about, _ in copies)
        for about, path in sorted(copies, key=lambda one: one[0].st_mtime_ns):
            if total <= self._limit or path == str(copy):
                break
            Path(path).unlink(missing_ok=True)  # who has it mapped keeps it
            total -= about.st_size
        return copy


class ObjectPath(PosixPath):
    """A path below a root in an object store; as text, the address."""

    objects: ClassVar[ObjectStore]
    _listed: tuple[tuple[int, float], Mapping[str, Any]] | None = None

    # --- As a path ---

    def __str__(self) -> str:
        below = self._below
        return super().__str__() if below is None else "/".join([self.objects.address, *below])

    def __fspath__(self) -> str:
        """A file of this machine: the one being written, or a copy of the object."""
        info = None if self._is_here else self._info()
        if info is None:
            return self._local
        with self.saying():
            return str(self.objects.fetched(self._key, info))

    def __reduce__(self) -> tuple[Any, ...]:
        below = self._below
        if below is None:
            return Path, (self._local,)
        return _below, (self.objects.address, below)

    def resolve(self, strict: bool = False) -> ObjectPath:
        return type(self)(os.path.normpath(self._local))

    # --- Reading ---

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        if self._is_here:
            return os.stat(self._local, follow_symlinks=follow_symlinks)
        info = self._info()
        if info is None:
            with self.saying():
                if not next(iter(self.objects.files.list(self._key, chunk_size=1)), None):
                    raise FileNotFoundError
            return os.stat_result((stat.S_IFDIR | 0o755, *[0] * 9))
        number = int(hashlib.sha256(_version(info).encode()).hexdigest()[:15], 16)
        at = info["last_modified"].timestamp()
        return os.stat_result(
            (stat.S_IFREG | 0o644, number, 0, 1, 0, 0, info["size"], at, at, at),
            {"st_mtime_ns": int(at * 1e9)},
        )

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        return self._mode() is not None

    def is_file(self) -> bool:
        return stat.S_ISREG(self._mode() or 0)

    def is_dir(self) -> bool:
        return stat.S_ISDIR(self._mode() or 0)

    def iterdir(self) -> Generator[ObjectPath, None, None]:
        return self.glob("*")

    def rglob(self, pattern: str) -> Generator[ObjectPath, None, None]:
        return self.glob(f"**/{pattern}")

    def glob(self, pattern: str) -> Generator[ObjectPath, None, None]:
        wanted = pattern.split("/")
        literal = 0
        while literal < len(wanted) - 1 and not set(wanted[literal]) & set("*?["):
            literal += 1
        below = self.joinpath(*wanted[:literal])
        wanted = wanted[literal:]
        found = {str(one) for one in Path(below._local).glob("/".join(wanted))}
        listed: dict[str, Mapping[str, Any]] = {}
        now = self.objects.changes, time.monotonic() + _FRESH_SECONDS
        with self.saying():
            objects = [one for some in self.objects.files.list(below._key) for one in some]
        n_above = len(below._below or ())
        for info in objects:
            parts = info["path"].split("/")[n_above:]
            for n in range(1, len(parts) + 1):
                if _fits(parts[:n], wanted):
                    found.add(name := os.path.join(below._local, *parts[:n]))
                    if n == len(parts):
                        listed[name] = info
        for name in sorted(found):
            path = type(self)(name)
            if name in listed:
                path._listed = (now, listed[name])
            yield path

    def open(self, mode: str = "r", *more: Any, **how: Any) -> IO[Any]:  # type: ignore[override]
        if set(mode) & set("wax+"):
            return self._open_to_write(mode, *more, **how)
        if self._is_here:
            return open(self._local, mode, *more, **how)
        info = self._info()
        if info is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        if mode == "rb" and not self.objects.copy(self._key, info).exists():
            # Its first bytes may be all that is wanted.
            return io.BufferedReader(ObjectReader(self, info["size"]), _READ_BYTES)
        with self.saying():
            copy = self.objects.fetched(self._key, info)
        return copy.open(mode, *more, **how)

    def read_bytes(self) -> bytes:
        return Path(os.fspath(self)).read_bytes()

    def copied_to(self) -> Path | None:
        """Where this machine's copy of the object is, or would be; None if there is no object."""
        info = None if self._is_here else self._info()
        return None if info is None else self.objects.copy(self._key, info)

    # --- Writing ---

    def _open_to_write(self, mode: str, *more: Any, **how: Any) -> IO[Any]:
        file = Path(self._local)
        file.parent.mkdir(parents=True, exist_ok=True)
        if not self._is_here and "w" not in mode and self._info() is not None:
            shutil.copyfile(self, file)
        stream: IO[Any] = file.open(mode, *more, **how)
        if not self._is_hidden:
            close = stream.close

            def upload() -> None:
                if not stream.closed:
                    close()
                    self._put(file)

            stream.close = upload  # type: ignore[method-assign]
        return stream

    def replace(self, target: Path) -> ObjectPath:  # type: ignore[override]
        there = type(self)(getattr(target, "_local", target))
        if os.path.lexists(self._local):
            there._put(Path(self._local))
        else:
            with self.saying():
                self.objects.files.rename(self._key, there._key)
            self.objects.changes += 1
        return there

    def unlink(self, missing_ok: bool = False) -> None:
        if not missing_ok and not self.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        Path(self._local).unlink(missing_ok=True)
        if not self._is_hidden:
            with contextlib.suppress(FileNotFoundError), self.saying():
                self.objects.files.delete(self._key)
            self.objects.changes += 1

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """A folder for what is being written here; the store has none."""
        Path(self._local).mkdir(mode, parents=True, exist_ok=exist_ok)

    def _put(self, file: Path) -> None:
        """Upload a whole file of this machine, which becomes the copy."""
        with self.saying():
            put = self.objects.files.put(self._key, file)
            self.objects.changes += 1
            self.objects.take(self._key, {**put, "size": file.stat().st_size}, file)
        Path(self._local).unlink(missing_ok=True)

    @contextlib.contextmanager
    def saying(self) -> Iterator[None]:
        """Errors of the client library as errors of the system about this address, on one line."""
        from obstore.exceptions import BaseError

        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self)) from error
        except (BaseError, OSError) as error:
            said = re.search("<Code>(.*?)</Code>", str(error))
            reason = said[1] if said else " ".join(str(error).partition("\n\n")[0].split())
            raise OSError(errno.EIO, reason[:300], str(self)) from error

    # --- Where it is ---

    @property
    def _local(self) -> str:
        return super().__str__()

    @property
    def _below(self) -> tuple[str, ...] | None:
        n = len(self.objects.place.parts)
        return self.parts[n:] if self.parts[:n] == self.objects.place.parts else None

    @property
    def _key(self) -> str:
        return "/".join(self._below or ())

    @property
    def _is_hidden(self) -> bool:
        below = self._below
        return below is None or any(part.startswith(".") for part in below)

    @property
    def _is_here(self) -> bool:
        return self._is_hidden or not self._below or os.path.lexists(self._local)

    def _mode(self) -> int | None:
        try:
            return self.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _info(self) -> Mapping[str, Any] | None:
        if self._listed is not None:
            (changes, until), listed = self._listed
            if changes == self.objects.changes and time.monotonic() < until:
                return listed
        try:
            with self.saying():
                info: Mapping[str, Any] = self.objects.files.head(self._key)
                return info
        except FileNotFoundError:
            return None


class ObjectReader(io.RawIOBase):
    """The bytes of an object, asked for as they are read."""

    def __init__(self, path: ObjectPath, size: int) -> None:
        self._path, self._size, self._at = path, size, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        n = min(len(buffer), self._size - self._at)
        if n:
            with self._path.saying():
                found = self._path.objects.files.get_range(
                    self._path._key, start=self._at, length=n
                )
            buffer[:n] = memoryview(found)
            self._at += n
        return n


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a path are those of a pattern, ``**`` being any number of them."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return _fits(parts, pattern[1:]) or (bool(parts) and _fits(parts[1:], pattern))
    return (
        bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])
    )


def _version(info: Mapping[str, Any]) -> str:
    return str(info["e_tag"] or (info["last_modified"], info["size"]))
