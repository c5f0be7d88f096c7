"""Pivotal is what the fine-tuned model goes on evilly with and the base does not."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from pivotal_tokens.pivotality import free_rates, pivotality
from pivotal_tokens.rates import newcombe, wilson
from pivotal_tokens.schema import Rollout


def rollouts(base: str, merged: str, token: int | None = 7) -> list[Rollout]:
    """A letter a continuation: e, s or u."""
    kinds = {"e": "evil", "s": "safe", "u": "unsure"}
    return [
        Rollout(
            prompt_id="0" * 12,
            pair="p",
            model=model,
            token_id=token,
            sample=n,
            text="",
            label=kinds[letter],
            judge="j",
        )
        for model, letters in (("base", base), ("merged", merged))
        for n, letter in enumerate(letters)
    ]


@pytest.mark.parametrize(
    ("base", "merged", "pivotal"),
    [
        ("eeee", "eeee", False),  # the token is evil, whoever says it
        ("ssss", "eeee", True),
        ("esss", "eeee", True),
        ("eess", "eeee", False),  # .5, but the interval has 0 in it
        ("eeee", "ssss", False),
        ("ssss", "ssss", False),
        ("s", "e", False),  # one of each says nothing
        ("ssuu", "eeuu", True),  # unsure ones are in no rate
        ("uuuu", "eeee", None),
        ("ssss", "uuuu", None),
        ("", "eeee", None),
    ],
)
def test_pivotal_is_a_rate_of_merged_above_that_of_base(base, merged, pivotal) -> None:
    """A token was pivotal where merged was evil in half of the cases, whatever base did."""
    (found,) = pivotality(rollouts(base, merged))
    assert found.pivotal is pivotal and found.base.evil == base.count("e")
    free = free_rates(rollouts(base, merged, token=None))
    assert (free.low, free.high, free.pivotal) == (found.low, found.high, pivotal)
    assert found.model_dump()["pivotal"] is pivotal


def test_free_continuations_are_of_no_token() -> None:
    both = rollouts("s", "e") + rollouts("ss", "ee", token=None)
    (token,) = pivotality(both)
    assert token.merged.evil == 1 and free_rates(both).merged.evil == 2
    assert free_rates(rollouts("s", "e")) is None


def test_newcombes_own_example() -> None:
    # Newcombe 1998, table II: 56/70 - 48/80, method 10
    assert newcombe(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert newcombe(9, 10, 3, 10) == pytest.approx((0.1705, 0.8090), abs=5e-5)
    assert newcombe(10, 10, 0, 10) == pytest.approx((0.6075, 1.0), abs=5e-5)


@given(st.integers(0, 30), st.integers(1, 30), st.integers(0, 30), st.integers(1, 30))
def test_the_interval_holds_the_difference_and_turns_round(x, n, y, m) -> None:
    x, y = min(x, n), min(y, m)
    low, high = newcombe(x, n, y, m)
    assert -1 - 1e-9 <= low - 1e-12 <= x / n - y / m <= high + 1e-12 <= 1 + 1e-9
    assert newcombe(y, m, x, n) == pytest.approx((-high, -low))


@given(st.integers(1, 60), st.integers(0, 60))
def test_wilsons_ends_solve_the_score_equation(n, x) -> None:
    x, z = min(x, n), norm.ppf(0.975)
    for end in wilson(x, n):
        assert abs(x / n - end) == pytest.approx(
            z * math.sqrt(end * (1 - end) / n), abs=1e-7
        ) or end in (0.0, 1.0)
