"""Against published worked examples, and against slow definitions on random ratings."""

from itertools import combinations, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pivotal_tokens.agreement import rater_agreement

LABELS = ("evil", "safe", "unsure")


def rows(*raters: str) -> list[tuple[str | None, ...]]:
    """One string a rater, a character an item, '.' where there is no rating."""
    columns = [[None if c == "." else c for c in rater] for rater in raters]
    return list(zip(*columns, strict=True))


def coefficient(name, ratings, categories=None) -> float | None:
    """One of the four, by default over the labels that were given."""
    given = sorted({one for row in ratings for one in row if one is not None})
    return getattr(rater_agreement(ratings, categories or given, resamples=0), name).value


def table(*counts: list[int]) -> list[tuple[str, str]]:
    """The ratings behind a table of two raters' counts."""
    return [
        (str(i), str(j))
        for i, row in enumerate(counts)
        for j, number in enumerate(row)
        for _ in range(number)
    ]


# Krippendorff 2011, section C: four observers, twelve units, missing values.
FOUR = rows("123321412...", "1233224125.3", ".3332342251.", "12332441251.")


def test_krippendorffs_binary_example():
    assert coefficient("alpha", rows("0100000010", "1110010000")) == pytest.approx(0.095, abs=5e-4)


def test_krippendorffs_nominal_example_of_two_observers():
    assert coefficient("alpha", rows("aabbdcccedda", "babbbccceddd")) == pytest.approx(
        0.692, abs=5e-4
    )


def test_krippendorffs_example_with_missing_values():
    assert coefficient("alpha", FOUR) == pytest.approx(0.743, abs=5e-4)


def test_cohens_example_of_1960():
    # Table 2: 140 of 200 agree, 82 by chance; kappa = 58 / 118 = .492
    ratings = table([88, 14, 18], [10, 40, 10], [2, 6, 12])
    assert coefficient("percent", ratings) == pytest.approx(0.70)
    assert coefficient("kappa", ratings) == pytest.approx(0.492, abs=5e-4)


def test_gwets_example_of_the_kappa_paradox():
    # Gwet 2002, "Kappa statistic is not satisfactory": 94 % agree, kappa -.0234, AC1 .9408
    ratings = table([118, 5], [2, 0])
    assert coefficient("percent", ratings) == pytest.approx(0.944)
    assert coefficient("kappa", ratings) == pytest.approx(-0.0234, abs=5e-5)
    assert coefficient("ac1", ratings, ("0", "1")) == pytest.approx(0.9408, abs=5e-5)


def test_gwets_example_of_four_raters_with_missing_ratings():
    # Gwet, Handbook of Inter-Rater Reliability (4th ed.), table 2.9 with irrCAC's gwet.ac1.raw
    assert coefficient("ac1", FOUR, "12345") == pytest.approx(0.77544, abs=1e-5)
    assert coefficient("percent", FOUR) == pytest.approx(0.81818, abs=1e-5)


def test_an_item_with_one_rating_counts_for_how_common_its_label_is_and_not_for_agreement():
    # By hand, Gwet's definition: 4 of the 5 items have two ratings, 3 of these agree: p_a = .75.
    # pi_evil = (1 + 1 + .5 + 0 + 1) / 5 = .7 over all five; p_e = 2 * .7 * .3 = .42;
    # AC1 = (.75 - .42) / .58. Over the four alone pi_evil = .625 and AC1 = .53.
    ratings = rows("eeese", "eess.")
    assert coefficient("percent", ratings) == pytest.approx(0.75)
    assert coefficient("ac1", ratings, "es") == pytest.approx(0.33 / 0.58)
    assert coefficient("ac1", ratings[:4], "es") == pytest.approx((0.75 - 0.46875) / 0.53125)


def test_the_interval_of_ac1_is_of_the_same_coefficient_as_its_value():
    """Found in review: draws left prompts with one rater out, the value counted them."""
    agreed = [("evil", "evil"), ("safe", "safe")] * 5 + [("evil", "safe")] * 4
    ratings = agreed + [("safe", None)] * 200
    groups = [f"both {i}" for i in range(14)] + [f"one {i}" for i in range(200)]
    found = rater_agreement(ratings, LABELS, groups=groups, resamples=400)
    both = rater_agreement(agreed, LABELS, groups=groups[:14], resamples=400)
    assert found.ac1.low < found.ac1.value < found.ac1.high
    assert found.ac1.value > both.ac1.value + 0.05
    assert found.ac1.low > both.ac1.low + 0.1 and found.groups == both.groups == 14
    for name in ("percent", "kappa", "alpha"):
        assert getattr(found, name) == getattr(both, name)


