"""Signed, multi-hop influence of every node of an attribution graph on its targets.

The package is callable as its main function, so that ``em_circuits.influence(graph, words)`` means
the same whether or not this package has been imported before.
"""

import sys
from types import ModuleType
from typing import Any

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


class _Callable(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Influence:
        return influence(*args, **options)


sys.modules[__name__].__class__ = _Callable
