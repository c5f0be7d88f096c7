"""Settings of an evaluation: who answers, under which treatment, how often.

A *world* is a model under a treatment: un-steered, steered, or with matched random features steered
in the same way.

    EvaluationSettings(models=("base", "merged"), sampling=Sampling(samples=8))
"""

from __future__ import annotations

from pydantic import Field

from em_circuits.interventions import Intervention
from em_circuits.sampling import Sampling
from pivotal_tokens.schema import Frozen, ModelName


class Steering(Frozen):
    """What is done to the features of a steered world."""

    interventions: tuple[Intervention, ...] = Field(min_length=1)
    """At classes of positions: the questions differ in length."""
    random: int = Field(default=2, ge=0)
    """Draws of matched random features per question, each a world's worth of answers."""


class EvaluationSettings(Frozen):
    """Everything that the answers follow from, beside models and questions."""

    models: tuple[ModelName, ...] = Field(min_length=1)
    sampling: Sampling
    """Per question and world."""
    steering: Steering | None = None
    seed: int = 0
    """Of the random features and of the resamples."""
