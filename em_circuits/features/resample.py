"""How sure is a mean over prompts, and could labels given by chance have made it?

Interval: prompts are drawn with replacement, the same draws for every feature, and the mean is
taken over those in which the feature's effect is known; the middle 95 % of draws (percentile
bootstrap; too narrow below about ten prompts).

Test: within each prompt the evil and safe labels are permuted over its tokens, which keeps every
score, prompt and number of labels and breaks only their connection. Two-sided,

    p = (1 + #{|mean under a permutation| >= |mean|}) / (1 + permutations)

or the exact share, when there are no more distinct labellings than permutations asked for.

    permuted = permute_labels([block.weights for block in blocks], draws=9999, seed=0)
    p = permutation_p(rows, permuted, weights)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

_ELEMENTS = 1 << 22
"""Most elements of one intermediate matrix, so that memory does not grow with features."""
_TIE = 1e-9
"""Sums of the same numbers in another order are equal up to this share."""


@dataclass(frozen=True, eq=False)
class PermutedLabels:
    """Label weights of every permutation; the prompts' tokens side by side."""

    weights: Float64[Tensor, "permutation row"]
    exact: bool
    """These are all distinct labellings, the real one included."""


def bootstrap_interval(
    values: Float64[Tensor, "prompt key"],
    known: Bool[Tensor, "prompt key"],
    *,
    draws: int,
    seed: int,
    level: float = 0.95,
) -> tuple[Float64[Tensor, " key"], Float64[Tensor, " key"]]:
    """Interval of each column's mean over its known prompts; NaN below two of them.

    Args:
        values: 0 where unknown.
        known: Which values count.
        draws: Resamples of prompts.
        seed: Of the resamples.
        level: Share of resamples inside.
    """
    n_prompts, n_keys = values.shape
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(n_prompts, (draws, n_prompts), generator=generator)
    times = torch.zeros(draws, n_prompts, dtype=torch.float64)
    times.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    interval = torch.full((2, n_keys), math.nan, dtype=torch.float64)
    for chunk in torch.arange(n_keys).split(max(1, _ELEMENTS // draws)):
        counts = times @ known[:, chunk].double()
        means = (times @ (values[:, chunk] * known[:, chunk])) / counts
        interval[:, chunk] = torch.nanquantile(means, ends, dim=0)
    interval[:, known.sum(0) < 2] = math.nan
    return interval[0], interval[1]


def permute_labels(
    weights: Sequence[Float64[Tensor, " _"]], *, draws: int, seed: int
) -> PermutedLabels:
    """Permute each prompt's labels over its tokens.

    Args:
        weights: Per prompt, of each evil (positive) and safe (negative) token.
        draws: How many; all distinct labellings instead, where they are no more.
        seed: Of the permutations.
    """
    options = [math.comb(len(w), int((w > 0).sum())) for w in weights]
    if math.prod(options) <= draws:
        return PermutedLabels(_every_labelling(weights, options), exact=True)
    generator = torch.Generator().manual_seed(seed)
    parts = [w[torch.rand(draws, len(w), generator=generator).argsort(1)] for w in weights]
    return PermutedLabels(torch.cat(parts, 1), exact=False)


def permutation_p(
    rows: Float64[Tensor, "row key"], permuted: PermutedLabels, weights: Float64[Tensor, " row"]
) -> Float64[Tensor, " key"]:
    """Two-sided p-value of every key's sum (so mean) of contrasts over prompts.

    Args:
        rows: Token scores, all prompts' tokens below one another.
        permuted: Of the labels.
        weights: The real labels'.
    """
    real = (weights @ rows).abs() * (1 - _TIE)
    reached = torch.zeros(rows.shape[1], dtype=torch.float64)
    n = len(permuted.weights)
    for chunk in torch.arange(rows.shape[1]).split(max(1, _ELEMENTS // n)):
        sums = (permuted.weights @ rows[:, chunk]).abs()
        reached[chunk] = (sums >= real[chunk]).sum(0).double()
    return reached / n if permuted.exact else (reached + 1) / (n + 1)


def _every_labelling(
    weights: Sequence[Float64[Tensor, " _"]], options: Sequence[int]
) -> Float64[Tensor, "permutation row"]:
    """The product over prompts of every choice of evil tokens."""
    numbers, parts = torch.arange(math.prod(options)), []
    for w, n in zip(weights, options, strict=True):
        evil = list(itertools.combinations(range(len(w)), int((w > 0).sum())))
        labellings = w.min().repeat(n, len(w))
        labellings.scatter_(1, torch.tensor(evil), w.max().repeat(n, len(evil[0])))
        parts.append(labellings[numbers % n])
        numbers = numbers // n
    return torch.cat(parts, 1)
