"""Directions of one activation as nodes: whole outputs of MLPs or attention heads, in a graph.

Node i belongs to one position and reads and writes the same site,

    a_i = <x - origin_i, d_i>,      w_i = d_i,      |d_i| = 1

so with ``origin`` what the site holds on another prompt and ``d`` the direction from there,
``a w`` is all that the site has here and not there. Nodes are made by hand, each at its own
position (`em_circuits.interventions.attribution_patching`).
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor

from em_circuits.bases.part import Part


@dataclass(frozen=True)
class DirectionPart(Part):
    """Directions of one site.

    Attributes:
        origin: Where each node's activation is 0.
        directions: Of length 1.
    """

    origin: Float[Tensor, "node d_read"]
    directions: Float[Tensor, "node d_read"]

    def activations(self, x: Float[Tensor, "*batch d_read"]) -> Float[Tensor, "*batch node"]:
        return ((x[..., None, :] - self.origin) * self.directions).sum(-1)

    def live(
        self, x: Float[Tensor, "*batch op d_read"], ids: Int64[Tensor, " op"]
    ) -> Float[Tensor, "*batch op"]:
        return ((x - self.origin[ids]) * self.directions[ids]).sum(-1)

    def written(self, ids: Int64[Tensor, " op"], write: int = 0) -> Float[Tensor, "op d_write"]:
        return self.directions[ids]

    def explained(self, x: Float[Tensor, "pos d_read"]) -> Float[Tensor, "pos d_write"]:
        return self.activations(x) @ self.directions
