"""Errors of memory that ran out, on whatever device, told from others; needs no torch."""

from __future__ import annotations


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice: Python's, CUDA's, or an allocator's."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or any(
        words in str(error) for words in ("can't allocate memory", "CUDA out of memory")
    )
