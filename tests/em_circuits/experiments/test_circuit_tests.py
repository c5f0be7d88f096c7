"""The three hypothesis tests, and areas of faithfulness curves, by hand."""

from __future__ import annotations

import pytest
import torch

from em_circuits.experiments.circuit_tests import equivalence_p, independence_p, minimality_p
from em_circuits.experiments.validity import FRACTIONS, curve_areas


def test_equivalence_is_the_binomial_tail_at_the_edge_of_the_null() -> None:
    never = torch.full((4,), -1.0)
    assert equivalence_p(never) == pytest.approx(0.6**4 + 0.4**4)
    assert equivalence_p(-never) == pytest.approx(0.6**4 + 0.4**4)
    assert equivalence_p(torch.tensor([1.0, -1.0])) == pytest.approx(1)
    assert equivalence_p(torch.full((28,), -1.0)) < 1e-5
    assert equivalence_p(torch.full((4,), -1.0), epsilon=0.4) == pytest.approx(0.9**4 + 0.1**4)


def test_independence_tells_a_copy_from_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 40, generator=generator)
    copied, unrelated = independence_p(x, 3 * x.square()), independence_p(x, noise)
    assert copied is not None and copied == pytest.approx(1 / 1001)
    assert unrelated is not None and unrelated > 0.05
    assert independence_p(x[:4], noise[:4]) is None
    assert independence_p(x, torch.ones(40)) is None


def test_minimality_doubts_nodes_that_do_less_than_random_ones() -> None:
    random = torch.linspace(0, 1, 50)
    p = minimality_p(torch.tensor([2.0, 0.92, 0.5, -1.0]), random)
    assert p[0] == 1 and p[1] > 0.5 and p[2] < 1e-6
    assert float(p[3]) == pytest.approx(0.1**50)


def test_areas_are_those_of_the_trapezoid_rule() -> None:
    whole = curve_areas("all", [1.0] * len(FRACTIONS))
    assert whole.cpr == pytest.approx(0.999) and whole.cmd == 0
    nothing = curve_areas("none", [0.0] * len(FRACTIONS))
    assert nothing.cpr == 0 and nothing.cmd == pytest.approx(0.999)
    line = curve_areas("line", list(FRACTIONS))
    assert line.cpr == pytest.approx((1 - 0.001**2) / 2)
    # Too much counts against CMD, for CPR.
    double = curve_areas("double", [2.0] * len(FRACTIONS))
    assert double.cpr == pytest.approx(1.998) and double.cmd == pytest.approx(0.999)
