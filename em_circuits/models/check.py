"""Results of health checks: found, expected, advice; sizes of activations, place by place."""

from __future__ import annotations

from pydantic import Field
from pydantic.dataclasses import dataclass

FINITE = "activations finite"
TRANSCODER_BASE = "transcoders of this base"


@dataclass(frozen=True)
class Check:
    """One health check and what to do when it fails."""

    name: str
    ok: bool
    found: str
    expected: str
    advice: str = ""
    fatal: bool = Field(default=True, exclude=True)
    """A failed check stops the work; otherwise it is a recorded warning."""


@dataclass(frozen=True)
class SiteSize:
    """Largest magnitude of what one layer's MLP reads at one position, in both models."""

    layer: int
    position: int
    token: str
    base: float | None
    """None where it is NaN or infinite."""
    merged: float | None
    """None where it is NaN or infinite."""
    outlier: bool
    """Ten times what is usual in this layer, or more."""
