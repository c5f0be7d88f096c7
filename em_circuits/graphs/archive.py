"""How is a graph kept small once nobody maps it any more, without losing a bit?

Its large tensors are compressed by blosc2 (zstd over byte-shuffled chunks) and kept as bytes in
the same safetensors file. Shuffling puts the bytes of equal weight side by side: signs and
exponents repeat, mantissas do not, which is why edges shrink by a seventh and not by half.

    packed, how = compress(edges)
    assert torch.equal(restore(packed, how), edges)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from em_circuits.graphs.header import Compressed

LEAST_BYTES = 1 << 12
"""Smaller tensors stay as they are."""
_CHUNK = 1 << 22
_LEVEL = 1  # higher ones take up to a hundred times as long and are no smaller (docs/benchmarks.md)


def compress(tensor: Shaped[Tensor, ...]) -> tuple[UInt8[Tensor, " byte"], Compressed]:
    """A tensor's values as bytes, and what is needed to have it back."""
    import blosc2

    values = tensor.contiguous().reshape(-1)
    chunks = blosc2.SChunk(
        chunksize=_CHUNK,
        data=values.view(torch.uint8).numpy(),
        cparams={
            "codec": blosc2.Codec.ZSTD,
            "clevel": _LEVEL,
            "typesize": values.element_size(),
            "filters": [blosc2.Filter.SHUFFLE],
            "filters_meta": [0],
        },
    )
    packed = torch.frombuffer(bytearray(chunks.to_cframe()), dtype=torch.uint8)
    name = str(tensor.dtype).removeprefix("torch.")
    return packed, Compressed(dtype=name, shape=tuple(tensor.shape))


def restore(packed: UInt8[Tensor, " byte"], how: Compressed) -> Shaped[Tensor, ...]:
    """The tensor, in memory of its own.

    Raises:
        ValueError: If the bytes are not those of such a tensor.
    """
    import blosc2

    dtype: Any = getattr(torch, how.dtype)
    values = torch.empty(math.prod(how.shape), dtype=dtype)
    into = values.view(torch.uint8)
    try:
        chunks = blosc2.schunk_from_cframe(packed.numpy().tobytes())
        if chunks.nbytes != len(into):
            raise ValueError(f"{chunks.nbytes} bytes, expected {len(into)}")
        if len(into):
            chunks.get_slice(0, len(chunks), out=into.numpy())
    except RuntimeError as error:
        raise ValueError(f"blosc2: {error}") from error
    return values.reshape(how.shape)