def test_no_variation_leaves_kappa_and_alpha_undefined_and_ac1_one():
    same = [("safe", "safe")] * 4
    found = rater_agreement(same, LABELS, resamples=50)
    assert found.percent.value == 1 and found.ac1.value == pytest.approx(1)
    assert found.kappa.value is None and found.alpha.value is None
    assert found.kappa.low is None


def test_no_pair_of_ratings_has_no_agreement():
    for ratings in ([], [("evil", None), (None, "safe")]):
        found = rater_agreement(ratings, LABELS)
        assert found.items == found.groups == 0
        assert (found.percent.value, found.kappa.value, found.alpha.value) == (None, None, None)


def test_an_unknown_label_and_ragged_rows_are_refused():
    with pytest.raises(ValueError, match="good"):
        rater_agreement([("good", "evil")], LABELS)
    with pytest.raises(ValueError, match="every rater"):
        rater_agreement([("evil", "evil"), ("evil",)], LABELS)
    with pytest.raises(ValueError, match="groups for 1"):
        rater_agreement([("evil", "evil"), ("evil", "safe")], LABELS, groups=["one"])


def test_intervals_hold_the_value_and_repeat_with_the_seed():
    ratings = [("evil", "evil"), ("safe", "safe"), ("safe", "unsure"), ("evil", "safe")] * 12
    one, two = (rater_agreement(ratings, LABELS, resamples=400, seed=3) for _ in range(2))
    assert one == two
    for estimate in (one.percent, one.kappa, one.ac1, one.alpha):
        assert estimate.low < estimate.value < estimate.high
    assert rater_agreement(ratings, LABELS, resamples=0).percent.low is None


def test_drawing_whole_prompts_widens_the_interval():
    ratings = [("evil", "evil")] * 20 + [("evil", "safe")] * 20
    groups = [i // 5 for i in range(40)]  # eight prompts, each wholly right or wholly wrong
    alone = rater_agreement(ratings, LABELS, resamples=500).percent
    grouped = rater_agreement(ratings, LABELS, groups=groups, resamples=500).percent
    assert grouped.value == alone.value == 0.5
    assert grouped.high - grouped.low > 1.5 * (alone.high - alone.low)


def test_a_prompt_with_one_rater_is_not_drawn():
    ratings = [("evil", "evil"), ("safe", None), ("safe", "safe")]
    assert rater_agreement(ratings, LABELS, groups=["a", "b", "c"]).groups == 2


cells = st.sampled_from((*LABELS, None))
many = st.integers(2, 4).flatmap(
    lambda raters: st.lists(st.tuples(*[cells] * raters), min_size=1, max_size=12)
)


@settings(max_examples=120, deadline=None)
@given(many)
def test_alpha_is_one_minus_observed_over_expected_disagreement(ratings):
    """Slow definition: every ordered pair within a unit, every ordered pair of all values."""
    units = [[one for one in row if one is not None] for row in ratings]
    units = [unit for unit in units if len(unit) > 1]
    values = [one for unit in units for one in unit]
    observed = sum(
        sum(a != b for a, b in permutations(unit, 2)) / (len(unit) - 1) for unit in units
    )
    expected = sum(a != b for a, b in permutations(values, 2))
    found = coefficient("alpha", ratings)
    if not expected:
        assert found is None
    else:
        slow = 1 - (observed / len(values)) / (expected / (len(values) * (len(values) - 1)))
        assert found == pytest.approx(slow)


@settings(max_examples=120, deadline=None)
@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=20))
def test_kappa_is_agreement_beyond_the_product_of_the_raters_shares(ratings):
    both = [(a, b) for a, b in ratings if a is not None and b is not None]
    n = len(both)
    chance = sum(
        sum(a == c for a, _ in both) * sum(b == c for _, b in both) / n**2 for c in LABELS if n
    )
    found = coefficient("kappa", ratings)
    if not n or chance == 1:
        assert found is None
    else:
        assert found == pytest.approx((sum(a == b for a, b in both) / n - chance) / (1 - chance))


@settings(max_examples=60, deadline=None)
@given(many)
def test_percent_and_ac1_by_their_definitions(ratings):
    units = [[one for one in row if one is not None] for row in ratings]
    shares = [
        sum(a == b for a, b in combinations(u, 2)) / (len(u) * (len(u) - 1) / 2)
        for u in units
        if len(u) > 1
    ]
    if not shares:
        assert coefficient("percent", ratings) is None
        return
    observed = sum(shares) / len(shares)
    rated = [unit for unit in units if unit]
    pi = [sum(unit.count(c) / len(unit) for unit in rated) / len(rated) for c in LABELS]
    chance = sum(p * (1 - p) for p in pi) / 2
    assert coefficient("percent", ratings) == pytest.approx(observed)
    assert coefficient("ac1", ratings, LABELS) == pytest.approx((observed - chance) / (1 - chance))
