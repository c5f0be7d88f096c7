"""Signed, multi-hop influence of every node of an attribution graph on its targets."""

from em_circuits.influence.circuit_report import (
    PruneRule,
    paths_json,
    pruned_json,
    scores_json,
)
from em_circuits.influence.methods import Influence, Method, influence
from em_circuits.influence.names import node_named
from em_circuits.influence.paths import Paths, SignedPath, top_paths
from em_circuits.influence.pruning import EdgeList, Pruned, prune, prune_contrast
from em_circuits.influence.report import to_json
from em_circuits.influence.scores import (
    GraphScores,
    error_direct_score,
    error_influence_share,
    graph_scores,
)
from em_circuits.influence.seeds import (
    TargetSeed,
    contrast,
    match,
    one_per_logit,
    probabilities,
    tokens,
)

__all__ = [
    "EdgeList",
    "GraphScores",
    "Influence",
    "Method",
    "Paths",
    "PruneRule",
    "Pruned",
    "SignedPath",
    "TargetSeed",
    "contrast",
    "error_direct_score",
    "error_influence_share",
    "graph_scores",
    "influence",
    "match",
    "node_named",
    "one_per_logit",
    "paths_json",
    "probabilities",
    "prune",
    "prune_contrast",
    "pruned_json",
    "scores_json",
    "to_json",
    "tokens",
    "top_paths",
]
