"""Signed, multi-hop influence of every node of an attribution graph on its targets."""

from em_circuits.influence.methods import Influence, Method, influence
from em_circuits.influence.paths import Paths, SignedPath, top_paths
from em_circuits.influence.pruning import EdgeList, PrunedGraph, prune
from em_circuits.influence.scores import (
    GraphScores,
    error_direct_score,
    error_influence_share,
    graph_scores,
)
from em_circuits.influence.targets import Targets

__all__ = [
    "EdgeList",
    "GraphScores",
    "Influence",
    "Method",
    "Paths",
    "PrunedGraph",
    "SignedPath",
    "Targets",
    "error_direct_score",
    "error_influence_share",
    "graph_scores",
    "influence",
    "prune",
    "top_paths",
]
