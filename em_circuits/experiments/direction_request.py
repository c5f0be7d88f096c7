"""Request for a direction: which one, and how it is tried. Light, so that commands can read it.

DirectionRequest(kind="models", samples=4)
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pivotal_tokens.schema import Frozen


class DirectionRequest(Frozen, use_attribute_docstrings=True):
    """Which direction, and how it is tried."""

    kind: Literal["answers", "models"] = "answers"
    """Misaligned minus aligned answers, or merged minus base on the same answers."""
    layer: int | None = Field(default=None, ge=0)
    """Behind which it is added and read out. [default: where it is largest beside the stream]"""
    doses: tuple[float, ...] = (0.1, 0.2, 0.4)
    """What is added to the base, as a share of the stream's length; several times."""
    n_random: int = Field(default=20, ge=1)
    """Random directions of the same length."""
    hold_out: float = Field(default=0.25, gt=0, lt=1)
    """Share of questions on which it is tried, and not found."""
    samples: int = Field(default=0, ge=0)
    """Answers to each held-out question and condition, to be judged; 0 for none."""
    answer_tokens: int = Field(default=64, ge=1)
    """Tokens of such an answer, at most."""
    seed: int = 0
