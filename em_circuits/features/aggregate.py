"""Which features push towards evil over many prompts, and how sure is that?

Per key of `em_circuits.features.keyed`, over the prompts in which its effect is known (selected,
or inactive and so 0): mean, standard deviation, bootstrap interval, share of active prompts whose
sign is the mean's; per key selected in at least `min_prompts`: a test that permutes the labels
within each prompt, adjusted over these keys by Benjamini and Hochberg; and whether the top k stay
when one prompt is left out. Keys known in fewer than `min_prompts` come last, whatever their mean.

    summary = aggregate(KeyedScores.of(blocks))
    summary.top(10)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int64
from pydantic import Field
from torch import Tensor

from em_circuits.features.keyed import KeyedScores
from em_circuits.statistics import (
    benjamini_hochberg,
    bootstrap_interval,
    permutation_p,
    permute_labels,
)
from pivotal_tokens.schema import Frozen

FORMULA = 1
"""Raise it when a formula of this package or of influence changes: kept tables are made again."""


class AggregateSettings(Frozen):
    """How prompts are summed up."""

    min_prompts: int = Field(default=5, ge=1)
    """Prompts in which a key must be selected to be tested, and known to be ranked."""
    top_k: int = Field(default=20, ge=1)
    """Most positive keys whose stability is asked for."""
    bootstrap: int = Field(default=2000, ge=1)
    """Resamples of prompts."""
    permutations: int = Field(default=9999, ge=1)
    """Of the labels; all distinct labellings, where they are no more."""
    seed: int = 0
    """Of both."""


DEFAULTS = AggregateSettings()


@dataclass(frozen=True, eq=False)
class Summary:
    """One line per key; NaN where a figure is not defined.

    Attributes:
        layer: Of the feature.
        feature: Its id.
        offset: Position from the end, 0 = last; 0 throughout without positions.
        selected: Prompts with a score.
        partial: Those of them in which further positions have none.
        not_selected: Prompts in which it fires and its effect is unknown; left out.
        inactive: Prompts in which its effect is exactly 0.
        n: selected + inactive, over which the next four are taken.
        mean: Of the contrast, in the method's unit.
        sd: Sample standard deviation over prompts.
        low: 2.5 % of the bootstrap over prompts.
        high: 97.5 %.
        mean_selected: Mean over the selected prompts alone.
        same_sign: Share of the non-zero contrasts with the sign of the mean.
        p: Of the label permutation; NaN if not tested.
        q: p adjusted over all tested keys.
        stable: Share of the leave-one-out rankings with it in the top k.
    """

    layer: Int64[Tensor, " key"]
    feature: Int64[Tensor, " key"]
    offset: Int64[Tensor, " key"]
    selected: Int64[Tensor, " key"]
    partial: Int64[Tensor, " key"]
    not_selected: Int64[Tensor, " key"]
    inactive: Int64[Tensor, " key"]
    n: Int64[Tensor, " key"]
    mean: Float64[Tensor, " key"]
    sd: Float64[Tensor, " key"]
    low: Float64[Tensor, " key"]
    high: Float64[Tensor, " key"]
    mean_selected: Float64[Tensor, " key"]
    same_sign: Float64[Tensor, " key"]
    p: Float64[Tensor, " key"]
    q: Float64[Tensor, " key"]
    stable: Float64[Tensor, " key"]

    def columns(self) -> dict[str, list[Any]]:
        """Every column as a list, None for NaN."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}


@dataclass(frozen=True)
class Stability:
    """How much of the top k remains when one prompt is left out; None with a single prompt."""

    k: int
    mean_overlap: float | None
    """Share of the top k, mean over the prompts left out."""
    least_overlap: float | None


@dataclass(frozen=True, eq=False)
class Aggregate:
    """What several prompts say together, keys by their mean, most positive first.

    Keys known in fewer than `min_prompts` prompts follow after all others.
    """

    summary: Summary
    n_tested: int
    n_permutations: int
    exact: bool
    """These are all distinct labellings."""
    stability: Stability


def aggregate(
    keyed: KeyedScores, settings: AggregateSettings = DEFAULTS, *, test: bool = True
) -> Aggregate:
    """Sum up prompts by key.

    Args:
        keyed: Of one method and model.
        settings: Least prompts, draws, seed.
        test: Permute labels; pointless where rows are no tokens (activations).
    """
    counts, sums = _counts(keyed), _sums(keyed)
    n = counts["selected"] + counts["inactive"]
    mean = sums.total / n
    low, high = _intervals(keyed, counts["selected"], settings)
    tested = (counts["selected"] >= settings.min_prompts).nonzero()[:, 0]
    p, q = (torch.full((len(keyed),), math.nan, dtype=torch.float64) for _ in range(2))
    n_permutations, exact = 0, False
    if test and len(tested):
        weights = [block.weights for block in keyed.blocks]
        permuted = permute_labels(weights, draws=settings.permutations, seed=settings.seed)
        n_permutations, exact = len(permuted.weights), permuted.exact
        p[tested] = permutation_p(keyed.rows(tested), permuted, torch.cat(weights))
        q[tested] = benjamini_hochberg(p[tested])
    stability, stable = _leave_one_out(keyed, sums.total, n, settings)
    layer, feature, offset = keyed.coordinates.unbind(1)
    columns = {
        **{"layer": layer, "feature": feature, "offset": offset, **counts, "n": n},
        **{"mean": mean, "sd": sums.sd(n), "low": low, "high": high},
        "mean_selected": sums.total / counts["selected"],
        "same_sign": torch.where(mean > 0, sums.positive, sums.negative)
        / (sums.positive + sums.negative),
        **{"p": p, "q": q, "stable": stable},
    }
    order = _order(mean, n >= _least(keyed, settings))
    summary = Summary(**{name: column[order] for name, column in columns.items()})
    return Aggregate(summary, len(tested) if test else 0, n_permutations, exact, stability)


