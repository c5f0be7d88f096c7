"""Attribution graphs with aligned logits: built, stored and read."""

from typing import TYPE_CHECKING

from pivotal_tokens.lazy import lazy

if TYPE_CHECKING:
    from em_circuits.graphs.builder import EdgesBuilder
    from em_circuits.graphs.edges import Edges
    from em_circuits.graphs.generate import PairGraphs, attribute, build_pair_graphs, pair_graph_key
    from em_circuits.graphs.graph import AttributionGraph, LogitTargets
    from em_circuits.graphs.header import GraphHeader, Selection, graph_key
    from em_circuits.graphs.interop import export_pt, import_pt
    from em_circuits.graphs.layout import NodeKind, NodeLayout
    from em_circuits.graphs.settings import AttributionSettings
    from em_circuits.graphs.store import GraphStore
else:
    __getattr__, __dir__ = lazy(__name__)

__all__ = [
    "AttributionGraph",
    "AttributionSettings",
    "Edges",
    "EdgesBuilder",
    "GraphHeader",
    "GraphStore",
    "LogitTargets",
    "NodeKind",
    "NodeLayout",
    "PairGraphs",
    "Selection",
    "attribute",
    "build_pair_graphs",
    "export_pt",
    "graph_key",
    "import_pt",
    "pair_graph_key",
]
