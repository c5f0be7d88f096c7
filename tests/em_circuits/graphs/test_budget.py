"""A memory budget picks the largest batch that fits, and says so when none does."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from em_circuits.graphs.memory import MOST_ROWS, FrozenMemory
from pivotal_tokens.errors import RequestError

SIZES = {"n_active": 30_000, "n_layers": 16, "n_pos": 40, "d_model": 2048, "n_heads": 32}


def need(**changes: int | None) -> FrozenMemory:
    return FrozenMemory(**SIZES | changes)


@given(st.integers(3_000, 40_000))
def test_rows_are_a_power_of_two_that_grows_with_the_budget(megabytes: int) -> None:
    rows = need(max_feature_nodes=8192).rows_within(megabytes * 10**6)
    assert 1 <= rows <= MOST_ROWS and rows & rows - 1 == 0
    assert rows <= need(max_feature_nodes=8192).rows_within(2 * megabytes * 10**6)


def test_a_longer_prompt_gets_smaller_batches() -> None:
    short = need(max_feature_nodes=1000).rows_within(4 * 10**9)
    assert need(n_pos=400, max_feature_nodes=1000).rows_within(4 * 10**9) < short


def test_the_budget_that_an_error_names_is_enough() -> None:
    with pytest.raises(RequestError, match=r"--max-memory 0\.10 GB is too little") as caught:
        need().rows_within(10**8)
    needed = float(re.findall(r"takes ([0-9.]+) GB", str(caught.value))[0])
    assert need().rows_within(int((needed + 0.01) * 1e9)) >= 1


def test_rows_to_keep_count_once_however_many_are_asked_for() -> None:
    most = need(max_feature_nodes=None).fixed_bytes
    assert need(max_feature_nodes=10**6).fixed_bytes == most
    assert need(max_feature_nodes=100).fixed_bytes < most / 5
