"""People label what the judge flagged: a service without a screen, and a plain terminal loop."""

from typing import TYPE_CHECKING

from pivotal_tokens.lazy import lazy

if TYPE_CHECKING:
    from pivotal_tokens.review.plain import PlainSummary, run_plain
    from pivotal_tokens.review.questions import Difference, Progress, Question, Reveal
    from pivotal_tokens.review.service import ReviewService
else:
    __getattr__, __dir__ = lazy(__name__)

__all__ = [
    "Difference",
    "PlainSummary",
    "Progress",
    "Question",
    "Reveal",
    "ReviewService",
    "run_plain",
]
