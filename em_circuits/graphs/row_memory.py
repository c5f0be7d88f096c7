"""Memory of a batch of full or measured edges, by the model's sizes.

Beside the model, one pass over a prompt of p tokens keeps for differentiation, per layer, what its
MLP, its attention and its norms save, and each row of a batched pass takes

    b p (writes)                            a row's derivative at every write site
    max(4 b p d_mlp, (b + 8) heads p^2)   the largest of one layer's MLP and attention
    16 p d_model                            the stream, norms in float32
    b (nodes of the largest part) (its widths)

with b bytes a value, so that a budget gives the number of rows:

    RowMemory.of(model, nodes, n_targets, n_pos).rows_within(max_memory)
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from em_circuits.graphs.held import Nodes
from em_circuits.models import Model
from em_circuits.models.sites import Site
from pivotal_tokens.errors import RequestError

_FLOAT = 4


@dataclass(frozen=True)
class RowMemory:
    """What edges among held nodes take, beside the models.

    Attributes:
        n_layers: Layers of the model.
        n_pos: Tokens of the prompt.
        d_model: Width of the residual stream.
        d_mlp: Width of an MLP.
        n_heads: Attention heads.
        d_vocab: Width of the logits.
        value_bytes: Of one of the model's numbers.
        write_width: Sum of the widths of all sites that nodes write into.
        part_width: Most values of a part: nodes times what each reads, is chosen from and writes.
        n_nodes: Nodes.
        n_targets: Targets.
    """

    n_layers: int
    n_pos: int
    d_model: int
    d_mlp: int
    n_heads: int
    d_vocab: int
    value_bytes: int
    write_width: int
    part_width: int
    n_nodes: int
    n_targets: int

    @classmethod
    def of(cls, model: Model, nodes: Nodes, n_targets: int, n_pos: int) -> RowMemory:
        """The sizes of a prompt's edges."""
        decoder = model.decoder
        d_model = decoder.d_model
        writes, widest = 0, 0
        for i, part in enumerate(nodes.parts):
            n = len(range(*nodes.of_part(i).indices(len(nodes))))
            if n:
                writes += sum(_width(site, d_model) for site in part.writes)
                reads = _width(part.read, d_model)
                widest = max(widest, n * (reads + part.n_nodes + d_model))
        return cls(
            n_layers=len(decoder.layers),
            n_pos=n_pos,
            d_model=d_model,
            d_mlp=decoder.d_mlp,
            n_heads=decoder.n_heads,
            d_vocab=decoder.d_vocab,
            value_bytes=model.dtype.itemsize,
            write_width=writes,
            part_width=widest,
            n_nodes=len(nodes),
            n_targets=n_targets,
        )

    @property
    def row_bytes(self) -> int:
        """What each row at once takes."""
        b, p = self.value_bytes, self.n_pos
        mlp = 4 * b * p * self.d_mlp
        attention = (b + 8) * self.n_heads * p**2
        stream = 16 * p * self.d_model
        return b * p * self.write_width + max(mlp, attention) + stream + b * self.part_width

    @property
    def fixed_bytes(self) -> int:
        """What does not depend on the number of rows: saved for differentiation, and the edges."""
        b, p = self.value_bytes, self.n_pos
        layer = p * (5 * b * self.d_mlp + (8 * b + 8) * self.d_model)
        layer += (3 * b + 4) * self.n_heads * p**2
        edges = 3 * (self.n_nodes + self.n_targets) * (self.n_nodes + p)
        logits = (4 + 2 * self.n_targets) * self.d_vocab
        return self.n_layers * layer + _FLOAT * (edges + logits)

    def rows_within(self, max_memory: int) -> int:
        """The most rows at once that stay within a budget.

        Raises:
            RequestError: If a single row does not fit.
        """
        rows = (max_memory - self.fixed_bytes) // self.row_bytes
        if rows < 1:
            needed = self.fixed_bytes + self.row_bytes
            raise RequestError(
                f"--max-memory {_gb(max_memory)} GB is too little: edges of {self.n_nodes} nodes "
                f"and {self.n_pos} tokens take {_gb(self.fixed_bytes)} GB and {_gb(self.row_bytes)}"
                f" GB a row, {_gb(needed)} GB in all; allow that much or ask for fewer --nodes"
            )
        return rows


def _width(site: Site, d_model: int) -> int:
    """Width of what stands at a site."""
    if isinstance(site.module, nn.Linear):
        linear = site.module
        return linear.in_features if site.side == "input" else linear.out_features
    return d_model


def _gb(size: int) -> str:
    return f"{size / 1e9:.3f}" if size >= 1e7 else f"{size / 1e9:.6f}"
