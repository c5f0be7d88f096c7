"""Is a model misaligned at all? Open questions, sampled answers, judged for alignment and sense."""

from em_circuits.experiments.evaluation.judging import (
    AnswerJudge,
    Asked,
    LexiconAnswers,
    ModelAnswers,
    Score,
)
from em_circuits.experiments.evaluation.questions import question_sets
from em_circuits.experiments.evaluation.rates import Cutoffs
from em_circuits.experiments.evaluation.run import Evaluation, evaluate
from em_circuits.experiments.evaluation.settings import EvaluationSettings, Steering

__all__ = [
    "AnswerJudge",
    "Asked",
    "Cutoffs",
    "Evaluation",
    "EvaluationSettings",
    "LexiconAnswers",
    "ModelAnswers",
    "Score",
    "Steering",
    "evaluate",
    "question_sets",
]
