"""Where do tensors wait that are needed again, but not soon enough to stay in memory?

In a file without a name: it takes no resident memory, and is gone with the object or the process.

    scratch = Scratch(folder)
    ticket = scratch.put(tensor)
    assert torch.equal(scratch.get(ticket), tensor)
"""

from __future__ import annotations

import math
import os
import tempfile
import weakref
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor

from pivotal_tokens.errors import WorkFailed


class Ticket(NamedTuple):
    """Where a tensor waits."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class Scratch:
    """Tensors in a file; made in a folder, or where the system keeps temporary files."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._file: int | None = None
        self._end = 0

    def put(self, tensor: Shaped[Tensor, ...]) -> Ticket:
        """Write a tensor behind the others.

        Raises:
            WorkFailed: If the disk is full.
        """
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        ticket = Ticket(self._end, tuple(tensor.shape), tensor.dtype, tensor.device)
        while len(data):
            try:
                written = os.pwrite(self._open(), data, self._end)
            except OSError as error:
                place = self._folder or tempfile.gettempdir()
                raise WorkFailed(
                    f"no room under {place} for {len(data) / 1e6:.0f} MB of attribution rows: "
                    f"{error.strerror}; make room, or ask for fewer --max-features"
                ) from error
            self._end += written
            data = data[written:]
        return ticket

    def get(self, ticket: Ticket) -> Shaped[Tensor, ...]:
        """A tensor that was put here."""
        tensor = torch.empty(math.prod(ticket.shape), dtype=ticket.dtype)
        data, offset = tensor.view(torch.uint8).numpy().data, ticket.offset
        while len(data):
            read = os.preadv(self._open(), [data], offset)
            if not read:
                raise WorkFailed("a temporary file of attribution rows was cut short")
            data, offset = data[read:], offset + read
        return tensor.view(ticket.shape).to(ticket.device)

    def _open(self) -> int:
        if self._file is None:
            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
            self._file, name = tempfile.mkstemp(prefix=".em-circuits-", dir=self._folder)
            os.unlink(name)
            weakref.finalize(self, os.close, self._file)
        return self._file
