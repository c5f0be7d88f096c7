"""One part of a basis: nodes that read one activation of the model and write into later ones.

A part is one layer's transcoder, one layer's neurons or one LoRA module. Its node i at position p
has, with x what the part reads at p,

    a_i    = activation(x)_i                       the real one, gates and all
    live_i = x -> a_i with its gate fixed          differentiable; equal to a_i where i is active
    w_ik   = written(i, k)                         what a_i = 1 adds at p to the k-th write site

Laws, which `tests/em_circuits/bases` runs every part through: `live` equals `activations` at active
nodes; its derivative is that of finite differences; the sum of ``a_i w_i`` is what the part claims
to explain of its write site (`explained`). A new basis is one file with one such class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from em_circuits.models.sites import Site


class Stage(IntEnum):
    """Where in a layer a part reads; a part can only read what parts of lower order wrote."""

    EMBEDDING = 0
    ATTENTION_INPUT = 1
    ATTENTION_OUTPUT = 2
    MLP_INPUT = 3
    MLP_HIDDEN = 4


N_STAGES = len(Stage)


@dataclass(frozen=True)
class Part(ABC):
    """Nodes that read one activation.

    Attributes:
        basis: Name of the basis, as outputs print it.
        name: Of the part within the basis.
        layer: Layer it reads in.
        stage: Where in that layer.
        read: The site whose activation it reads.
        writes: The sites it writes into; one, but for cross-layer transcoders.
        n_nodes: Node ids are 0 to this number minus one.
        first_position: First position that has nodes. Transcoder features begin at 1, since
            circuit-tracer zeroes those of the beginning-of-sequence token.
        module: What names of an adapter's ranks begin with: the module's last name, and its
            parent's where two of a layer have the same (``mlp_c_proj``). Empty for features.
    """

    basis: str
    name: str
    layer: int
    stage: Stage
    read: Site
    writes: tuple[Site, ...]
    n_nodes: int
    first_position: int = field(default=0, kw_only=True)
    module: str = field(default="", kw_only=True)

    def ids(self, nodes: Int64[Tensor, " op"]) -> Int64[Tensor, " op"]:
        """Ids in the whole basis, of nodes by their number in a part that holds only some."""
        return nodes

    @property
    def order(self) -> int:
        """Rank of the place where it reads: edges run from lower to higher orders."""
        return N_STAGES * self.layer + self.stage

    @abstractmethod
    def activations(self, x: Float[Tensor, "*batch d_read"]) -> Float[Tensor, "*batch node"]:
        """Every node's activation."""

    @abstractmethod
    def live(
        self, x: Float[Tensor, "*batch op d_read"], ids: Int64[Tensor, " op"]
    ) -> Float[Tensor, "*batch op"]:
        """Activation of node ``ids[i]`` on ``x[..., i, :]``, gate fixed; differentiable."""

    def real(
        self, x: Float[Tensor, "row op d_read"], ids: Int64[Tensor, " op"]
    ) -> Float[Tensor, "row op"]:
        """Activation of node ``ids[i]`` on ``x[:, i]``, gates and all."""
        every = self.activations(x)
        return every.gather(-1, ids.expand(x.shape[:2])[..., None])[..., 0]

    @property
    def encodes_whole(self) -> bool:
        """Whether `real` computes every node to know one."""
        return True

    @abstractmethod
    def written(self, ids: Int64[Tensor, " op"], write: int = 0) -> Float[Tensor, "op d_write"]:
        """What each node adds to a write site per unit of activation."""

    @abstractmethod
    def explained(self, x: Float[Tensor, "pos d_read"]) -> Float[Tensor, "pos d_write"]:
        """The sum of every node's write into the first site."""

    def scores(
        self,
        activations: Float[Tensor, "pos node"],
        gradients: Sequence[Float[Tensor, "target pos d_write"]],
    ) -> Float[Tensor, "target pos node"]:
        """First-order effects ``a_i w_i . d target / d write site`` of every node."""
        total = torch.zeros(
            (len(gradients[0]), *activations.shape), device=activations.device, dtype=torch.float32
        )
        ids = self.active_ids(activations)
        for k, gradient in enumerate(gradients):
            vectors = self.written(ids, k).to(gradient)
            total[..., ids] += torch.einsum("tpd,nd->tpn", gradient, vectors).float()
        return total * activations

    def active_ids(self, activations: Float[Tensor, "pos node"]) -> Int64[Tensor, " op"]:
        """Node ids that are active at some position."""
        active: Bool[Tensor, " node"] = (activations != 0).any(0)
        return active.nonzero()[:, 0]
