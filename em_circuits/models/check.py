"""Results of health checks: found, expected, advice."""

from __future__ import annotations

from pydantic import Field
from pydantic.dataclasses import dataclass


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
