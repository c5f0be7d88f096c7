"""People label what the judge flagged: a service without a screen, and a plain terminal loop."""

from pivotal_tokens.review.plain import PlainSummary, run_plain
from pivotal_tokens.review.questions import Difference, Progress, Question, Reveal
from pivotal_tokens.review.service import ReviewService

__all__ = [
    "Difference",
    "PlainSummary",
    "Progress",
    "Question",
    "Reveal",
    "ReviewService",
    "run_plain",
]