@dataclass(frozen=True, eq=False)
class _Sums:
    total: Float64[Tensor, " key"]
    squares: Float64[Tensor, " key"]
    """Of the distance from the mean, over the selected prompts."""
    positive: Float64[Tensor, " key"]
    negative: Float64[Tensor, " key"]
    selected: Int64[Tensor, " key"]

    def sd(self, n: Int64[Tensor, " key"]) -> Float64[Tensor, " key"]:
        """Sample standard deviation; the inactive prompts' distance is the mean itself."""
        mean = self.total / n
        squares = self.squares + (n - self.selected) * mean.square()
        return torch.where(n > 1, (squares / (n - 1)).sqrt(), math.nan)


def _counts(keyed: KeyedScores) -> dict[str, Tensor]:
    selected, partial, unknown, absent = torch.zeros(4, len(keyed), dtype=torch.int64)
    for block in keyed.blocks:
        index = keyed.place(block.codes)[1]
        selected[index] += 1
        partial[index] += block.partial.long()
        unknown[keyed.place(block.unknown)[1]] += 1
        absent += (~keyed.known(block)).long()
    return {
        "selected": selected,
        "partial": partial,
        "not_selected": unknown,
        "inactive": len(keyed.blocks) - selected - absent,
    }


def _sums(keyed: KeyedScores) -> _Sums:
    total, squares, positive, negative = torch.zeros(4, len(keyed), dtype=torch.float64)
    known = torch.zeros(len(keyed), dtype=torch.int64)
    selected = torch.zeros(len(keyed), dtype=torch.int64)
    for block in keyed.blocks:
        index = keyed.place(block.codes)[1]
        total[index] += block.contrast
        positive[index] += (block.contrast > 0).double()
        negative[index] += (block.contrast < 0).double()
        selected[index] += 1
        known += keyed.known(block).long()
    mean = total / known
    for block in keyed.blocks:
        index = keyed.place(block.codes)[1]
        squares[index] += (block.contrast - mean[index]).square()
    return _Sums(total, squares, positive, negative, selected)


def _intervals(
    keyed: KeyedScores, selected: Int64[Tensor, " key"], settings: AggregateSettings
) -> tuple[Float64[Tensor, " key"], Float64[Tensor, " key"]]:
    """Bootstrap intervals of the keys that are selected more than once; NaN for the rest."""
    low, high = torch.full((2, len(keyed)), math.nan, dtype=torch.float64)
    several = (selected > 1).nonzero()[:, 0]
    if len(several):
        values = torch.stack([keyed.values(block)[several] for block in keyed.blocks])
        known: Bool[Tensor, "prompt key"] = torch.stack(
            [keyed.known(block)[several] for block in keyed.blocks]
        )
        draws = {"draws": settings.bootstrap, "seed": settings.seed}
        low[several], high[several] = bootstrap_interval(values, known, **draws)
    return low, high


def _leave_one_out(
    keyed: KeyedScores,
    total: Float64[Tensor, " key"],
    n: Int64[Tensor, " key"],
    settings: AggregateSettings,
) -> tuple[Stability, Float64[Tensor, " key"]]:
    """Overlap of the top k with those without one prompt, and how often each key is in these."""
    k, least = min(settings.top_k, len(keyed)), _least(keyed, settings)
    nothing = torch.full((len(keyed),), math.nan, dtype=torch.float64)
    if len(keyed.blocks) < 2 or k == 0:
        return Stability(k, None, None), nothing
    whole = set(_order(total / n, n >= least)[:k].tolist())
    times, overlaps = torch.zeros(len(keyed), dtype=torch.float64), []
    for block in keyed.blocks:
        rest = n - keyed.known(block).long()
        mean = torch.where(rest > 0, (total - keyed.values(block)) / rest, -math.inf)
        top = _order(mean, rest >= min(least, len(keyed.blocks) - 1))[:k]
        times[top] += 1
        overlaps.append(len(whole & set(top.tolist())) / k)
    share = times / len(keyed.blocks)
    return Stability(k, sum(overlaps) / len(overlaps), min(overlaps)), share


def _least(keyed: KeyedScores, settings: AggregateSettings) -> int:
    """Prompts in which a key must be known to be ranked by its mean."""
    return min(settings.min_prompts, len(keyed.blocks))


def _order(mean: Float64[Tensor, " key"], ranked: Bool[Tensor, " key"]) -> Int64[Tensor, " key"]:
    """Ranked keys by their mean, most positive first, then the others."""
    order = mean.argsort(descending=True, stable=True)
    return torch.cat([order[ranked[order]], order[~ranked[order]]])


def _plain(column: Tensor) -> list[Any]:
    if not column.is_floating_point():
        return list(column.tolist())
    return [None if math.isnan(value) else value for value in column.tolist()]
