"""Which features recur over prompts, whatever the position they fire at?

Keyed by (layer, feature id); a prompt's contrast for a key is the sum over the positions at which
the feature is active there. Only features that were scored in a prompt count for it.

    recurring([ranking_of_prompt_1, ranking_of_prompt_2])[:10]
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from em_circuits.features.rank import Ranking


@dataclass(frozen=True)
class RecurringFeature:
    """One (layer, feature id) over several prompts."""

    layer: int
    feature: int
    prompts: int
    """Prompts in which it was scored."""
    mean_contrast: float
    """Mean over *all* prompts given, 0 where it was inactive; in the method's unit."""
    same_sign: float
    """Share of its prompts in which the contrast has the sign of the mean."""


def recurring(rankings: Sequence[Ranking]) -> tuple[RecurringFeature, ...]:
    """Features by their mean contrast over prompts, most positive first.

    Args:
        rankings: One per prompt, by one method that scores every active feature, so that an
            absent feature is an inactive one, with an effect of exactly 0.
    """
    sums: dict[tuple[int, int], dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for number, ranking in enumerate(rankings):
        for feature in ranking.features:
            sums[feature.layer, feature.feature][number] += feature.contrast
    rows = []
    for (layer, feature_id), by_prompt in sums.items():
        mean = sum(by_prompt.values()) / len(rankings)
        agreeing = sum(value * mean > 0 for value in by_prompt.values())
        rows.append(
            RecurringFeature(layer, feature_id, len(by_prompt), mean, agreeing / len(by_prompt))
        )
    return tuple(sorted(rows, key=lambda row: (-row.mean_contrast, row.layer, row.feature)))
