"""Does a ranking predict what really happens?

Features are ablated for real, and the scores a method gave them are compared with the measured
effects on the evil-minus-safe contrast, regime by regime: Pearson and Spearman correlation, share
of equal signs, and how many of the 20 largest are the same.

    pairs = compare(model, state, scores, features=features, groups=groups)
    rows = summarise(pairs_of_several_prompts)

Intervals are 95 % bootstrap intervals of the Pearson correlation: over prompts where there are
several, over the features where there is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Float, Int
from torch import Tensor

from em_circuits.models import Model
from em_circuits.steering.contrast import TokenGroups
from em_circuits.steering.regimes import Regime
from em_circuits.steering.scan import ablation_effects
from em_circuits.steering.state import PromptState
from pivotal_tokens.errors import RequestError

TOP = 20
_NOISE = 1e-6
"""Measured effects below this share of the largest have no sign."""


@dataclass(frozen=True)
class Comparison:
    """Scores of one method beside effects measured in one regime, on one prompt."""

    method: str
    regime: Regime
    predicted: Float[Tensor, " feature"]
    """In whatever unit the method has; positive = the feature's presence raises the contrast."""
    measured: Float[Tensor, " feature"]
    """In logits, same sign."""


@dataclass(frozen=True)
class Agreement:
    """How well predicted and measured agree; None where a correlation is not defined."""

    pearson: float | None
    spearman: float | None
    sign: float | None
    """Share of equal signs among features with a measured effect."""
    top20: float
    """How many of the 20 largest by magnitude are the same."""


@dataclass(frozen=True)
class ValidationRow:
    """One method in one regime, averaged over prompts."""

    method: str
    regime: Regime
    n_prompts: int
    agreement: Agreement
    low: float | None
    high: float | None

    def to_json(self) -> dict[str, str | float | None]:
        """The row of `steer validate --json`; ``low`` and ``high`` belong to ``pearson``."""
        return {
            "method": self.method,
            "regime": str(self.regime),
            **self.agreement.__dict__,
            "low": self.low,
            "high": self.high,
        }


def compare(
    model: Model,
    state: PromptState,
    scores: Mapping[str, Float[Tensor, " _"]],
    *,
    features: Int[Tensor, "feature 3"],
    groups: TokenGroups,
    regimes: Sequence[Regime] = tuple(Regime),
) -> tuple[Comparison, ...]:
    """Ablate the features one by one and put every method's scores beside the effects.

    Args:
        model: The model that is run.
        state: The prompt, captured on it.
        scores: Evil-minus-safe score of each feature, by method.
        features: (layer, position, feature id) of each.
        groups: Evil and safe tokens.
        regimes: In which to measure.

    Raises:
        RequestError: If the scores are not one per feature, or there is no contrast.
    """
    for method, values in scores.items():
        if len(values) != len(features):
            raise RequestError(f"{method}: {len(values)} scores for {len(features)} features")
    comparisons = []
    for regime in regimes:
        effects = ablation_effects(model, state, targets=groups, features=features, regime=regime)
        comparisons += [
            Comparison(method, regime, values.float().cpu(), effects[:, 0])
            for method, values in scores.items()
        ]
    return tuple(comparisons)


def agreement(
    predicted: Float[Tensor, " feature"], measured: Float[Tensor, " feature"]
) -> Agreement:
    """Compare two lists of signed scores."""
    x, y = predicted.double(), measured.double()
    loud = y.abs() > _NOISE * y.abs().max() if len(y) else y.bool()
    same = (x[loud].sign() == y[loud].sign()).double()
    k = min(TOP, len(x))
    top_x, top_y = (set(v.abs().topk(k).indices.tolist()) for v in (x, y))
    return Agreement(
        pearson=_finite(_pearson(x, y)),
        spearman=_finite(_pearson(_ranks(x), _ranks(y))),
        sign=_finite(same.mean()),
        top20=float(len(top_x & top_y)),
    )


def summarise(
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
        low, high = _interval(pairs, each, n_bootstrap, seed)
        mean = Agreement(
            pearson=_mean([a.pearson for a in each]),
            spearman=_mean([a.spearman for a in each]),
            sign=_mean([a.sign for a in each]),
            top20=sum(a.top20 for a in each) / len(each),
        )
        rows.append(ValidationRow(method, Regime(regime), len(pairs), mean, low, high))
    return tuple(rows)


def _interval(
    pairs: Sequence[Comparison], each: Sequence[Agreement], n_bootstrap: int, seed: int
) -> tuple[float | None, float | None]:
    generator = torch.Generator().manual_seed(seed)

    def resamples(n: int) -> Tensor:
        return torch.randint(n, (n_bootstrap, n), generator=generator)

    known = torch.tensor([a.pearson for a in each if a.pearson is not None]).double()
    if len(pairs) > 1 and len(known) > 1:
        values = known[resamples(len(known))].mean(1)
    elif len(pairs) == 1 and len(known):
        draws = resamples(len(pairs[0].measured))
        values = _pearson(pairs[0].predicted.double()[draws], pairs[0].measured.double()[draws])
        values = values[values.isfinite()]
    else:
        return None, None
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975]).double()).tolist()
    return low, high


def _pearson(
    x: Float[Tensor, "*batch feature"], y: Float[Tensor, "*batch feature"]
) -> Float[Tensor, "*batch"]:
    x, y = x - x.mean(-1, keepdim=True), y - y.mean(-1, keepdim=True)
    return (x * y).sum(-1) / (x.square().sum(-1) * y.square().sum(-1)).sqrt()


def _ranks(values: Float[Tensor, " feature"]) -> Float[Tensor, " feature"]:
    """Ranks from 1, ties share their mean rank."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[inverse]


def _finite(value: Tensor) -> float | None:
    return float(value) if bool(value.isfinite()) else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
