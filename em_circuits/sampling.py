"""Sampling of continuations: how many, how long, how random.

sampling = Sampling(samples=8, max_tokens=16, temperature=0.7, seed=0)
"""

from __future__ import annotations

from pydantic import Field

from pivotal_tokens.schema import Frozen


class Sampling(Frozen, use_attribute_docstrings=True):
    """How continuations are drawn."""

    samples: int = Field(default=8, ge=1)
    """Continuations of each prompt and condition; one is enough at temperature 0."""
    max_tokens: int = Field(default=16, ge=1)
    """Tokens of a continuation, at most."""
    temperature: float = Field(default=0.7, ge=0, allow_inf_nan=False)
    """0 takes the likeliest token."""
    seed: int = 0
    """Of the noise."""
    stop_at_end: bool = True
    """Stop at the model's end-of-sequence token."""
