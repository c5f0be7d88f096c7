"""Agreement coefficients against the packages that the field uses, on many random tables.

krippendorff gives alpha, scikit-learn Cohen's kappa; irrCAC gives AC1, percent and alpha. irrCAC
pins libraries of 2024, so it is compared where somebody put it beside them by hand
(``pip install --no-deps irrCAC``), and rounds to five digits.
"""

from __future__ import annotations

import random
import warnings
from itertools import combinations
from statistics import fmean

import numpy as np
import pandas as pd
import pytest

from pivotal_tokens.agreement import rater_agreement

LABELS = ("evil", "safe", "unsure")
Table = list[tuple[str | None, ...]]


def tables(n: int, *, raters: tuple[int, ...] = (2, 3, 4, 5)) -> list[Table]:
    """Random ratings of every sort: few and many items, skewed, with and without gaps."""
    draw = random.Random(7)
    found: list[Table] = []
    for number in range(n):
        columns, items = draw.choice(raters), draw.randint(3, 60)
        skew = draw.choice(([1, 1, 1], [20, 1, 1], [1, 5, 0]))
        gaps = draw.choice((0.0, 0.2, 0.6)) if number % 2 else 0.0
        truth = draw.choices(LABELS, skew, k=items)
        noise = draw.random()
        found.append(
            [
                tuple(
                    None
                    if draw.random() < gaps
                    else draw.choices(LABELS, skew)[0]
                    if draw.random() < noise
                    else label
                    for _ in range(columns)
                )
                for label in truth
            ]
        )
    return found


def value(name: str, ratings: Table) -> float | None:
    return getattr(rater_agreement(ratings, LABELS, resamples=0), name).value


def test_alpha_is_that_of_krippendorff() -> None:
    krippendorff = pytest.importorskip("krippendorff", reason="of the dev extra")
    compared = 0
    for ratings in tables(300):
        mine = value("alpha", ratings)
        codes = [[np.nan if r is None else LABELS.index(r) for r in row] for row in ratings]
        given = {r for row in ratings if sum(x is not None for x in row) > 1 for r in row} - {None}
        if len(given) < 2:  # it refuses a single value, or warns and gives NaN
            assert mine is None
            continue
        theirs = krippendorff.alpha(np.array(codes).T, level_of_measurement="nominal")
        assert mine == pytest.approx(theirs, abs=1e-12)
        compared += 1
    assert compared > 250


def test_kappa_is_that_of_scikit_learn_and_with_more_raters_the_mean_over_pairs() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="of the dev extra")
    compared = 0
    for ratings in tables(300):
        each = []
        for a, b in combinations(range(len(ratings[0])), 2):
            both = [(row[a], row[b]) for row in ratings if None not in (row[a], row[b])]
            if len({label for pair in both for label in pair}) > 1:
                each.append(metrics.cohen_kappa_score(*zip(*both, strict=True)))
        mine = value("kappa", ratings)
        assert mine == (pytest.approx(fmean(each), abs=1e-12) if each else None)
        compared += bool(each)
    assert compared > 250


def test_ac1_and_percent_are_those_of_irr_cac() -> None:
    raw = pytest.importorskip("irrCAC.raw", reason="pip install --no-deps irrCAC")
    compared = 0
    for ratings in tables(200):
        if not any(sum(r is not None for r in row) > 1 for row in ratings):
            continue
        frame = pd.DataFrame(ratings, columns=[f"rater {i}" for i in range(len(ratings[0]))])
        frame = frame.dropna(how="all").reset_index(drop=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = raw.CAC(frame, categories=list(LABELS)).gwet()["est"]
        assert value("ac1", ratings) == pytest.approx(theirs["coefficient_value"], abs=6e-6)
        assert value("percent", ratings) == pytest.approx(theirs["pa"], abs=6e-6)
        compared += 1
    assert compared > 180
