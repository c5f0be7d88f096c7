"""Tensors offloaded to a file until they are needed again.

The file has no name: it takes no resident memory, and is gone with the object or the process.

    scratch = Scratch(folder)
    slot = scratch.put(tensor)
    assert torch.equal(scratch.get(slot), tensor)

Attribution contexts of both models are needed before either is attributed, because the targets come
from both models' logits; the encoder and decoder rows of the one that waits, by far its largest
part, are offloaded and come back bit for bit: `offload(context, scratch).restore()`.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor

from pivotal_tokens.errors import WorkFailed

_PARTS = ("encoder_vecs", "decoder_vecs")
LEAST_BYTES = 1 << 20
"""Smaller parts of a context stay in memory."""


class Slot(NamedTuple):
    """Where in the file a tensor is."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


class Scratch:
    """Tensors in a file of a given folder, or of the system's temporary one."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._file: int | None = None
        self._end = 0

    def put(self, tensor: Shaped[Tensor, ...]) -> Slot:
        """Write a tensor behind the others.

        Raises:
            WorkFailed: If the disk is full.
        """
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        slot = Slot(self._end, tuple(tensor.shape), tensor.dtype, tensor.device)
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
        self._end = -(-self._end // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        return slot

    def get(self, slot: Slot) -> Shaped[Tensor, ...]:
        """A tensor that was put here."""
        tensor = torch.empty(slot.shape, dtype=slot.dtype)
        data, offset = tensor.view(-1).view(torch.uint8).numpy().data, slot.offset
        while len(data):
            read = os.preadv(self._open(), [data], offset)
            if not read:
                raise WorkFailed("a temporary file of attribution rows was cut short")
            data, offset = data[read:], offset + read
        return tensor.to(slot.device)

    def mapped(self, slot: Slot) -> Shaped[Tensor, ...]:
        """The same without a copy, where it was on the CPU; what is written into it is lost."""
        if not slot.nbytes:
            return torch.empty(slot.shape, dtype=slot.dtype, device=slot.device)
        lies = mmap.mmap(self._open(), slot.nbytes, access=mmap.ACCESS_COPY, offset=slot.offset)
        return torch.frombuffer(lies, dtype=slot.dtype).view(slot.shape).to(slot.device)

    def clear(self) -> None:
        """Let go of all tensors; those that follow are written over them, which takes a fraction
        of the time that a new file's pages take."""
        self._end = 0

    def _open(self) -> int:
        if self._file is None:
            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
            self._file, name = tempfile.mkstemp(prefix=".em-circuits-", dir=self._folder)
            os.unlink(name)
            weakref.finalize(self, os.close, self._file)
        return self._file


@dataclass(frozen=True)
class OffloadedContext:
    """An attribution context without its large parts."""

    context: Any
    scratch: Scratch
    slots: dict[str, Slot]

    def restore(self) -> Any:
        """The context, whole again."""
        for name, slot in self.slots.items():
            setattr(self.context, name, self.scratch.get(slot))
        return self.context


def offload(context: Any, scratch: Scratch) -> OffloadedContext:
    """Offload a context's large parts, and drop all logits but the last position's."""
    context.logits = context.logits[:, -1:].clone()
    slots = {}
    for name in _PARTS:
        tensor = getattr(context, name)
        if tensor.numel() * tensor.element_size() >= LEAST_BYTES:
            slots[name] = scratch.put(tensor)
            setattr(context, name, None)
    return OffloadedContext(context, scratch, slots)
