"""Agreement coefficients with bootstrap intervals: percent, kappa, AC1, alpha.

Ratings are a row per item and a column per rater, None where a rater gave none. Over the items
with at least two ratings, with p_o the share of agreeing pairs of ratings:

    percent = p_o
    kappa   = (p_o - p_e) / (1 - p_e),  p_e from each rater's own shares      (Cohen 1960)
    AC1     = the same with p_e = sum_k pi_k (1 - pi_k) / (q - 1)             (Gwet 2008)
    alpha   = 1 - D_o / D_e over the coincidence matrix, nominal              (Krippendorff 2011)

q is the size of the label scale, used or not; pi_k the mean share of category k over every item
with a rating, those with a single one too (Gwet 2014, as irrCAC's `gwet.ac1.raw`): agreement needs
two ratings, how common a label is shows in one. With more than two raters kappa is the mean over
the pairs of raters (Light 1971). Kappa falls far below raw
agreement where one label dominates, AC1 does not: report them together. A coefficient that is
0 / 0, as kappa and alpha are where only one label was ever given, is None.

Intervals are percentile bootstraps over items, or over groups of items: tokens of one prompt are
not independent. Groups in which nothing has two ratings are drawn apart from the others, so that
every draw has as many of either as the data.

    rater_agreement([("evil", "evil"), ("safe", "unsure")], ("evil", "safe", "unsure")).kappa.value

Sources: Cohen, Educ. Psychol. Meas. 20 (1960) 37; Gwet, Br. J. Math. Stat. Psychol. 61 (2008) 29;
Gwet, Handbook of Inter-Rater Reliability (4th ed. 2014); Krippendorff, "Computing Krippendorff's
Alpha-Reliability" (2011); Light, Psychol. Bull. 76 (1971).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from pivotal_tokens.schema import Frozen

Ratings = Sequence[Sequence[str | None]]
Array = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int_]

_ZERO = 1e-12  # a denominator below it is 0
_CONFIDENCE = 0.95  # of the percentile intervals


class Estimate(Frozen):
    """A coefficient with its bootstrap interval; None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None


class RaterAgreement(Frozen):
    """Four answers to one question, over the same items."""

    raters: int
    items: int  # with at least two ratings
    groups: int  # with such an item; what the bootstrap draws: prompts, say
    percent: Estimate
    kappa: Estimate
    ac1: Estimate
    alpha: Estimate
    confidence: float
    resamples: int


