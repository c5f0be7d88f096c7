"""Finished rows of a graph that is being built, on disk: a build that was stopped goes on.

A file under the graph's key, only ever appended to: SHA-256 of what the rows are of, then records

    index (int64) | values (float32 x width) | CRC-32 of both (uint32)

A record counts if it is whole and its sum is right; the file is cut before the first that is not.
So whatever stops the build, at most the batch in work is lost, and no wrong row is read. A file of
other content (another choice of nodes, another device) is started afresh; one that another process
is writing is left alone.

    with RowCache(path, content, width) as cache:
        found = cache.get(rows)               # None unless every one is there
        cache.put(rows, values)

`GraphStore.save` removes the files of the graph that it stored, `GraphStore.prune` stale ones.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from em_circuits.graphs.store import ROW_SUFFIX

logger = logging.getLogger(__name__)

_DIGEST_BYTES = 64


def row_path(folder: Path, key: str, kind: str) -> Path:
    """Where a graph's finished rows of one kind are while it is built."""
    return folder / f".{key}.{kind}{ROW_SUFFIX}"


class RowCache:
    """Finished rows of one width, in a file or, without a path, nowhere."""

    def __init__(self, path: Path | None, content: str, width: int) -> None:
        """
        Args:
            path: See `row_path`; None keeps nothing.
            content: SHA-256 (64 hex digits) of what decides the rows.
            width: Values of a row.
        """
        self._path, self._content = path, content.encode()
        self._record = np.dtype([("index", "<i8"), ("values", "<f4", (width,)), ("sum", "<u4")])
        self._file: BinaryIO | None = None
        self._found: dict[int, int] = {}
        self._records = np.empty(0, self._record)

    def __enter__(self) -> RowCache:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.close()
            else:
                self._file = file
                self._read(file, self._path)
        return self

    def __exit__(self, *exception: object) -> None:
        self._records = np.empty(0, self._record)
        if self._file is not None:
            self._file.close()
            self._file = None

    def get(self, rows: Int64[Tensor, " row"]) -> Float32[Tensor, "row column"] | None:
        """Values of some rows; None unless all of them are there."""
        if not all(row in self._found for row in rows.tolist()):
            return None
        places = [self._found[row] for row in rows.tolist()]
        return torch.from_numpy(self._records["values"][places].astype(np.float32))

    def put(
        self, rows: Int64[Tensor, " row"], values: Float32[Tensor, "row column"]
    ) -> Float32[Tensor, "row column"]:
        """Append finished rows; a full disk only ends the keeping.

        Returns:
            The values.
        """
        if self._file is not None:
            records = np.empty(len(rows), self._record)
            records["index"], records["values"] = rows.numpy(), values.numpy()
            records["sum"] = [self._sum(record) for record in records]
            try:
                self._file.write(records.tobytes())
                self._file.flush()
            except OSError as error:
                logger.warning("rows are not kept for a restart: %s", error)
                with contextlib.suppress(OSError):
                    self._file.close()
                self._file = None
        return values

    def _read(self, file: BinaryIO, path: Path) -> None:
        end = _DIGEST_BYTES
        if file.read(_DIGEST_BYTES) == self._content:
            whole = (path.stat().st_size - _DIGEST_BYTES) // self._record.itemsize
            if whole:
                self._records = np.memmap(path, self._record, "r", _DIGEST_BYTES, (whole,))
            sound = 0
            while sound < whole and self._records[sound]["sum"] == self._sum(self._records[sound]):
                sound += 1
            self._records = self._records[:sound]
            self._found = {int(index): i for i, index in enumerate(self._records["index"])}
            end += sound * self._record.itemsize
        else:
            file.truncate(0)
            file.seek(0)
            file.write(self._content)
        file.truncate(end)
        file.seek(end)

    @staticmethod
    def _sum(record: np.void) -> int:
        return zlib.crc32(record.tobytes()[: -np.dtype("<u4").itemsize])
