"""Settings of a comparison of answers. Light, so that commands can make their options from them.

ResponseSettings(pool="max", min_answers=10)
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pivotal_tokens.schema import Frozen

Pool = Literal["mean", "max"]


class ResponseSettings(Frozen, use_attribute_docstrings=True):
    """How answers are compared."""

    pool: Pool = "mean"
    """Over an answer's tokens."""
    permutations: int = Field(default=2000, ge=1)
    """Of the labels within questions."""
    min_answers: int = Field(default=5, ge=1)
    """Test nodes that are active in at least so many answers."""
    hold_out: float = Field(default=0.25, ge=0, lt=1)
    """Share of questions that are not compared, but tried on."""
    detector: int = Field(default=20, ge=1)
    """Nodes of the detector: those of the largest contrast."""
    seed: int = 0
    """Of permutations, resamples and held-out questions."""
