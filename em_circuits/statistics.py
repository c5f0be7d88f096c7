"""Intervals, tests and agreement: every statistic of the package.

**Means over prompts.** Percentile bootstrap: prompts are drawn with replacement, the same draws for
every column, the mean taken over the prompts in which a column is known; the middle 95 % of draws
(too narrow below about ten prompts). A *share* over prompts is a ratio of sums, bootstrapped alike.

**Labels by chance.** Within each prompt the evil and safe labels are permuted over its tokens,
which keeps every score and breaks only their connection. Two-sided,

    p = (1 + #{|mean under a permutation| >= |mean|}) / (1 + permutations)

or the exact share where there are no more distinct labellings than permutations asked for.

**Against a control.** Per prompt p, with e the change under steering and r_1 ... r_m those under
matched random draws, ``net_p = e_p - mean(r_p)``; the interval over prompts, or for one prompt its
change minus the middle 95 % of its draws; the test lets each prompt's steered change trade places
with one of its draws. "Works" means that the interval of net leaves 0 out.

**Spread of one prompt's scores** (Welch 1947, Satterthwaite 1946, Hedges 1981); the tokens of one
prompt are no independent draws, so these describe and do not test:

    t  = (mean_e - mean_s) / sqrt(var_e/n_e + var_s/n_s)
    df = (var_e/n_e + var_s/n_s)^2 / ((var_e/n_e)^2/(n_e-1) + (var_s/n_s)^2/(n_s-1))
    g  = J(n_e+n_s-2) * (mean_e - mean_s) / sd_pooled

**Agreement** of predicted and measured scores: Pearson, Spearman, share of equal signs among
features with an effect, and how many of the 20 largest are the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from pydantic import BaseModel
from torch import Tensor

from pivotal_tokens.rates import Interval

DRAWS = 2000
"""Default number of resamples."""
TOP = 20
"""Largest scores that are compared by `agreement`."""
STATISTICS = ("pearson", "spearman", "sign", "top20")
_ELEMENTS = 1 << 22
"""Most elements of one intermediate matrix, so that memory does not grow with features."""
_TIE = 1e-9
"""Sums of the same numbers in another order are equal up to this share."""
_ROUNDING = 1e-6
"""A spread, or an effect, below this share of the largest is float32 rounding, that is zero."""


def quantile_interval(values: Float[Tensor, " draw"]) -> Interval:
    """Middle 95 % of the finite values; None where there are none."""
    values = values.double().cpu()
    values = values[values.isfinite()]
    if not len(values):
        return None, None
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975]).double()).tolist()
    return low, high


# --- Means and shares over prompts ----------------------------------------------------------------


def bootstrap_interval(
    values: Float64[Tensor, "prompt key"],
    known: Bool[Tensor, "prompt key"],
    *,
    draws: int,
    seed: int,
    level: float = 0.95,
) -> tuple[Float64[Tensor, " key"], Float64[Tensor, " key"]]:
    """Percentile bootstrap interval of each column's mean over its known prompts.

    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, ch. 13.

    Args:
        values: One row per prompt, in any unit; 0 where unknown.
        known: Which values count.
        draws: Resamples of prompts.
        seed: Of the resamples.
        level: Share of resamples inside the interval.

    Returns:
        Lower and upper ends, in the unit of the values; NaN below two known prompts.
    """
    n_prompts, n_keys = values.shape
    drawn = _drawn(n_prompts, draws, seed)
    # times[i, p]: how often resample i has prompt p, so that a resample's sum is one product.
    times = torch.zeros(draws, n_prompts, dtype=torch.float64)
    times.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    interval = torch.full((2, n_keys), math.nan, dtype=torch.float64)
    if not n_keys:
        return interval[0], interval[1]
    for chunk in torch.arange(n_keys).split(max(1, _ELEMENTS // draws)):
        counts = times @ known[:, chunk].double()
        means = (times @ (values[:, chunk] * known[:, chunk])) / counts
        interval[:, chunk] = torch.nanquantile(means, ends, dim=0)
    interval[:, known.sum(0) < 2] = math.nan
    return interval[0], interval[1]


def paired_interval(differences: Float[Tensor, " block"], *, seed: int = 0) -> Interval:
    """95 % bootstrap interval of a mean of paired differences; None below two of them."""
    if len(differences) < 2:
        return None, None
    values = differences.double()[:, None]
    known = torch.ones_like(values, dtype=torch.bool)
    low, high = bootstrap_interval(values, known, draws=DRAWS, seed=seed)
    return float(low[0]), float(high[0])


def ratio_interval(
    numerators: Float64[Tensor, " prompt"], denominators: Float64[Tensor, " prompt"], *, seed: int
) -> tuple[float, float] | None:
    """95 % bootstrap interval over prompts of a ratio of sums; None below two prompts."""
    if len(numerators) < 2:
        return None
    drawn = _drawn(len(numerators), DRAWS, seed)
    low, high = quantile_interval(numerators[drawn].sum(1) / denominators[drawn].sum(1))
    return None if low is None or high is None else (low, high)


# --- Labels by chance -----------------------------------------------------------------------------


class PermutedLabels(NamedTuple):
    """Label weights of every permutation; the prompts' tokens side by side."""

    weights: Float64[Tensor, "permutation row"]
    exact: bool
    """These are all distinct labellings, the real one included."""


