"""From scores to features: matching labels to targets, contrast, ranking, choice, aggregation."""

from em_circuits.features.aggregate import (
    FORMULA,
    Aggregate,
    AggregateSettings,
    Stability,
    Summary,
    aggregate,
)
from em_circuits.features.difference import activation_block, change
from em_circuits.features.keyed import Block, KeyedScores, PromptScores, block_of, of_graph
from em_circuits.features.layers import (
    LayerComparison,
    compare_layers,
    require_layers,
    without_layers,
)
from em_circuits.features.rank import (
    LIVE_METHODS,
    METHODS,
    STORED_METHODS,
    FeatureScores,
    RankedFeature,
    Ranking,
    graph_scores,
    rank,
    rank_features,
)
from em_circuits.features.select import FeatureChoice, parse_features

__all__ = [
    "FORMULA",
    "LIVE_METHODS",
    "METHODS",
    "STORED_METHODS",
    "Aggregate",
    "AggregateSettings",
    "Block",
    "FeatureChoice",
    "FeatureScores",
    "KeyedScores",
    "LayerComparison",
    "PromptScores",
    "RankedFeature",
    "Ranking",
    "Stability",
    "Summary",
    "activation_block",
    "aggregate",
    "block_of",
    "change",
    "compare_layers",
    "graph_scores",
    "of_graph",
    "parse_features",
    "rank",
    "rank_features",
    "require_layers",
    "without_layers",
]
