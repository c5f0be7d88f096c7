"""People label what the judge flagged: a service without a screen, and a plain terminal loop."""

from pivotal_tokens.review.plain import PlainSummary, run_plain
from pivotal_tokens.review.service import Difference, Question, Reveal, ReviewService

__all__ = ["Difference", "PlainSummary", "Question", "Reveal", "ReviewService", "run_plain"]
