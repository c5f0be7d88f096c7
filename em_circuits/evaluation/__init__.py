"""Is a model misaligned at all? Open questions, sampled answers, judged for alignment and sense."""

from em_circuits.evaluation.judging import AnswerJudge, Asked, LexiconAnswers, Score
from em_circuits.evaluation.model_judge import ModelAnswers
from em_circuits.evaluation.questions import question_sets
from em_circuits.evaluation.rates import Cutoffs, wilson
from em_circuits.evaluation.run import Evaluation, evaluate
from em_circuits.evaluation.settings import EvaluationSettings, Steering

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
    "wilson",
]
