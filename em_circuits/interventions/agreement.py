"""How well do predicted and measured effects agree, and how sure is that?

Pearson and Spearman correlation, share of equal signs among features with an effect, and how many
of the 20 largest are the same; each with a 95 % percentile bootstrap interval: over prompts where
there are several, over features where there is one (Spearman then on the ranks of all features).

    agreement(predicted, measured).pearson
    intervals([(predicted, measured)], n_bootstrap=1000, seed=0)["spearman"]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

TOP = 20
STATISTICS = ("pearson", "spearman", "sign", "top20")
_NOISE = 1e-6
"""Measured effects below this share of the largest have no sign."""
_CHUNK = 1 << 21
"""Most numbers of one batch of resamples."""

Interval = tuple[float | None, float | None]
"""2.5 % and 97.5 % of the resamples; None where a statistic is not defined."""


@dataclass(frozen=True)
class Agreement:
    """How well predicted and measured agree; None where a correlation is not defined."""

    pearson: float | None
    spearman: float | None
    sign: float | None
    """Share of equal signs among features with a measured effect."""
    top20: float
    """How many of the 20 largest by magnitude are the same."""


def agreement(
    predicted: Float[Tensor, " feature"], measured: Float[Tensor, " feature"]
) -> Agreement:
    """Compare two lists of signed scores."""
    found = _statistics(*_columns(predicted, measured))
    return Agreement(
        pearson=_finite(found["pearson"]),
        spearman=_finite(found["spearman"]),
        sign=_finite(found["sign"]),
        top20=float(found["top20"]),
    )


def intervals(
    pairs: Sequence[tuple[Tensor, Tensor]], *, n_bootstrap: int, seed: int
) -> dict[str, Interval]:
    """Bootstrap interval of every statistic's mean over prompts.

    Args:
        pairs: (predicted, measured) of each prompt.
        n_bootstrap: Resamples.
        seed: Of the resamples.
    """
    generator = torch.Generator().manual_seed(seed)
    if len(pairs) == 1:
        return _over_features(*pairs[0], n_bootstrap=n_bootstrap, generator=generator)
    each = [asdict(agreement(*pair)) for pair in pairs]
    found: dict[str, Interval] = {}
    for name in STATISTICS:
        known = torch.tensor([a[name] for a in each if a[name] is not None]).double()
        draws = torch.randint(max(len(known), 1), (n_bootstrap, len(known)), generator=generator)
        found[name] = _middle(known[draws].mean(1)) if len(known) > 1 else (None, None)
    return found


def _over_features(
    predicted: Tensor, measured: Tensor, *, n_bootstrap: int, generator: torch.Generator
) -> dict[str, Interval]:
    columns = _columns(predicted, measured)
    n = len(predicted)
    if not n:
        return dict.fromkeys(STATISTICS, (None, None))
    parts: dict[str, list[Tensor]] = {name: [] for name in STATISTICS}
    size = max(1, _CHUNK // n)
    for start in range(0, n_bootstrap, size):
        rows = min(size, n_bootstrap - start)
        draws = torch.randint(n, (rows, n), generator=generator)
        for name, values in _statistics(*(column[draws] for column in columns)).items():
            parts[name].append(values)
    return {name: _middle(torch.cat(values)) for name, values in parts.items()}


def _columns(predicted: Tensor, measured: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(predicted, measured, their ranks, which measured effects have a sign)."""
    x, y = predicted.double(), measured.double()
    loud = y.abs() > _NOISE * y.abs().max() if len(y) else y.bool()
    return x, y, _ranks(x), _ranks(y), loud


def _statistics(
    x: Float[Tensor, "*batch feature"],
    y: Float[Tensor, "*batch feature"],
    x_ranks: Float[Tensor, "*batch feature"],
    y_ranks: Float[Tensor, "*batch feature"],
    loud: Bool[Tensor, "*batch feature"],
) -> dict[str, Float[Tensor, "*batch"]]:
    same = ((x.sign() == y.sign()) & loud).sum(-1).double()
    k = min(TOP, x.shape[-1])
    largest = [torch.zeros_like(loud) for _ in range(2)]
    for mask, values in zip(largest, (x, y), strict=True):
        mask.scatter_(-1, values.abs().topk(k, -1).indices, value=True)
    return {
        "pearson": _pearson(x, y),
        "spearman": _pearson(x_ranks, y_ranks),
        "sign": same / loud.sum(-1),
        "top20": (largest[0] & largest[1]).sum(-1).double(),
    }


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


def _middle(values: Float[Tensor, " resample"]) -> Interval:
    values = values[values.isfinite()]
    if not len(values):
        return None, None
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975]).double()).tolist()
    return low, high


def _finite(value: Tensor) -> float | None:
    return float(value) if bool(value.isfinite()) else None
