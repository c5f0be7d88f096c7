"""Node order of an attribution graph: every offset, and every step between nodes and rows.

Nodes stand in this order, and rows are targets, columns sources (circuit-tracer's convention)::

    [features by (part, position, id) | errors, layer-major | tokens | logits]
     `------------------ sources (columns) --------------------'
     `-- rows 0.. ---'                                then rows: `-------'

A *part* is a layer, unless nodes of several bases stand in one graph: then each layer's transcoder
and each LoRA module is one, and parts stand in the order in which edges run.

Only features and logits read anything, so vectors over *rows* have them alone, features first.

    layout = NodeLayout(n_features=3, n_layers=2, n_pos=4, n_logits=2)
    direct = adjacency[layout.logits, layout.features]
    layout.kind(layout.token_index(0))  # NodeKind.TOKEN
    layout.nodes_of(torch.tensor([3]))  # row 3 is the first logit: node 15

Nobody outside this file computes an offset (tests/em_circuits/graphs/test_layout.py sees to it).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from pivotal_tokens.errors import RequestError

TOKEN_LAYER = -1
"""The layer a token embedding counts as: below every transcoder."""


class NodeKind(StrEnum):
    """The four kinds of node."""

    FEATURE = "feature"
    ERROR = "error"
    TOKEN = "token"
    LOGIT = "logit"


@dataclass(frozen=True)
class NodeLayout:
    """Sizes of a graph, and from them every index.

    Attributes:
        n_features: Selected features.
        n_layers: Layers that carry error nodes; 0 in a graph with full edges.
        n_pos: Prompt tokens, the BOS included.
        n_logits: Targets.
        parts: Parts that features belong to; `n_layers` if not given.
    """

    n_features: int
    n_layers: int
    n_pos: int
    n_logits: int
    parts: int | None = None

    def __post_init__(self) -> None:
        for name in ("n_features", "n_layers", "n_pos", "n_logits"):
            if getattr(self, name) < 0:
                raise RequestError(f"{name} must be at least 0, got {getattr(self, name)}.")
        if self.n_layers and self.n_parts != self.n_layers:
            # An error's layer has to say which parts read it.
            raise RequestError(
                f"A graph with errors has one part a layer, got {self.n_parts} parts in "
                f"{self.n_layers} layers."
            )

    @property
    def n_parts(self) -> int:
        """Parts that features belong to."""
        return self.n_layers if self.parts is None else self.parts

    # Ranges of nodes

    @property
    def features(self) -> slice:
        """Selected features; they are the first rows, too."""
        return slice(0, self.n_features)

    @property
    def errors(self) -> slice:
        """Error nodes, layer-major, then position."""
        return slice(self.n_features, self.n_features + self.n_layers * self.n_pos)

    @property
    def tokens(self) -> slice:
        """Token embeddings by position."""
        return slice(self.errors.stop, self.errors.stop + self.n_pos)

    @property
    def logits(self) -> slice:
        """Logit targets."""
        return slice(self.tokens.stop, self.tokens.stop + self.n_logits)

    @property
    def sources(self) -> slice:
        """Every node that can be a source: all but the logits."""
        return slice(0, self.n_sources)

    @property
    def inner(self) -> slice:
        """Features and errors: the nodes that pruning may drop."""
        return slice(0, self.errors.stop)

    def errors_of(self, layer: int) -> slice:
        """Error nodes of one layer, by position."""
        first = self.error_index(layer, 0) if self.n_pos else self.errors.start
        return slice(first, first + self.n_pos)

    @property
    def n_sources(self) -> int:
        """How many nodes can be a source."""
        return self.tokens.stop

    @property
    def n_nodes(self) -> int:
        """All nodes."""
        return self.logits.stop

    # Rows: features, then logits

    @property
    def n_rows(self) -> int:
        """Rows that can hold edges."""
        return self.n_features + self.n_logits

    @property
    def logit_rows(self) -> slice:
        """The logits in a vector over rows."""
        return slice(self.n_features, self.n_rows)

    def rows_of(self, nodes: Int64[Tensor, " node"]) -> Int64[Tensor, " node"]:
        """Row of each node; -1 for an error or token, which has none."""
        logit_row = nodes - self.logits.start + self.n_features
        logit_row = torch.where(self.is_source(nodes), -1, logit_row)
        return torch.where(self.is_feature(nodes), nodes, logit_row)

    def nodes_of(self, rows: Int64[Tensor, " row"]) -> Int64[Tensor, " row"]:
        """Node of each row."""
        return torch.where(rows < self.n_features, rows, rows - self.n_features + self.logits.start)

    def is_feature(self, nodes: Int64[Tensor, " node"]) -> Bool[Tensor, " node"]:
        """Which nodes are features."""
        return nodes < self.n_features

    def is_source(self, nodes: Int64[Tensor, " node"]) -> Bool[Tensor, " node"]:
        """Which nodes can be a source."""
        return nodes < self.n_sources

    def matrix_rows(self, n_rows: int) -> tuple[slice, slice]:
        """(rows of errors and tokens, rows of logits) of a matrix that has a row for every node,
        or only for features and logits: the first range is empty then."""
        first = n_rows - self.n_logits
        return slice(self.n_features, first), slice(first, n_rows)

    # Single nodes

    def error_index(self, layer: int, pos: int) -> int:
        """Node index of the error at a layer and position."""
        self._check("layer", layer, self.n_layers)
        self._check("position", pos, self.n_pos)
        return self.errors.start + layer * self.n_pos + pos

    def token_index(self, pos: int) -> int:
        """Node index of the token at a position."""
        self._check("position", pos, self.n_pos)
        return self.tokens.start + pos

    def logit_index(self, i: int) -> int:
        """Node index of the i-th target."""
        self._check("target", i, self.n_logits)
        return self.logits.start + i

    def kind(self, i: int) -> NodeKind:
        """What the node at an index is."""
        self._check("node", i, self.n_nodes)
        if i < self.features.stop:
            return NodeKind.FEATURE
        if i < self.errors.stop:
            return NodeKind.ERROR
        return NodeKind.TOKEN if i < self.tokens.stop else NodeKind.LOGIT

    def error_coordinates(self, i: int) -> tuple[int, int]:
        """(layer, position) of an error node."""
        self._require(i, NodeKind.ERROR)
        layer, pos = divmod(i - self.errors.start, self.n_pos)
        return layer, pos

    def position_of(self, i: int) -> int:
        """Position of a token node."""
        self._require(i, NodeKind.TOKEN)
        return i - self.tokens.start

    def target_of(self, i: int) -> int:
        """Which target a logit node is."""
        self._require(i, NodeKind.LOGIT)
        return i - self.logits.start

    # Sources by layer and position

    def source_parts(self, feature_parts: Int64[Tensor, " feature"]) -> Int64[Tensor, " source"]:
        """The part every source belongs to; an error's is its layer, a token's `TOKEN_LAYER`."""
        errors = torch.arange(self.n_layers).repeat_interleave(self.n_pos)
        tokens = torch.full((self.n_pos,), TOKEN_LAYER, dtype=torch.int64)
        return torch.cat([feature_parts, errors, tokens])

    def source_positions(
        self, feature_positions: Int64[Tensor, " feature"]
    ) -> Int64[Tensor, " source"]:
        """The position every source writes at."""
        errors = torch.arange(self.n_pos).repeat(self.n_layers)
        return torch.cat([feature_positions, errors, torch.arange(self.n_pos)])

    def places(
        self, parts: Int64[Tensor, " node"], positions: Int64[Tensor, " node"]
    ) -> Int64[Tensor, " node"]:
        """One number for each (part, position), part-major: the order of features and errors."""
        return parts * self.n_pos + positions

    # Fewer features

    def with_features(self, n_features: int) -> NodeLayout:
        """The layout of a graph with another number of features."""
        return replace(self, n_features=n_features)

    def nodes_with(self, features: Int64[Tensor, " chosen"]) -> Int64[Tensor, " remaining"]:
        """The nodes that are left with these features alone, in their new order."""
        return torch.cat([features, torch.arange(self.n_features, self.n_nodes)])

    def _require(self, i: int, kind: NodeKind) -> None:
        if self.kind(i) is not kind:
            article = "an" if kind is NodeKind.ERROR else "a"
            raise RequestError(f"Node {i} is a {self.kind(i)}, not {article} {kind}.")

    @staticmethod
    def _check(name: str, i: int, size: int) -> None:
        if not 0 <= i < size:
            raise RequestError(f"The graph has {size} {name}s (0 to {size - 1}), got {name} {i}.")
