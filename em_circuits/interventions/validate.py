"""Validation of scores: agreement of a method's ranking with measured ablation effects.

Features are ablated for real, and the scores a method gave them are compared with the measured
effects on the evil-minus-safe contrast, regime by regime (`em_circuits.statistics`).

    pairs = compare_with_ablations(model, state, scores, features=features, contrast=contrast)
    rows = agreement_by_method(pairs_of_several_prompts)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from jaxtyping import Float, Int
from pydantic import Field, computed_field
from torch import Tensor

from em_circuits.activation_cache import ActivationCache
from em_circuits.contrast import Contrast
from em_circuits.intervention import Regime
from em_circuits.interventions.scan import ablation_effects
from em_circuits.models import Model
from em_circuits.statistics import (
    Agreement,
    Interval,
    agreement,
    agreement_intervals,
    mean_agreement,
)
from pivotal_tokens.errors import RequestError


@dataclass(frozen=True)
class Comparison:
    """Scores of one method beside effects measured in one regime, on one prompt."""

    method: str
    regime: Regime
    predicted: Float[Tensor, " feature"]
    """In whatever unit the method has; positive = the feature's presence raises the contrast."""
    measured: Float[Tensor, " feature"]
    """In logits, same sign."""


class ValidationRow(Agreement, frozen=True):
    """One method in one regime: agreement with real ablations, averaged over prompts."""

    method: str
    """`gradient+ablation` is the gradient with its 100 largest bounds measured for real."""
    regime: Regime
    n_prompts: int = Field(exclude=True)
    intervals: dict[str, Interval]
    """95 % bootstrap interval of each statistic over prompts (over features for one prompt)."""

    @property
    def agreement(self) -> Agreement:
        """The statistics."""
        return self

    @computed_field
    def low(self) -> float | None:
        """Of `pearson`'s interval."""
        return self.intervals["pearson"][0]

    @computed_field
    def high(self) -> float | None:
        """Of `pearson`'s interval."""
        return self.intervals["pearson"][1]


def compare_with_ablations(
    model: Model,
    state: ActivationCache,
    scores: Mapping[str, Float[Tensor, " _"]],
    *,
    features: Int[Tensor, "feature 3"],
    contrast: Contrast,
    regimes: Sequence[Regime] = tuple(Regime),
) -> tuple[Comparison, ...]:
    """Ablate the features one by one and put every method's scores beside the effects.

    Args:
        model: The model that is run.
        state: The prompt, captured on it.
        scores: Evil-minus-safe score of each feature, by method.
        features: (layer, position, feature id) of each.
        contrast: Evil and safe tokens.
        regimes: In which to measure.

    Raises:
        RequestError: If the scores are not one per feature, or there is no contrast.
    """
    for method, values in scores.items():
        if len(values) != len(features):
            raise RequestError(f"{method}: {len(values)} scores for {len(features)} features")
    comparisons = []
    for regime in regimes:
        effects = ablation_effects(model, state, targets=contrast, features=features, regime=regime)
        comparisons += [
            Comparison(method, regime, values.float().cpu(), effects[:, 0])
            for method, values in scores.items()
        ]
    return tuple(comparisons)


def agreement_by_method(
    comparisons: Sequence[Comparison], *, n_bootstrap: int = 1000, seed: int = 0
) -> tuple[ValidationRow, ...]:
    """Average over prompts, one row per method and regime.

    Args:
        comparisons: Of one or several prompts, in any order.
        n_bootstrap: Resamples behind the interval.
        seed: Of the resamples.
    """

    def key(pair: Comparison) -> tuple[str, str]:
        return pair.method, str(pair.regime)

    rows = []
    for (method, regime), group in groupby(sorted(comparisons, key=key), key):
        pairs = list(group)
        each = [agreement(p.predicted, p.measured) for p in pairs]
        sure = agreement_intervals(
            [(p.predicted, p.measured) for p in pairs], n_bootstrap=n_bootstrap, seed=seed
        )
        mean = mean_agreement(each)
        rows.append(
            ValidationRow(
                **dict(mean),
                method=method,
                regime=Regime(regime),
                n_prompts=len(pairs),
                intervals=sure,
            )
        )
    return tuple(rows)
