"""Evaluation of misalignment: open questions, sampled answers, judged and counted."""

from typing import TYPE_CHECKING

from pivotal_tokens.lazy import lazy

if TYPE_CHECKING:
    from em_circuits.experiments.evaluation import (
        answers,
        each,
        evaluate,
        given,
        judging,
        questions,
        rates,
        rejudge,
    )
else:
    __getattr__, __dir__ = lazy(__name__)

__all__ = ["answers", "each", "evaluate", "given", "judging", "questions", "rates", "rejudge"]
