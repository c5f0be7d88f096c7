"""A feature table keeps its order, its figures and what they are by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from em_circuits.feature import Feature, FeatureId
from em_circuits.intervention import Mode, Where
from em_circuits.table import FeatureTable
from pivotal_tokens.errors import RequestError

PLACES = torch.tensor([[0, 1, 7], [1, 2, 3], [0, 3, 7], [2, 3, 1]])
VALUES = torch.tensor([0.5, -2.0, 1.0, float("nan")])


def table(**more: object) -> FeatureTable:
    return FeatureTable.of(PLACES, by="gradient", contrast=VALUES, **more)


def test_rows_are_features_at_positions() -> None:
    assert table().features[0] == Feature(0, 1, 7)
    assert torch.equal(table().coordinates, PLACES) and len(table()) == 4


def test_sorting_is_descending_with_undefined_figures_last() -> None:
    ranked = table().sorted_by("contrast")
    assert [f.feature for f in ranked.features] == [7, 7, 3, 1]
    assert ranked["contrast"][:3].tolist() == [1.0, 0.5, -2.0]


def test_top_bottom_and_largest() -> None:
    ranked = table().sorted_by("contrast")
    assert ranked.top(1).features == (Feature(0, 3, 7),)
    assert ranked.bottom(1).features == (Feature(1, 2, 3),)
    assert ranked.largest(1).features == (Feature(1, 2, 3),)
    assert len(ranked.top(99)) == 4


def test_top_keeps_an_order_that_is_not_that_of_the_score() -> None:
    assert table().top(2).features == (Feature(0, 1, 7), Feature(1, 2, 3))


def test_choices_by_rank_and_by_name() -> None:
    ranked = table().sorted_by("contrast")
    assert ranked.choose("abs:2").features == (Feature(1, 2, 3), Feature(0, 3, 7))
    assert ranked.choose("1/2/3").features == (Feature(1, 2, 3),)
    assert ranked.choose("0/7").features == (Feature(0, 3, 7), Feature(0, 1, 7))
    with pytest.raises(RequestError, match="9/9/9 is not in this table"):
        ranked.choose("9/9/9")


def test_scores_by_target_follow_their_rows() -> None:
    scores = torch.arange(8.0).reshape(2, 4)
    ranked = table(targets=[5, 9], per_target=scores).sorted_by("contrast")
    assert ranked.per_target.tolist() == scores[:, [2, 0, 1, 3]].tolist()
    with pytest.raises(ValueError, match="2 targets and 4 features"):
        table(targets=[5, 9], per_target=scores[:, :3])


def test_ids_sum_over_positions() -> None:
    ids = table().by_id()
    assert ids.features == (FeatureId(0, 7), FeatureId(1, 3), FeatureId(2, 1))
    assert ids["contrast"][:2].tolist() == [1.5, -2.0]


def test_two_tables_line_up_by_feature() -> None:
    other = FeatureTable.of(PLACES[:2], by="measured", score="effect", effect=[1.0, 2.0])
    both = table().top(3).align(other)
    assert both["left"].tolist() == [0.5, 1.0, -2.0] and both["right"].tolist() == [1.0, 0.0, 2.0]


def test_interventions_stand_where_the_features_do() -> None:
    items = table().top(2).ablate()
    assert [(i.layer, i.position, i.feature, i.mode) for i in items] == [
        (0, 1, 7, Mode.ABLATE),
        (1, 2, 3, Mode.ABLATE),
    ]
    assert len(table().interventions(Mode.SET, 3.0, where=Where.PROMPT)) == 3
    assert table().by_id().scale(2.0)[0].position is None


def test_parquet_keeps_what_the_scores_are_by(tmp_path: Path) -> None:
    stored = table(about={"model": "merged"}).sorted_by("contrast")
    stored.to_parquet(tmp_path / "t.parquet")
    read = FeatureTable.read_parquet(tmp_path / "t.parquet")
    assert read.features == stored.features and read.by == "gradient" and read.about == stored.about
    assert np.array_equal(read["contrast"], stored["contrast"], equal_nan=True)


def test_records_are_plain() -> None:
    last = table().records()[-1]
    assert last == {"layer": 2, "position": 3, "feature": 1, "contrast": None}


def test_a_table_prints_as_one_line_and_as_html() -> None:
    assert repr(table()).count("\n") == 0 and "4 features by gradient" in repr(table())
    assert len(repr(table())) < 200 and "<table" in table()._repr_html_()


def test_no_features_are_a_table_too() -> None:
    none = FeatureTable.of(PLACES[:0], by="gradient", contrast=VALUES[:0])
    assert none.features == () and none.top(5).records() == [] and "0 features" in repr(none)
