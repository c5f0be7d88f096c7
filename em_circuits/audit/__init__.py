"""Audits of fine-tunes: what changed, how much of it is unusual, and whether to accept it."""

from typing import TYPE_CHECKING

from pivotal_tokens.lazy import lazy

if TYPE_CHECKING:
    from em_circuits.audit import calibration, claims, report, run, suite
else:
    __getattr__, __dir__ = lazy(__name__)

__all__ = ["calibration", "claims", "report", "run", "suite"]
