"""How far apart are a feature's scores on evil and on safe tokens, beside their spread?

    t  = (mean_e - mean_s) / sqrt(var_e/n_e + var_s/n_s)                    Welch (1947)
    df = (var_e/n_e + var_s/n_s)^2
         / ((var_e/n_e)^2/(n_e-1) + (var_s/n_s)^2/(n_s-1))                  Satterthwaite (1946)
    g  = J(n_e+n_s-2) * (mean_e - mean_s) / sd_pooled                       Hedges (1981)

The tokens of one prompt are no sample of independent draws, so all three describe and none tests:
there is no p-value here. Where a spread is not defined or zero they are NaN.

    spread = standardised(scores, evil, safe)
    spread.t, spread.df, spread.g
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

ROUNDING = 1e-6
"""A spread below this share of the largest score is float32 rounding, that is zero."""


@dataclass(frozen=True, eq=False)
class Standardised:
    """Evil minus safe in units of its spread, per feature; NaN where there is no spread."""

    t: Float[Tensor, " feature"]
    df: Float[Tensor, " feature"]
    g: Float[Tensor, " feature"]


def standardised(
    scores: Float[Tensor, "target feature"],
    evil: Bool[Tensor, " target"],
    safe: Bool[Tensor, " target"],
) -> Standardised:
    """Welch's t with its degrees of freedom, and Hedges' g, of every feature.

    Args:
        scores: In any unit.
        evil: Targets of the one side.
        safe: Targets of the other; NaN throughout unless both sides have two targets.
    """
    sides = [scores[side].double() for side in (evil, safe)]
    counts = [len(side) for side in sides]
    if min(counts) < 2:
        nothing = torch.full(scores.shape[1:], math.nan, dtype=torch.float64)
        return Standardised(nothing, nothing, nothing)
    difference = sides[0].mean(0) - sides[1].mean(0)
    floor = ROUNDING * torch.cat(sides).abs().amax(0)
    variances = [torch.where(s.std(0) > floor, s.var(0), 0.0) for s in sides]
    parts = [v / n for v, n in zip(variances, counts, strict=True)]
    squared_error = parts[0] + parts[1]
    freedom = squared_error.square() / sum(
        p.square() / (n - 1) for p, n in zip(parts, counts, strict=True)
    )
    m = sum(counts) - 2
    pooled = sum(v * (n - 1) for v, n in zip(variances, counts, strict=True)) / m
    spread = squared_error > 0

    def where_spread(values: Tensor) -> Tensor:
        return torch.where(spread, values, math.nan)

    return Standardised(
        t=where_spread(difference / squared_error.sqrt()),
        df=where_spread(freedom),
        g=where_spread(hedges_correction(m) * difference / torch.as_tensor(pooled).sqrt()),
    )


def hedges_correction(df: int) -> float:
    """J(df), which takes the small-sample bias out of Cohen's d (Hedges 1981, eq. 6e)."""
    return math.exp(math.lgamma(df / 2) - math.lgamma((df - 1) / 2)) / math.sqrt(df / 2)


def benjamini_hochberg(p: Float[Tensor, " test"]) -> Float[Tensor, " test"]:
    """Adjusted p-values: the least false discovery rate at which each test is a discovery.

    q of the i-th smallest p of m is the minimum over j >= i of p_(j) m / j (Benjamini and
    Hochberg 1995).
    """
    m = len(p)
    order = p.argsort(descending=True)
    raised = p[order] * m / torch.arange(m, 0, -1, dtype=p.dtype)
    q = torch.empty_like(p)
    if m:
        q[order] = raised.cummin(0).values.clamp(max=1.0)
    return q
