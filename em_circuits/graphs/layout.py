"""Which index of an attribution graph is which node?

Nodes stand in this order, and rows are targets, columns sources (circuit-tracer's convention)::

    [selected features by (layer, position, id) | errors, layer-major | tokens | logits]

    layout = NodeLayout(n_features=3, n_layers=2, n_pos=4, n_logits=2)
    direct = adjacency[layout.logits, layout.features]
    layout.kind(layout.token_index(0))  # NodeKind.TOKEN

Nobody outside this file computes an offset.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Int64
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
        n_layers: Layers that carry a transcoder, hence error nodes.
        n_pos: Prompt tokens, the BOS included.
        n_logits: Targets.
    """

    n_features: int
    n_layers: int
    n_pos: int
    n_logits: int

    def __post_init__(self) -> None:
        for name in ("n_features", "n_layers", "n_pos", "n_logits"):
            if getattr(self, name) < 0:
                raise RequestError(f"{name} must be at least 0, got {getattr(self, name)}.")

    @property
    def features(self) -> slice:
        """Selected features."""
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
        return slice(0, self.tokens.stop)

    @property
    def n_sources(self) -> int:
        """How many nodes can be a source."""
        return self.tokens.stop

    @property
    def n_rows(self) -> int:
        """Rows that can hold edges: features, then logits."""
        return self.n_features + self.n_logits

    def logits_of(self, n_rows: int) -> slice:
        """The logits' rows of a matrix over all nodes, or over features and logits: the last."""
        return slice(n_rows - self.n_logits, n_rows)

    @property
    def n_nodes(self) -> int:
        """All nodes."""
        return self.logits.stop

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
        if self.kind(i) is not NodeKind.ERROR:
            raise RequestError(f"Node {i} is a {self.kind(i)}, not an error.")
        layer, pos = divmod(i - self.errors.start, self.n_pos)
        return layer, pos

    def source_layers(self, feature_layers: Int64[Tensor, " feature"]) -> Int64[Tensor, " source"]:
        """The layer every source writes in; a token's is `TOKEN_LAYER`."""
        errors = torch.arange(self.n_layers).repeat_interleave(self.n_pos)
        tokens = torch.full((self.n_pos,), TOKEN_LAYER, dtype=torch.int64)
        return torch.cat([feature_layers, errors, tokens])

    def source_positions(
        self, feature_positions: Int64[Tensor, " feature"]
    ) -> Int64[Tensor, " source"]:
        """The position every source writes at."""
        errors = torch.arange(self.n_pos).repeat(self.n_layers)
        return torch.cat([feature_positions, errors, torch.arange(self.n_pos)])

    @staticmethod
    def _check(name: str, i: int, size: int) -> None:
        if not 0 <= i < size:
            raise RequestError(f"The graph has {size} {name}s (0 to {size - 1}), got {name} {i}.")