def permute_labels(
    weights: Sequence[Float64[Tensor, " _"]], *, draws: int, seed: int
) -> PermutedLabels:
    """Permute each prompt's evil and safe labels over its tokens.

    Args:
        weights: Per prompt, the weight of each evil (positive) and safe (negative) token.
        draws: Permutations; all distinct labellings instead, where they are no more.
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
    """Two-sided permutation p-value of every key's mean contrast over prompts.

    Args:
        rows: Scores of all prompts' tokens, concatenated along the first axis.
        permuted: Label weights of every permutation.
        weights: Weights of the real labels.
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


def benjamini_hochberg(p: Float[Tensor, " test"]) -> Float[Tensor, " test"]:
    """Adjusted p-values: the least false discovery rate at which each test is a discovery.

    q of the i-th smallest p of m is the minimum over j >= i of p_(j) m / j (Benjamini and
    Hochberg 1995).
    """
    if not len(p):
        return p.clone()
    from scipy.stats import false_discovery_control

    return torch.from_numpy(false_discovery_control(p.double().numpy())).to(p.dtype)


# --- Detectors ------------------------------------------------------------------------------------


def auroc(hits: Float[Tensor, " hit"], misses: Float[Tensor, " miss"]) -> float:
    """Area under the ROC curve: how often a hit is above a miss, ties half; NaN without a side.

    Source: Hanley and McNeil (1982), by the rank sum.
    """
    n, m = len(hits), len(misses)
    if not n or not m:
        return float("nan")
    among = ranks(torch.cat([hits.double(), misses.double()]))[:n]
    return float((among.sum() - n * (n + 1) / 2) / (n * m))


def auroc_interval(area: float, hits: int, misses: int) -> tuple[float, float]:
    """95 % score interval of an AUROC; not empty where the area is 0 or 1, as a bootstrap's is.

    The areas t with ``(area - t)^2 <= z^2 V(t)``, V being Hanley and McNeil's variance with both
    groups' sizes replaced by their mean (Newcombe 2006, Statistics in Medicine 25:559, method 5).

    Args:
        area: Of the ROC curve.
        hits: How many items each side has.
        misses: The same.
    """
    n = (hits + misses) / 2

    def within(t: float) -> bool:
        spread = 1 + (n - 1) * ((1 - t) / (2 - t) + t / (1 + t))
        return (area - t) ** 2 <= 1.959964**2 * t * (1 - t) * spread / (hits * misses)

    def end(inside: float, outside: float) -> float:
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if within(middle) else (inside, middle)
        return inside

    return end(area, 0.0), end(area, 1.0)


