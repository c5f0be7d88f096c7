"""Settings of attribution: which graph comes out, and in what memory.

The command line makes its options from them, so nothing heavy is imported here.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from em_circuits.feature import parse_node
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen

SelectBy = Literal["probability", "contrast"]
EdgeKind = Literal["full", "measured", "frozen"]
ChooseBy = Literal["gradient", "bound"]
BasisName = Literal["transcoder", "neuron", "adapter"]
NODES = 512
"""Default number of nodes of a graph with full edges."""
ATTRIBUTION_VERSION = 1
"""Raised whenever the same request would give other numbers, beyond rounding; part of every key."""


class AttributionSettings(Frozen, use_attribute_docstrings=True):
    """Settings of attribution; all but `batch_size` and `max_memory` are part of a graph's key."""

    edges: EdgeKind = "full"
    """`full`: the real model's, everything that is no node responds; `measured`: those, and every
    edge measured beside them; `frozen`: circuit-tracer's, with attention patterns, norm scales and
    errors held."""
    nodes: int | None = Field(default=NODES, ge=1)
    """Nodes of a graph with full edges, those of the largest first-order effect; None keeps every
    active one."""
    mass: float | None = Field(default=None, gt=0, le=1)
    """With full edges: as many nodes as hold this share of all first-order effects, instead of
    `nodes`."""
    choose_by: ChooseBy = "gradient"
    """With full edges: nodes by the size of their first-order effect, or of its `bound`, which no
    angle between write and gradient can exceed."""
    named: tuple[str, ...] = ()
    """With full edges: nodes by name instead of by size, as `LAYER/POSITION/ID`, `LAYER/ID` for
    every position, or `MODULE:LAYER/POSITION/RANK`."""
    basis: tuple[BasisName, ...] = ()
    """With full edges: what can be a node; the model's own features (of its transcoders, or neurons
    without any) if not given. Adapter ranks are nodes of the merged model alone."""
    measure: bool = False
    """With full edges: measure every edge, too, by really removing its source."""
    top_k: int = Field(default=10, ge=1)
    """Tokens of each model whose union becomes the logit nodes of both graphs."""
    max_feature_nodes: int | None = Field(default=8192, ge=1)
    """Feature nodes per graph, at most, whatever the edges; None keeps every active feature."""
    select_by: SelectBy = "probability"
    """What weighs the choice of feature nodes: each target's probability, or 1/n of its label's
    side (evil and safe alike; unsure and unlabelled targets weigh nothing)."""
    batch_size: int = Field(default=128, ge=1)
    """Attribution rows per backward pass, at most; not part of the key."""
    max_memory: int | None = Field(default=None, ge=1)
    """Bytes that an attribution may take beside the models; a smaller batch size follows. Not part
    of the key."""
    update_rows: Literal[256, 512, 1024, 2048] = 1024
    """Rows between two rankings of what to attribute next. circuit-tracer counts them in batches,
    so that its batch size changes which features a truncated graph has; here it does not."""

    @model_validator(mode="before")
    @classmethod
    def _measured_are_full(cls, values: Any) -> Any:
        """`measured` is `full` with `measure`, so that both have one key."""
        if isinstance(values, dict) and values.get("edges") == "measured":
            return values | {"edges": "full", "measure": True}
        return values

    @model_validator(mode="after")
    def _names_of_full_edges(self) -> AttributionSettings:
        if self.named and self.edges == "frozen":
            raise RequestError("nodes are named for full edges; frozen ones take the largest")
        for name in self.named:
            parse_node(name)
        return self

    @property
    def limit(self) -> int | None:
        """Nodes at most; None for no limit."""
        if self.edges == "frozen":
            return self.max_feature_nodes
        given = [n for n in (self.nodes, self.max_feature_nodes) if n is not None]
        return None if self.mass is not None else min(given, default=None)

    @property
    def parameters(self) -> dict[str, Any]:
        """What of these settings decides a graph's content, as its key and header hold it."""
        if self.edges == "frozen":
            return self.model_dump(
                include={"top_k", "max_feature_nodes", "select_by", "update_rows"}
            )
        chosen = {"edges", "basis", "mass", "choose_by", "measure", "top_k", "select_by"}
        dumped = self.model_dump(mode="json", include=chosen)
        if self.named:
            return dumped | {"named": sorted(set(self.named)), "max_feature_nodes": None}
        return dumped | {"max_feature_nodes": self.limit}
