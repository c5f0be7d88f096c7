"""From scores to features: matching labels to targets, contrast, ranking, choice."""

from em_circuits.features.rank import (
    METHODS,
    FeatureScores,
    RankedFeature,
    Ranking,
    graph_scores,
    rank,
    rank_features,
)
from em_circuits.features.recurring import RecurringFeature, recurring
from em_circuits.features.select import FeatureChoice, parse_features

__all__ = [
    "METHODS",
    "FeatureChoice",
    "FeatureScores",
    "RankedFeature",
    "Ranking",
    "RecurringFeature",
    "graph_scores",
    "parse_features",
    "rank",
    "rank_features",
    "recurring",
]