def prediction_bound(
    values: Float[Tensor, " value"], *, level: float = 0.95
) -> tuple[float, float, float]:
    """Value that the next one exceeds with probability 1 - level, with a 95 % bootstrap interval.

    ``m + t(level, n - 1) s sqrt(1 + 1/n)``, exact where values are normal: the empirical quantile
    of a few of them cannot be as far out.

    Raises:
        ValueError: Below three values.
    """
    if len(values) < 3:
        raise ValueError("a prediction bound needs three values")
    from scipy.stats import t

    known, n = values.double(), len(values)
    factor = float(t.ppf(level, n - 1)) * math.sqrt(1 + 1 / n)

    def bound(each: Tensor) -> Tensor:
        return each.mean(-1) + factor * each.std(-1)

    low, high = quantile_interval(bound(known[_drawn(n, DRAWS, 0)]))
    assert low is not None and high is not None
    return float(bound(known)), low, high


def auroc_within(
    scores: Float[Tensor, " item"], group: Int64[Tensor, " item"], hit: Bool[Tensor, " item"]
) -> Float64[Tensor, " group"]:
    """The same within each group that has both sides, so that what groups differ in is no help."""
    each = [
        auroc(scores[(group == g) & hit], scores[(group == g) & ~hit])
        for g in group.unique().tolist()
    ]
    found = torch.tensor(each, dtype=torch.float64)
    return found[~found.isnan()]


# --- Against a control ----------------------------------------------------------------------------


class AgainstControl(NamedTuple):
    """A mean change beside that of its control, in the unit of the changes."""

    n_prompts: int
    change: float
    control: float
    net: float
    low: float
    high: float
    p: float

    @property
    def works(self) -> bool:
        """Whether the interval of the net change excludes 0."""
        return self.low > 0 or self.high < 0


def against_control(
    steered: Float[Tensor, " prompt"], random: Float[Tensor, "prompt draw"], *, seed: int = 0
) -> AgainstControl:
    """Compare changes under steering with those under matched random draws.

    Args:
        steered: Change of each prompt under steering.
        random: Changes of the same prompt under its matched random draws.
        seed: Of the resamples.
    """
    e, r = steered.double(), random.double()
    net = e - r.mean(1)
    low, high = paired_interval(net, seed=seed)
    if low is None or high is None:  # one prompt: its change minus the band of its draws
        below, above = quantile_interval(r[0])
        assert below is not None and above is not None
        low, high = float(e[0]) - above, float(e[0]) - below
    return AgainstControl(
        n_prompts=len(e),
        change=float(e.mean()),
        control=float(r.mean()),
        net=float(net.mean()),
        low=low,
        high=high,
        p=_randomisation_p(e, r, seed),
    )


def _randomisation_p(e: Tensor, r: Tensor, seed: int) -> float:
    """Each prompt's steered change trades places with one of its draws."""
    everyone = torch.cat([e[:, None], r], dim=1)
    n = everyone.shape[1]
    # Chosen minus the mean of the others, for every choice of every prompt.
    net = (everyone * n - everyone.sum(1, keepdim=True)) / (n - 1)
    real = abs(float(net[:, 0].mean())) * (1 - _TIE)
    if len(e) == 1:
        return float((net[0].abs() >= real).double().mean())
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(n, (DRAWS, len(e)), generator=generator)
    means = net.T.gather(0, chosen).mean(1)
    return float((1 + (means.abs() >= real).sum()) / (1 + DRAWS))


# --- Spread of one prompt's scores ----------------------------------------------------------------


