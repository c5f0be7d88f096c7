"""Interventions as values: modes, units, places, JSON, and what is refused."""

import math

import pytest
import torch
from subjects import Subject

from em_circuits.interventions import Intervention, Mode, check_interventions, on_each
from em_circuits.interventions.edits import EditBatch
from pivotal_tokens.errors import RequestError


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused_in_one_line(value: float) -> None:
    with pytest.raises(RequestError, match="finite") as caught:
        Intervention(layer=0, position=1, feature=3, mode=Mode.ADD, value=value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", [Mode.SET, Mode.ADD, Mode.SCALE, Mode.CLAMP])
def test_every_mode_but_ablate_needs_a_value(mode: Mode) -> None:
    with pytest.raises(RequestError, match=f"mode {mode} needs a value"):
        Intervention(layer=0, position=1, feature=3, mode=mode)


def test_an_intervention_survives_json() -> None:
    item = Intervention(layer=2, position=None, feature=3, mode=Mode.SCALE, value=-1.5)
    assert Intervention.model_validate_json(item.model_dump_json()) == item


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        (Mode.SET, 2.0, [2.0, 2.0]),
        (Mode.ADD, 2.0, [2.0, 5.0]),
        (Mode.SCALE, 2.0, [0.0, 6.0]),
        (Mode.ABLATE, None, [0.0, 0.0]),
        (Mode.CLAMP, 2.0, [0.0, 2.0]),
        (Mode.CLAMP, 4.0, [0.0, 3.0]),
    ],
)
def test_each_mode_follows_its_rule(mode: Mode, value: float | None, expected: list) -> None:
    gain, offset, cap = Intervention(layer=0, feature=0, mode=mode, value=value).rule()
    assert [min(gain * current + offset, cap) for current in (0.0, 3.0)] == expected


@pytest.mark.parametrize(
    ("place", "named"),
    [
        ((99, 2, 0), "layer 99"),
        ((-1, 2, 0), "layer -1"),
        ((0, 0, 0), "position 0"),
        ((0, 500, 0), "position 500"),
        ((0, 2, 99_999), "feature id 99999"),
        ((0, 2, -1), "feature id -1"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(subject: Subject, place: tuple, named: str) -> None:
    with pytest.raises(RequestError, match=named) as caught:
        check_interventions(subject.model, on_each([place], Mode.ABLATE), len(subject.input_ids))
    assert "\n" not in str(caught.value)


def test_every_position_means_every_one_but_the_first() -> None:
    plan = EditBatch.of([[Intervention(layer=1, feature=7)]], n_pos=5)
    assert plan.position.tolist() == [1, 2, 3, 4]


def test_a_feature_named_twice_in_a_row_is_refused() -> None:
    rows = [[Intervention(layer=1, feature=7), Intervention(layer=1, position=2, feature=7)]]
    with pytest.raises(RequestError, match="position 2 is named twice"):
        EditBatch.of(rows, n_pos=5)


def test_rows_of_a_plan_are_cut_out_with_their_lines() -> None:
    one = Intervention(layer=1, position=1, feature=7)
    plan = EditBatch.of(
        [[one], [], [one, Intervention(layer=0, position=2, feature=8)], [one]], n_pos=5
    )
    part = plan.rows(1, 3)
    assert (part.n_rows, part.row.tolist(), part.feature.tolist()) == (2, [1, 1], [7, 8])
    assert torch.equal(part.layer_ops(0).row, torch.tensor([1]))
