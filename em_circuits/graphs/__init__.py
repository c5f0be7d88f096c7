"""Attribution graphs with aligned logits: what they are, how they are made, where they are kept."""

from em_circuits.graphs.edges import Edges
from em_circuits.graphs.generate import (
    AttributionSettings,
    PairGraphs,
    build_pair_graphs,
    pair_graph_key,
)
from em_circuits.graphs.graph import AttributionGraph, GraphHeader, LogitTargets
from em_circuits.graphs.layout import NodeKind, NodeLayout
from em_circuits.graphs.store import GraphStore

__all__ = [
    "AttributionGraph",
    "AttributionSettings",
    "Edges",
    "GraphHeader",
    "GraphStore",
    "LogitTargets",
    "NodeKind",
    "NodeLayout",
    "PairGraphs",
    "build_pair_graphs",
    "pair_graph_key",
]
