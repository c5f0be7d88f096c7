"""Intervals cover, and permutations agree with writing every one of them down."""

from __future__ import annotations

import itertools

import pytest
import torch

from em_circuits.statistics import (
    bootstrap_interval,
    permutation_p,
    permute_labels,
)


def test_about_95_percent_of_the_intervals_cover_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(25, 600, generator=generator, dtype=torch.float64) + 3
    known = torch.ones_like(values, dtype=torch.bool)
    low, high = bootstrap_interval(values, known, draws=600, seed=1)
    covered = ((low <= 3) & (high >= 3)).double().mean()
    assert 0.90 < float(covered) < 0.97


def test_unknown_prompts_are_left_out_and_one_alone_has_no_interval() -> None:
    values = torch.tensor([[1.0, 5.0], [3.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    known = torch.tensor([[True, True], [True, False], [False, False]])
    low, high = bootstrap_interval(values, known, draws=500, seed=0)
    assert (float(low[0]), float(high[0])) == (1.0, 3.0)
    assert low[1].isnan() and high[1].isnan()
    again = bootstrap_interval(values, known, draws=500, seed=0)
    assert torch.equal(again[0][:1], low[:1])


def brute_force_p(rows: torch.Tensor, sizes: list[tuple[int, int]]) -> float:
    """Every labelling of every prompt, one after the other; the first is the real one."""
    starts = [sum(e + s for e, s in sizes[:i]) for i in range(len(sizes))]
    choices = [itertools.combinations(range(e + s), e) for e, s in sizes]
    sums = []
    for evil_of_each in itertools.product(*choices):
        total = 0.0
        for start, (e, s), evil in zip(starts, sizes, evil_of_each, strict=True):
            tokens = rows[start : start + e + s].tolist()
            safe = set(range(e + s)) - set(evil)
            total += sum(tokens[i] for i in evil) / e - sum(tokens[i] for i in safe) / s
        sums.append(abs(total))
    return sum(x >= sums[0] * (1 - 1e-9) for x in sums) / len(sums)


SIZES = [(2, 2), (1, 3), (2, 1)]
WEIGHTS = [torch.tensor([1 / e] * e + [-1 / s] * s, dtype=torch.float64) for e, s in SIZES]


def scores(n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(11, n, generator=generator, dtype=torch.float64)
    return rows + torch.cat(WEIGHTS)[:, None]


def test_few_labellings_are_enumerated() -> None:
    rows = scores(5)
    permuted = permute_labels(WEIGHTS, draws=6 * 4 * 3, seed=0)
    assert permuted.exact and len(permuted.weights) == 72
    assert len(permuted.weights.unique(dim=0)) == 72
    p = permutation_p(rows, permuted, torch.cat(WEIGHTS))
    expected = [brute_force_p(rows[:, i], SIZES) for i in range(5)]
    assert p.tolist() == pytest.approx(expected)


def test_many_labellings_are_drawn_and_agree_with_enumeration() -> None:
    rows = scores(5)
    exact = permutation_p(rows, permute_labels(WEIGHTS, draws=72, seed=0), torch.cat(WEIGHTS))
    few = permute_labels(WEIGHTS, draws=71, seed=0)
    assert not few.exact and len(few.weights) == 71
    drawn = [permute_labels(WEIGHTS, draws=71, seed=i).weights for i in range(80)]
    pooled = type(few)(torch.cat(drawn), exact=False)
    p = permutation_p(rows, pooled, torch.cat(WEIGHTS))
    assert torch.allclose(p, exact, atol=0.03)
    assert torch.equal(few.weights, permute_labels(WEIGHTS, draws=71, seed=0).weights)


def test_without_a_connection_p_is_uniform_and_without_any_score_it_is_one() -> None:
    generator = torch.Generator().manual_seed(2)
    weights = [torch.tensor([1 / 3] * 3 + [-1 / 4] * 4, dtype=torch.float64)] * 6
    rows = torch.randn(42, 500, generator=generator, dtype=torch.float64)
    rows[:, 0] = 0
    permuted = permute_labels(weights, draws=999, seed=0)
    p = permutation_p(rows, permuted, torch.cat(weights))
    assert float(p[0]) == 1.0
    assert 0.02 < float((p < 0.05).double().mean()) < 0.09
    assert 0.44 < float((p < 0.5).double().mean()) < 0.56
