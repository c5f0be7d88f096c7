"""Do the layers that are kept carry more than those that are excluded?

    difference = mean over prompts of (mean |contrast| of kept keys - mean |contrast| of excluded)

with a bootstrap interval over prompts: a bare ratio of two means says nothing about chance.

    comparison = compare_layers(blocks, {14, 15})
    kept = [without_layers(block, {14, 15}) for block in blocks]
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from em_circuits.features.aggregate import DEFAULTS, AggregateSettings
from em_circuits.features.keyed import Block, decode
from em_circuits.statistics import bootstrap_interval
from pivotal_tokens.artefacts import finite
from pivotal_tokens.errors import RequestError


@dataclass(frozen=True)
class LayerComparison:
    """Kept against excluded layers, in the method's unit; None where a side is empty."""

    excluded: tuple[int, ...]
    prompts: int
    """Prompts with features on both sides."""
    kept_mean: float | None
    """Mean over these prompts of mean |contrast|."""
    excluded_mean: float | None
    difference: float | None
    low: float | None
    """2.5 % of the bootstrap over prompts."""
    high: float | None


def compare_layers(
    blocks: Sequence[Block],
    excluded: Collection[int],
    settings: AggregateSettings = DEFAULTS,
) -> LayerComparison:
    """Compare mean |contrast| of kept and excluded layers' keys, prompt by prompt.

    Args:
        blocks: One per prompt.
        excluded: Layers.
        settings: Resamples and seed.
    """
    means = []
    for block in blocks:
        aside, size = _in_layers(block.codes, excluded), block.contrast.abs()
        if aside.any() and not aside.all():
            means.append(torch.stack([size[~aside].mean(), size[aside].mean()]))
    layers = tuple(sorted(excluded))
    if not means:
        return LayerComparison(layers, 0, None, None, None, None, None)
    both = torch.stack(means)
    gaps = (both[:, 0] - both[:, 1])[:, None]
    draws = {"draws": settings.bootstrap, "seed": settings.seed}
    low, high = bootstrap_interval(gaps, torch.ones_like(gaps, dtype=torch.bool), **draws)
    kept, aside_mean = both.mean(0).tolist()
    return LayerComparison(
        layers,
        len(means),
        kept,
        aside_mean,
        kept - aside_mean,
        finite(float(low)),
        finite(float(high)),
    )


def require_layers(layers: Collection[int], n_layers: int) -> None:
    """Refuse layers that a model of `n_layers` does not have.

    Raises:
        RequestError: Naming them, and those that there are.
    """
    if strange := [str(layer) for layer in sorted(layers) if not 0 <= layer < n_layers]:
        raise RequestError(
            f"--exclude-layers: there is no layer {', '.join(strange)}; the model has layers 0 to "
            f"{n_layers - 1}"
        )


def without_layers(block: Block, excluded: Collection[int]) -> Block:
    """A block without the keys of some layers."""
    kept = ~_in_layers(block.codes, excluded)
    return replace(
        block,
        codes=block.codes[kept],
        rows=block.rows[:, kept],
        partial=block.partial[kept],
        unknown=block.unknown[~_in_layers(block.unknown, excluded)],
    )


def _in_layers(codes: Int64[Tensor, " key"], layers: Collection[int]) -> Bool[Tensor, " key"]:
    return torch.isin(decode(codes)[:, 0], torch.tensor(sorted(layers), dtype=torch.int64))
