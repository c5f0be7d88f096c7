"""What does the fine-tune change about a feature, over prompts?

For the same key in the same prompt, merged minus base of

    activation   summed over positions where these are no part of the key; always known
    score        evil minus safe, by any method
    edge         evil minus safe of the direct edge to the logits, where both graphs have edges

A key that is inactive in one model counts there as 0; one that fires unselected in either model is
unknown in that prompt. The differences are blocks like any other, so `aggregate` sums them up.

    block = change(block_of(base), block_of(merged))
"""

from __future__ import annotations

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from em_circuits.features.keyed import Block, make_block
from em_circuits.graphs.graph import AttributionGraph
from pivotal_tokens.errors import RequestError


def change(base: Block, merged: Block) -> Block:
    """Merged minus base of one prompt.

    Args:
        base: Of the base model.
        merged: Of the fine-tuned one, over the same tokens.

    Raises:
        RequestError: If the two are of different prompts or tokens.
    """
    if base.n_pos != merged.n_pos or not torch.equal(base.weights, merged.weights):
        raise RequestError(
            f"base and merged cannot be compared: {base.n_pos} and {merged.n_pos} positions, "
            f"{len(base.weights)} and {len(merged.weights)} labelled targets; build both graphs "
            "in one go (em-circuits graphs build)"
        )
    unknown = torch.unique(torch.cat([base.unknown, merged.unknown]))
    codes = torch.unique(torch.cat([base.codes, merged.codes]))
    codes = codes[~torch.isin(codes, unknown)]
    partly = torch.cat([base.codes[base.partial], merged.codes[merged.partial]])
    return Block(
        codes=codes,
        rows=_rows(merged, codes) - _rows(base, codes),
        weights=base.weights,
        partial=torch.isin(codes, partly),
        unknown=unknown,
        n_pos=base.n_pos,
    )


def activation_block(graph: AttributionGraph, *, by_position: bool = False) -> Block:
    """Activation of every active feature, as a block of a single row."""
    return make_block(
        graph.active,
        graph.activations[None].double(),
        torch.ones(1, dtype=torch.float64),
        unscored=graph.active[:0],
        n_pos=len(graph.input_ids),
        by_position=by_position,
    )


def _rows(block: Block, codes: Int64[Tensor, " key"]) -> Float64[Tensor, "row key"]:
    """The rows of a block over other codes; 0 for those it has not."""
    rows = torch.zeros(len(block.weights), len(codes), dtype=torch.float64)
    kept = torch.isin(block.codes, codes)
    rows[:, torch.searchsorted(codes, block.codes[kept])] = block.rows[:, kept]
    return rows
