"""Rows of whole numbers from 0 on, such as (layer, position, feature id), by one integer each.

Prompts have a million active neurons; `torch.unique(dim=0)` compares rows number by number, which
takes twenty times as long.

    here, there = row_keys(coordinates, others)
    distinct, of = unique_rows(coordinates[:, ::2])
"""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor


def row_keys(*tables: Int64[Tensor, "_ column"]) -> tuple[Int64[Tensor, " _"], ...]:
    """One integer per row, equal for equal rows of any table, which sorts as rows do."""
    largest = [table.amax(0) for table in tables if len(table)]
    radix = (torch.stack(largest).amax(0) + 1).tolist() if largest else []
    keys = []
    for table in tables:
        key = table.new_zeros(len(table))
        for column, size in zip(table.unbind(1), radix, strict=False):
            key = key * size + column
        keys.append(key)
    return tuple(keys)


def unique_rows(
    rows: Int64[Tensor, "row column"],
) -> tuple[Int64[Tensor, "distinct column"], Int64[Tensor, " row"]]:
    """Distinct rows, sorted, and which of them each row is: `torch.unique` with ``dim=0``."""
    distinct, of = row_keys(rows)[0].unique(return_inverse=True)
    first = torch.full_like(distinct, len(rows))
    first.scatter_reduce_(0, of, torch.arange(len(rows), device=rows.device), "amin")
    return rows[first], of
