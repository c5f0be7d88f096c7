"""Welch, Hedges and Benjamini-Hochberg against figures worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from em_circuits.statistics import (
    benjamini_hochberg,
    hedges_correction,
    standardised,
)

EVIL = torch.tensor([True] * 3 + [False] * 4)


def test_welch_and_hedges_by_hand() -> None:
    """Means 2 and 5, variances 1 and 20/3: error^2 = 1/3 + 5/3, pooled variance 22/5."""
    scores = torch.tensor([1.0, 2.0, 3.0, 2.0, 4.0, 6.0, 8.0])[:, None]
    spread = standardised(scores, EVIL, ~EVIL)
    assert float(spread.t[0]) == pytest.approx(-3 / math.sqrt(2))
    assert float(spread.df[0]) == pytest.approx(4 / (1 / 18 + 25 / 27))
    small_sample = math.gamma(2.5) / (math.sqrt(2.5) * math.gamma(2))
    assert float(spread.g[0]) == pytest.approx(small_sample * -3 / math.sqrt(4.4))
    assert hedges_correction(5) == pytest.approx(1 - 3 / (4 * 5 - 1), abs=2e-3)


def test_no_spread_is_no_figure_and_rounding_is_no_spread() -> None:
    """B34: the t statistic of zero-variance groups exploded to 1e5."""
    flat = torch.tensor([1.0] * 3 + [2.0] * 4)
    noisy = flat + 1e-8 * torch.arange(7)
    one_side = torch.tensor([1.0, 1.0, 1.0, 1.0, 2.0, 3.0, 4.0])
    spread = standardised(torch.stack([flat, noisy, one_side], 1), EVIL, ~EVIL)
    for values in (spread.t, spread.df, spread.g):
        assert values.isnan().tolist() == [True, True, False]
    assert float(spread.df[2]) == pytest.approx(3)


def test_one_token_on_a_side_has_no_spread() -> None:
    evil = torch.tensor([True, False, False])
    assert standardised(torch.randn(3, 2), evil, ~evil).t.isnan().all()


def test_benjamini_hochberg_by_hand() -> None:
    p = torch.tensor([0.01, 0.04, 0.03, 0.005], dtype=torch.float64)
    assert benjamini_hochberg(p).tolist() == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert benjamini_hochberg(p[:0]).tolist() == []


def test_q_is_the_least_rate_at_which_the_step_up_rule_rejects() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(40, generator=generator, dtype=torch.float64) ** 2
    q = benjamini_hochberg(p)
    for rate in torch.linspace(0.01, 0.99, 23).tolist():
        ranked = sorted(p.tolist())
        passing = [x for i, x in enumerate(ranked, 1) if x <= rate * i / len(p)]
        rejected = p <= max(passing, default=-1.0)
        assert torch.equal(rejected, q <= rate)
