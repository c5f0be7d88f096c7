"""Human review of flagged prompts: a service, its controller, and the front-ends."""

from typing import TYPE_CHECKING

from pivotal_tokens.lazy import lazy

if TYPE_CHECKING:
    from pivotal_tokens.review.controller import ReviewController
    from pivotal_tokens.review.plain import ReviewSummary, run_plain
    from pivotal_tokens.review.questions import Difference, Progress, Question, Reveal
    from pivotal_tokens.review.service import ReviewService
else:
    __getattr__, __dir__ = lazy(__name__)

__all__ = [
    "Difference",
    "Progress",
    "Question",
    "Reveal",
    "ReviewController",
    "ReviewService",
    "ReviewSummary",
    "run_plain",
]
