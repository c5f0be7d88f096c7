"""Artefacts written whole or not at all, with their provenance.

A file is written beside its place, flushed to the disk and renamed over it. Its provenance,
``NAME.provenance.json``, is written after it, and a database row that points at it last of all:
whoever finds the row finds the file.

    write_atomic(path, b"...")
    write_provenance(path, inputs={"graph": sha}, config={...})
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20
_LIBRARIES = (
    "em-circuits",
    "torch",
    "circuit-tracer",
    "transformer-lens",
    "nnsight",
    "transformers",
    "peft",
    "safetensors",
    "tokenizers",
    "numpy",
    "pyarrow",
    "sqlalchemy",
    "pydantic",
)


def canonical_json(value: Any) -> str:
    """One spelling of a JSON value: sorted keys, no spaces, UTF-8, no NaN.

    Raises:
        ValueError: If a number is NaN or infinite.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def content_key(value: Any) -> str:
    """SHA-256 (64 hex digits) of a JSON value's canonical spelling."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 (64 hex digits) of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def finite(value: float | None) -> float | None:
    """`value`, or None where it is NaN or infinite: JSON has no word for either."""
    return value if value is not None and math.isfinite(value) else None


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed and renamed over `path`.

    After an exception the temporary file is removed and `path` is as it was; what the system
    refused is said of `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _said_of(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = path.with_name(Path(name).name)
        try:
            yield temporary
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
            _sync_directory(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _said_of(path: Path) -> Iterator[None]:
    """Errors of the system about a temporary file, or none, as errors about its target."""
    try:
        yield
    except OSError as error:
        about = "" if error.filename is None else str(error.filename)
        if error.errno is None or (about and not Path(about).name.startswith(f".{path.name}.")):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def atomic_directory(place: Path) -> Iterator[Path]:
    """Yield a fresh temporary directory beside `place`; on success its files are flushed and it is
    renamed to `place`, which must not exist.

    What an interrupted run left is removed by the next.

    Raises:
        OSError: EBUSY, if another process is writing the same directory.
    """
    temporary = place.with_name(f".{place.name}.tmp")
    with _said_of(place):
        descriptor = _own_directory(temporary)
        if descriptor is None:
            said = "another process is writing it; wait until it is done"
            raise OSError(errno.EBUSY, said, str(place))
        try:
            for left in temporary.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield temporary
            for file in temporary.iterdir():
                file.chmod(0o644)
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
            temporary.replace(place)
            _sync_directory(place.parent)
        finally:
            os.close(descriptor)


def _own_directory(folder: Path) -> int | None:
    """Make a directory and lock it: the open descriptor; None if another process holds it."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        with contextlib.suppress(FileNotFoundError):  # its holder has renamed it meanwhile
            if os.path.samestat(os.stat(folder), os.fstat(descriptor)):
                return descriptor
        os.close(descriptor)


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other process is inside such a block for a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write `data` to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value, indented, UTF-8, without NaN, whole or not at all."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def provenance_path(path: Path) -> Path:
    """Path of the provenance of the artefact at `path`."""
    return path.with_name(path.name + ".provenance.json")


def write_provenance(
    path: Path, *, inputs: Mapping[str, Any], config: Mapping[str, Any], **extra: Any
) -> dict[str, Any]:
    """Write ``NAME.provenance.json`` beside an artefact that is already in place.

    Args:
        path: The artefact.
        inputs: Name -> hash or identifier of everything it was made from.
        config: The resolved configuration.
        **extra: Anything else worth keeping (seeds, device, dtype, start time).

    Returns:
        What was written.
    """
    record = {
        "artefact": path.name,
        "sha256": sha256_file(path),
        "bytes": path.stat().st_size,
        "written_at": datetime.now(UTC).isoformat(),
        "inputs": dict(inputs),
        "config": dict(config),
        "versions": library_versions(),
        **extra,
    }
    write_json(provenance_path(path), record)
    return record


def changed_since_written(path: Path) -> bool:
    """Whether a file has a provenance that is of other bytes, or that cannot be read."""
    sidecar = provenance_path(path)
    if not sidecar.is_file() or not path.is_file():
        return False
    try:
        record = json.loads(sidecar.read_text(encoding="utf-8"))
        return bool(record["sha256"] != sha256_file(path))
    except (ValueError, LookupError, TypeError, RecursionError):
        return True


def library_versions() -> dict[str, str]:
    """Versions of everything a number can depend on; an absent library is left out."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
