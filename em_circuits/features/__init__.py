"""From scores to features: ranking, choice, aggregation over prompts, explanations."""

from typing import TYPE_CHECKING

from pivotal_tokens.lazy import lazy

if TYPE_CHECKING:
    from em_circuits.features.over_prompts import (
        FORMULA,
        Aggregate,
        AggregateSettings,
        LayerComparison,
        Stability,
        activation_by_key,
        aggregate,
        by_key,
        change,
        compare_layers,
        without_layers,
    )
    from em_circuits.features.rank import choose_features, stored_scores
else:
    __getattr__, __dir__ = lazy(__name__)

__all__ = [
    "FORMULA",
    "Aggregate",
    "AggregateSettings",
    "LayerComparison",
    "Stability",
    "activation_by_key",
    "aggregate",
    "by_key",
    "change",
    "choose_features",
    "compare_layers",
    "stored_scores",
    "without_layers",
]
