"""Names of features are read and printed in one place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from em_circuits.feature import Feature, FeatureChoice, FeatureId, parse_feature
from pivotal_tokens.errors import RequestError

numbers = st.integers(0, 10**9 - 1)


@given(numbers, st.integers(-999, 10**6), numbers)
def test_a_printed_feature_is_read_back(layer: int, position: int, feature: int) -> None:
    assert parse_feature(str(Feature(layer, position, feature))) == (layer, position, feature)
    assert parse_feature(str(FeatureId(layer, feature))) == (layer, feature)


def test_features_are_tuples_and_know_their_id() -> None:
    assert Feature(2, 11, 431) == (2, 11, 431)
    assert Feature(2, 11, 431).id == FeatureId(2, 431)


def test_positions_below_zero_count_from_the_end() -> None:
    assert Feature.parse("2/-1/431").at(20) == (2, 19, 431)
    assert Feature.parse("2/0/431").at(20) == (2, 0, 431)
    with pytest.raises(RequestError, match=r"2/20/431.*0 to 19"):
        Feature(2, 20, 431).at(20)


@pytest.mark.parametrize("text", ["", "2", "2/x", "-1/2/3", "2/1/3/4", "1/2.0", "١/2", "2/1/-3"])
def test_what_is_no_feature_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="is no feature"):
        parse_feature(text)


def test_a_feature_without_position_is_not_one_at_a_position() -> None:
    with pytest.raises(RequestError, match="no position"):
        Feature.parse("2/431")


def test_a_choice_is_by_rank_or_by_name() -> None:
    assert FeatureChoice.parse("top:10") == FeatureChoice("top", 10)
    assert FeatureChoice.parse("abs:3").needs_ranking
    named = FeatureChoice.parse("2/11/431, 3/-1/7,4/9")
    assert named.named == ((2, 11, 431), (3, -1, 7), (4, 9)) and not named.needs_ranking
    assert str(named) == "2/11/431,3/-1/7,4/9" and str(FeatureChoice("bottom", 5)) == "bottom:5"


def test_a_choice_is_a_subset_or_has_a_value_for_each() -> None:
    some = FeatureChoice.parse("top:[2, 7]")
    assert (some.by, some.count, some.picks, str(some)) == ("top", 7, (2, 7), "top:[2,7]")
    each = FeatureChoice.parse("0/-1/339=5,2/417=-0.5,1/2/3")
    assert each.named == ((0, -1, 339), (2, 417), (1, 2, 3)) and each.values == (5.0, -0.5, None)
    assert FeatureChoice.parse(str(each)) == each and FeatureChoice.parse("1/2/3").values == ()


BAD = ["", "top", "top:x", "top:0", "middle:3", "2/11/431;3/11/7", "top:[0]", "top:[]", "1/2/3=x"]


@pytest.mark.parametrize("text", BAD)
def test_a_choice_of_no_form_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="--features"):
        FeatureChoice.parse(text)