def rater_agreement(
    ratings: Ratings,
    categories: Sequence[str],
    *,
    groups: Sequence[Hashable] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> RaterAgreement:
    """All four coefficients with bootstrap intervals.

    Args:
        ratings: A row per item, a column per rater, None where there is no rating.
        categories: The whole label scale, at least two.
        groups: Of each item, what it is drawn with (its prompt); by default items are drawn alone.
        resamples: Bootstrap draws; 0 for no intervals.

    Raises:
        ValueError: If rows differ in length, or a rating is not in `categories`.
    """
    codes = _codes(ratings, categories)
    names: Sequence[Hashable] = range(len(ratings)) if groups is None else groups
    if len(names) != len(ratings):
        raise ValueError(f"{len(ratings)} items, but groups for {len(names)}")
    places = {name: i for i, name in enumerate(dict.fromkeys(names))}
    numbers = np.array([places[name] for name in names], dtype=int)
    return coded_agreement(codes, len(categories), numbers, resamples=resamples, seed=seed)


def coded_agreement(
    codes: Codes, categories: int, groups: Codes, *, resamples: int = 2000, seed: int = 0
) -> RaterAgreement:
    """All four coefficients with bootstrap intervals, of ratings as numbers.

    Args:
        codes: [item, rater] number of a category, -1 where there is no rating.
        categories: How long the label scale is.
        groups: [item] number of what it is drawn with.
        resamples: Bootstrap draws; 0 for no intervals.
    """
    layout, table = _sums(codes, max(categories, 1))
    numbers, place = np.unique(groups, return_inverse=True)
    by_group = np.zeros((len(numbers), table.shape[1]))
    for column, terms in enumerate(table.T):
        by_group[:, column] = np.bincount(place, weights=terms, minlength=len(numbers))
    _, several, rated, *_ = layout.parts(by_group)
    paired, single = several[:, 0] > 0, (several[:, 0] == 0) & (rated[:, 0] > 0)
    point = _coefficients(by_group.sum(axis=0, keepdims=True), layout)[:, 0]
    draws = None
    if resamples and paired.any():
        drawn = _draws((by_group[paired], by_group[single]), resamples, seed)
        draws = _coefficients(drawn, layout)
    percent, kappa, ac1, alpha = (
        _estimate(point[i], None if draws is None else draws[i]) for i in range(4)
    )
    return RaterAgreement(
        raters=layout.raters,
        items=int(several.sum()),
        groups=int(paired.sum()),
        percent=percent,
        kappa=kappa,
        ac1=ac1,
        alpha=alpha,
        confidence=_CONFIDENCE,
        resamples=resamples,
    )


@dataclass(frozen=True)
class _Layout:
    """Columns of the table of sums: agree, pairable, rated, shares, paired, matching, tables."""

    raters: int
    q: int

    @property
    def pairs(self) -> int:
        return self.raters * (self.raters - 1) // 2

    def parts(self, sums: Array) -> list[Array]:
        q = self.q
        sizes = [1, 1, 1, q, q, 1, self.pairs * q * q]
        return np.split(sums, np.cumsum(sizes)[:-1], axis=1)


def _codes(ratings: Ratings, categories: Sequence[str]) -> Codes:
    """[item, rater] number of a category, -1 where there is no rating."""
    place = {name: i for i, name in enumerate(categories)}
    if len({len(row) for row in ratings}) > 1:
        raise ValueError("every item needs a place for every rater: None where there is no rating")
    if unknown := {one for row in ratings for one in row if one is not None} - place.keys():
        raise ValueError(f"ratings {sorted(unknown)} are not among the categories {categories}")
    numbers = [[-1 if one is None else place[one] for one in row] for row in ratings]
    return np.array(numbers, dtype=int).reshape(len(ratings), len(ratings[0]) if ratings else 2)


def _sums(codes: Codes, q: int) -> tuple[_Layout, Array]:
    """Each item's terms, one row per item, of the sums behind every coefficient."""
    raters = codes.shape[1]
    counts = (codes[:, :, None] == np.arange(q)).sum(axis=1).astype(float)
    rated = counts.sum(axis=1, keepdims=True)
    pairable = (rated >= 2).astype(float)
    agreeing = (counts * (counts - 1)).sum(axis=1, keepdims=True)
    others = np.maximum(rated - 1, 1)
    columns = [
        pairable * agreeing / (np.maximum(rated, 1) * others),
        pairable,
        (rated > 0).astype(float),
        counts / np.maximum(rated, 1),
        pairable * counts,
        pairable * agreeing / others,
        *(_confusion(codes[:, a], codes[:, b], q) for a, b in combinations(range(raters), 2)),
    ]
    return _Layout(raters, q), np.concatenate(columns, axis=1)


def _confusion(one: Codes, other: Codes, q: int) -> Array:
    both = (one >= 0) & (other >= 0)
    return ((one * q + other)[:, None] == np.arange(q * q)) * both[:, None].astype(float)


def _coefficients(sums: Array, layout: _Layout) -> Array:
    """[percent, kappa, ac1, alpha] of each row of sums; NaN where not defined."""
    agree, pairable, rated, shares, paired, matching, tables = layout.parts(sums)
    observed = _ratio(agree[:, 0], pairable[:, 0])
    pi = shares / np.maximum(rated, 1)
    chance = (pi * (1 - pi)).sum(axis=1) / max(layout.q - 1, 1)
    n = paired.sum(axis=1)
    disagree_observed = _ratio(n - matching[:, 0], n)
    disagree_chance = _ratio(n**2 - (paired**2).sum(axis=1), n * (n - 1))
    return np.stack(
        [
            observed,
            _kappa(tables.reshape(len(sums), layout.pairs, layout.q, layout.q)),
            _ratio(observed - chance, 1 - chance),
            1 - _ratio(disagree_observed, disagree_chance),
        ]
    )


def _kappa(tables: Array) -> Array:
    """Mean over the pairs of raters that have a kappa."""
    n = tables.sum(axis=(2, 3))
    agree = _ratio(np.einsum("bpkk->bp", tables), n)
    chance = _ratio((tables.sum(axis=2) * tables.sum(axis=3)).sum(axis=2), n**2)
    each = _ratio(agree - chance, 1 - chance)
    known = ~np.isnan(each)
    return _ratio(np.where(known, each, 0).sum(axis=1), known.sum(axis=1).astype(float))


def _ratio(above: Array, below: Array) -> Array:
    known = np.abs(below) > _ZERO
    return np.where(known, above, np.nan) / np.where(known, below, 1)


def _draws(strata: Sequence[Array], resamples: int, seed: int) -> Array:
    """Sums of bootstrap samples: from each stratum as many groups as it has."""
    random = np.random.default_rng(seed)
    total = np.zeros((resamples, strata[0].shape[1]))
    for by_group in strata:
        if groups := len(by_group):
            for sums in total:  # one draw's weights at a time: a matrix of all takes gigabytes
                times = np.bincount(random.integers(groups, size=groups), minlength=groups)
                sums += times @ by_group
    return total


def _estimate(value: float, draws: Array | None) -> Estimate:
    if np.isnan(value):
        return Estimate(value=None, low=None, high=None)
    known = None if draws is None else draws[~np.isnan(draws)]
    if known is None or not known.size:
        return Estimate(value=float(value), low=None, high=None)
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return Estimate(value=float(value), low=float(low), high=float(high))