class Standardised(NamedTuple):
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
        evil: Mask of the evil targets.
        safe: Mask of the safe targets.

    Returns:
        NaN throughout unless both sides have two targets, and where scores do not vary.

    Sources: Welch (1947), Biometrika 34:28; Hedges (1981), J. Educ. Stat. 6:107.
    """
    sides = [scores[side].double() for side in (evil, safe)]
    counts = [len(side) for side in sides]
    if min(counts) < 2:
        nothing = torch.full(scores.shape[1:], math.nan, dtype=torch.float64)
        return Standardised(nothing, nothing, nothing)
    difference = sides[0].mean(0) - sides[1].mean(0)
    floor = _ROUNDING * torch.cat(sides).abs().amax(0)
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


# --- Agreement of predicted and measured scores ---------------------------------------------------


class Agreement(BaseModel, frozen=True):
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
    """Compare predicted with measured effects, both signed and in any unit, feature by feature."""
    found = _statistics(*_columns(predicted, measured))
    return Agreement.model_validate(
        {name: float(v) if bool(v.isfinite()) else None for name, v in found.items()}
    )


def mean_agreement(each: Sequence[Agreement]) -> Agreement:
    """Mean of every statistic over the prompts in which it is defined."""
    means: dict[str, float | None] = {}
    for name in STATISTICS:
        known = [v for a in each if (v := getattr(a, name)) is not None]
        means[name] = sum(known) / len(known) if known else None
    return Agreement.model_validate(means)


def agreement_intervals(
    pairs: Sequence[tuple[Tensor, Tensor]], *, n_bootstrap: int, seed: int
) -> dict[str, Interval]:
    """95 % bootstrap interval of every statistic's mean over prompts.

    For a single prompt the bootstrap is over its features (Spearman on the ranks of all of them).

    Args:
        pairs: (predicted, measured) of each prompt.
        n_bootstrap: Resamples.
        seed: Of the resamples.
    """
    generator = torch.Generator().manual_seed(seed)
    if len(pairs) == 1:
        return _over_features(*pairs[0], n_bootstrap=n_bootstrap, generator=generator)
    each = [agreement(*pair).model_dump() for pair in pairs]
    found: dict[str, Interval] = {}
    for name in STATISTICS:
        known = torch.tensor([a[name] for a in each if a[name] is not None]).double()
        draws = torch.randint(max(len(known), 1), (n_bootstrap, len(known)), generator=generator)
        found[name] = quantile_interval(known[draws].mean(1)) if len(known) > 1 else (None, None)
    return found


def _over_features(
    predicted: Tensor, measured: Tensor, *, n_bootstrap: int, generator: torch.Generator
) -> dict[str, Interval]:
    columns = _columns(predicted, measured)
    n = len(predicted)
    if not n:
        return dict.fromkeys(STATISTICS, (None, None))
    parts: dict[str, list[Tensor]] = {name: [] for name in STATISTICS}
    size = max(1, _ELEMENTS // (2 * n))
    for start in range(0, n_bootstrap, size):
        rows = min(size, n_bootstrap - start)
        draws = torch.randint(n, (rows, n), generator=generator)
        for name, values in _statistics(*(column[draws] for column in columns)).items():
            parts[name].append(values)
    return {name: quantile_interval(torch.cat(values)) for name, values in parts.items()}


def _columns(predicted: Tensor, measured: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(predicted, measured, their ranks, which measured effects have a sign)."""
    x, y = predicted.double(), measured.double()
    loud = y.abs() > _ROUNDING * y.abs().max() if len(y) else y.bool()
    return x, y, ranks(x), ranks(y), loud


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
        "pearson": pearson(x, y),
        "spearman": pearson(x_ranks, y_ranks),
        "sign": same / loud.sum(-1),
        "top20": (largest[0] & largest[1]).sum(-1).double(),
    }


def pearson(
    x: Float[Tensor, "*batch feature"], y: Float[Tensor, "*batch feature"]
) -> Float[Tensor, "*batch"]:
    """Pearson correlation over the last axis; NaN where a side does not vary."""
    x, y = x - x.mean(-1, keepdim=True), y - y.mean(-1, keepdim=True)
    return (x * y).sum(-1) / (x.square().sum(-1) * y.square().sum(-1)).sqrt()


def ranks(values: Float[Tensor, " feature"]) -> Float[Tensor, " feature"]:
    """Float64 ranks from 1; ties share their mean rank."""
    from scipy.stats import rankdata

    return torch.from_numpy(rankdata(values.double().numpy()))


def _drawn(n: int, draws: int, seed: int) -> Tensor:
    """Resamples of n items, with replacement: draw x item."""
    return torch.randint(n, (draws, n), generator=torch.Generator().manual_seed(seed))
