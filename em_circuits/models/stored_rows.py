"""Matrices off the device: transcoder weights that wait in files or in host memory.

    store = StoredRows()
    matrix = FileMatrix(path, "W_enc")
    store.rows(matrix, ids, device=device, dtype=dtype)     # of a few features, the last ones kept
    store.whole(matrix)

Rows of a safetensors file are read where they lie, adjacent ones in one go; only they become the
models' precision. A matrix that its file keeps transposed (gemma-scope) is read whole for any row.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from safetensors import safe_open
from torch import Tensor

from em_circuits.models.files import safetensors_header
from pivotal_tokens.errors import WorkFailed

KEPT_BYTES = 4 << 30
"""Rows of a transcoder set that are kept between calls, on the models' device."""


def kept_bytes(available: int) -> int:
    """How many bytes of rows are kept where so many are free."""
    return min(KEPT_BYTES, available // 5)


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


class HostMatrix(NamedTuple):
    """A matrix in host memory."""

    key: tuple[str, str]
    values: Shaped[Tensor, "feature ..."]

    def whole(self) -> tuple[Tensor, int]:
        """The matrix, and the bytes that were read for it."""
        return self.values, self.values.nbytes

    def rows(self, ids: Int64[Tensor, " row"]) -> tuple[Tensor, int]:
        """Some rows, and the bytes that were read for them."""
        found = self.values[ids]
        return found, found.nbytes


@dataclass(frozen=True)
class FileMatrix:
    """A matrix in a file.

    Attributes:
        path: ``.safetensors`` or ``.npz``.
        name: What the file calls it.
        turned: The file keeps it transposed.
        first: Rows of rows begin with this one (of a layer that writes into later ones alone).
    """

    path: Path
    name: str
    turned: bool = False
    first: int = 0

    @property
    def key(self) -> tuple[str, str]:
        return str(self.path), self.name

    def whole(self) -> tuple[Tensor, int]:
        """The matrix, a feature a row, and the bytes that were read for it."""
        if self.path.suffix == ".npz":
            with np.load(self.path) as arrays:
                found = torch.from_numpy(arrays[self.name])
        else:
            with safe_open(self.path, framework="pt") as tensors:
                found = tensors.get_tensor(self.name)
        read = found.nbytes
        found = found.T.contiguous() if self.turned else found
        return found[:, self.first :].contiguous() if self.first else found, read

    def rows(self, ids: Int64[Tensor, " row"]) -> tuple[Tensor, int]:
        """Some rows, ascending, and the bytes that were read for them.

        Raises:
            WorkFailed: If the file became shorter.
        """
        if self.turned or self.path.suffix == ".npz":
            every, read = self.whole()
            return every[ids], read
        start, shape, dtype = self._place
        found = torch.empty((len(ids), *shape[1:]), dtype=dtype)
        if not len(ids):
            return found, 0
        data, each = found.view(torch.uint8).numpy().reshape(-1).data, found[0].nbytes
        # Runs of adjacent rows: where an id is not its predecessor plus one, a run begins.
        begins = (ids.diff() != 1).nonzero()[:, 0] + 1
        with self.path.open("rb", buffering=0) as file:
            for run in torch.arange(len(ids)).tensor_split(begins):
                first, last = int(run[0]), int(run[-1]) + 1
                part, offset = data[first * each : last * each], start + int(ids[first]) * each
                while len(part):
                    n = os.preadv(file.fileno(), [part], offset)
                    if not n:
                        raise WorkFailed(f"{self.path} was cut short; download it again")
                    part, offset = part[n:], offset + n
        return found[:, self.first :] if self.first else found, found.nbytes

    @cached_property
    def _place(self) -> tuple[int, tuple[int, ...], torch.dtype]:
        """Where in the file the numbers begin, and what they are."""
        entry = safetensors_header(self.path)[self.name]
        with self.path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        start = 8 + header + entry["data_offsets"][0]
        return start, tuple(entry["shape"]), _DTYPES[entry["dtype"]]


Matrix = HostMatrix | FileMatrix


class _Kept(NamedTuple):
    ids: Int64[Tensor, " row"]
    """Ascending."""
    rows: Shaped[Tensor, "row ..."]


@dataclass
class StoredRows:
    """Reader of one transcoder set's matrices, and the rows that it read last.

    Attributes:
        room: Bytes of rows that are kept at most; those of the matrix that was not used for the
            longest time go first.
        bytes_read: Read so far, from files or host memory.
    """

    room: int = KEPT_BYTES
    bytes_read: int = 0
    _kept: OrderedDict[tuple[str, str], _Kept] = field(default_factory=OrderedDict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def whole(self, matrix: Matrix) -> Tensor:
        """All of a matrix, a feature a row, where and as it is stored."""
        found, read = matrix.whole()
        self.bytes_read += read
        return found

    def rows(
        self,
        matrix: Matrix,
        ids: Int64[Tensor, " row"],
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Shaped[Tensor, "row ..."]:
        """Rows of some features, in any order, repetitions allowed."""
        distinct, index = ids.cpu().unique(return_inverse=True)
        with self._lock:
            kept = self._kept.pop(matrix.key, None)
            at, there = _among(kept, distinct)
            if not bool(there.all()):
                fresh, read = matrix.rows(distinct[~there])
                self.bytes_read += read
                # As they are stored, where that is half of what the models compute with.
                narrower = dtype.itemsize < fresh.element_size()
                fresh = fresh.to(device, dtype if narrower else fresh.dtype)
                if kept is None or (len(kept.ids) + len(fresh)) * fresh[0].nbytes > self.room:
                    mine = fresh.new_empty((len(distinct), *fresh.shape[1:]))
                    mine[~there] = fresh
                    if kept is not None:
                        mine[there] = kept.rows[at[there]]
                    kept = _Kept(distinct, mine)
                else:
                    every = torch.cat([kept.ids, distinct[~there]])
                    order = every.argsort()
                    rows = torch.cat([kept.rows, fresh])[order.to(fresh.device)]
                    kept = _Kept(every[order], rows)
                at, _ = _among(kept, distinct)
            assert kept is not None or not len(distinct)
            if kept is None:
                return torch.empty((0, *matrix.rows(distinct)[0].shape[1:]), dtype=dtype).to(device)
            self._keep(matrix.key, kept)
        return kept.rows[at[index].to(kept.rows.device)].to(dtype)

    def _keep(self, key: tuple[str, str], kept: _Kept) -> None:
        if kept.rows.nbytes > self.room:
            return
        self._kept[key] = kept
        while sum(one.rows.nbytes for one in self._kept.values()) > self.room:
            self._kept.popitem(last=False)


def _among(kept: _Kept | None, ids: Int64[Tensor, " row"]) -> tuple[Tensor, Tensor]:
    """Where ascending ids are among those kept, and which are there at all."""
    if kept is None or not len(kept.ids):
        return torch.zeros_like(ids), torch.zeros(len(ids), dtype=torch.bool)
    at = torch.searchsorted(kept.ids, ids).clamp(max=len(kept.ids) - 1)
    return at, kept.ids[at] == ids
