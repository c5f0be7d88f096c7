"""Rows by one integer each: what torch says of whole rows."""

from __future__ import annotations

import pytest
import torch

from em_circuits.coordinates import row_keys, unique_rows


@pytest.mark.parametrize("n", [0, 1, 500])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_distinct_rows_are_those_of_torch(n: int, width: int) -> None:
    drawn = torch.Generator().manual_seed(n + width)
    rows = torch.randint(7, (n, width), generator=drawn) * torch.tensor([1, 100, 10_000])[:width]
    distinct, of = unique_rows(rows)
    expected, expected_of = rows.unique(dim=0, return_inverse=True)
    assert torch.equal(distinct, expected)
    assert torch.equal(of, expected_of)


def test_keys_of_two_tables_can_be_compared() -> None:
    here, there = torch.tensor([[0, 9], [1, 0], [3, 4]]), torch.tensor([[3, 4], [0, 10], [0, 9]])
    keys, others = row_keys(here, there)
    assert torch.isin(keys, others).tolist() == [True, False, True]
    assert keys.tolist() == sorted(keys.tolist())
