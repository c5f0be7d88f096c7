"""Attribution graphs with aligned logits: built, stored, read.

Names are imported when first used: reading a graph needs no circuit-tracer, settings no torch.
"""

from typing import TYPE_CHECKING

from em_circuits.lazy import lazy

if TYPE_CHECKING:
    from em_circuits.graphs.edges import Edges as Edges
    from em_circuits.graphs.generate import PairGraphs as PairGraphs
    from em_circuits.graphs.generate import build_pair_graphs as build_pair_graphs
    from em_circuits.graphs.generate import pair_graph_key as pair_graph_key
    from em_circuits.graphs.graph import AttributionGraph as AttributionGraph
    from em_circuits.graphs.graph import LogitTargets as LogitTargets
    from em_circuits.graphs.header import GraphHeader as GraphHeader
    from em_circuits.graphs.header import Selection as Selection
    from em_circuits.graphs.interop import export_pt as export_pt
    from em_circuits.graphs.interop import import_pt as import_pt
    from em_circuits.graphs.layout import NodeKind as NodeKind
    from em_circuits.graphs.layout import NodeLayout as NodeLayout
    from em_circuits.graphs.settings import AttributionSettings as AttributionSettings
    from em_circuits.graphs.store import GraphStore as GraphStore

_MODULES = {
    "AttributionGraph": "graph",
    "AttributionSettings": "settings",
    "Edges": "edges",
    "GraphHeader": "header",
    "GraphStore": "store",
    "LogitTargets": "graph",
    "NodeKind": "layout",
    "NodeLayout": "layout",
    "PairGraphs": "generate",
    "Selection": "header",
    "build_pair_graphs": "generate",
    "export_pt": "interop",
    "import_pt": "interop",
    "pair_graph_key": "generate",
}
__getattr__ = lazy(__name__, _MODULES)
