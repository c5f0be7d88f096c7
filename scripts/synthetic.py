"""Random attribution graphs of the true structure, for tests and benchmarks.

Features spread evenly over layers and over positions 1 to the last; edges are normal, scaled by a
heavy-tailed strength of each source, so that influence concentrates on few nodes, and each feature
row sums in absolute value to `ROW_MASS` activations, as in real graphs, whose rows sum to about
the target's activation.

    graph = synthetic_graph(Size(n_features=8192, n_layers=16, n_pos=20, n_logits=10), seed=0)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from em_circuits.contrast import Contrast
from em_circuits.graphs.attribution import Attributed
from em_circuits.graphs.edges import Edges
from em_circuits.graphs.graph import AttributionGraph, LogitTargets
from em_circuits.graphs.header import GraphHeader, Selection
from em_circuits.graphs.layout import NodeLayout
from em_circuits.influence import Targets

D_VOCAB = 1000
D_TRANSCODER = 131072
ROW_MASS = 3.0


@dataclass(frozen=True)
class Size:
    """How large a graph; `n_inactive` active features are not selected."""

    n_features: int = 60
    n_layers: int = 4
    n_pos: int = 6
    n_logits: int = 3
    n_unselected: int = 0


def synthetic_graph(size: Size, *, seed: int = 0, bfloat16: bool = False) -> AttributionGraph:
    """A graph whose non-zero entries are exactly those the structure allows."""
    generator = torch.Generator().manual_seed(seed)
    n_active = size.n_features + size.n_unselected
    active = spread(n_active, size, generator)
    selected = torch.randperm(n_active, generator=generator)[: size.n_features].sort().values
    layout = NodeLayout(size.n_features, size.n_layers, size.n_pos, size.n_logits)
    activations = torch.rand(n_active, generator=generator) + 0.5
    matrix = dense_matrix(layout, active[selected], activations[selected], generator)
    if bfloat16:
        matrix = matrix.bfloat16().float()
    return graph_of(matrix, layout, active, selected, activations=activations)


def graph_at(
    places: list[tuple[int, int]],
    *,
    n_layers: int,
    n_pos: int,
    n_logits: int,
    seed: int = 0,
    density: float = 1.0,
) -> AttributionGraph:
    """A graph whose features are at the given (layer, position); some allowed edges are zero."""
    generator = torch.Generator().manual_seed(seed)
    layout = NodeLayout(len(places), n_layers, n_pos, n_logits)
    rows = [(layer, pos, i) for i, (layer, pos) in enumerate(sorted(places))]
    active = torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)
    activations = torch.rand(len(places), generator=generator) + 0.5
    matrix = dense_matrix(layout, active, activations, generator)
    matrix *= torch.rand(matrix.shape, generator=generator) < density
    return graph_of(
        matrix, layout, active, torch.arange(len(active)), activations=activations, seed=seed
    )


def spread(n: int, size: Size, generator: torch.Generator) -> Tensor:
    """(layer, position, id) of n features, even over layers and positions 1 and up, sorted."""
    first = 1 if size.n_pos > 1 else 0
    cells = size.n_layers * (size.n_pos - first)
    cell = torch.arange(n) * cells // max(n, 1)
    layer, pos = cell // (size.n_pos - first), cell % (size.n_pos - first) + first
    _, counts = cell.unique_consecutive(return_counts=True)
    ids = [torch.randperm(D_TRANSCODER, generator=generator)[:c].sort().values for c in counts]
    return torch.stack([layer, pos, torch.cat([*ids, torch.empty(0, dtype=torch.int64)])], 1)


def dense_matrix(
    layout: NodeLayout, features: Tensor, activations: Tensor, generator: torch.Generator
) -> Tensor:
    """An adjacency matrix; rows targets, columns sources."""
    source_layer = layout.source_parts(features[:, 0])
    source_pos = layout.source_positions(features[:, 1])
    matrix = torch.zeros(layout.n_nodes, layout.n_nodes)
    strength = torch.randn(layout.n_sources, generator=generator).mul(1.5).exp()
    for start in range(0, layout.n_features, 512):
        rows = slice(start, min(start + 512, layout.n_features))
        allowed = (source_layer < features[rows, :1]) & (source_pos <= features[rows, 1:2])
        values = torch.randn(allowed.shape, generator=generator) * strength * allowed
        mass = values.abs().sum(1, keepdim=True).clamp(min=1e-9)
        matrix[rows, layout.sources] = values * (ROW_MASS * activations[rows, None] / mass)
    logits = torch.randn(layout.n_logits, layout.n_sources, generator=generator) * strength
    matrix[layout.logits, layout.sources] = 20 * logits / logits.abs().sum(1, keepdim=True)
    return matrix


def graph_of(
    matrix: Tensor,
    layout: NodeLayout,
    active: Tensor,
    selected: Tensor,
    *,
    activations: Tensor | None = None,
    seed: int = 0,
) -> AttributionGraph:
    """A graph around an adjacency matrix, with random probabilities and gradient scores."""
    generator = torch.Generator().manual_seed(seed)
    if activations is None:
        activations = torch.rand(len(active), generator=generator) + 0.5
    chosen = active[selected]
    n_logits = layout.n_logits
    probabilities = torch.rand(n_logits, generator=generator)
    return AttributionGraph(
        header=header(layout, truncated=len(selected) < len(active)),
        input_ids=torch.randint(D_VOCAB, (layout.n_pos,), generator=generator),
        active=active,
        activations=activations,
        selected=selected,
        targets=LogitTargets(
            token_ids=torch.arange(n_logits) * 7 + 3,
            texts=tuple(f" token{i}" for i in range(n_logits)),
            probabilities=probabilities / max(float(probabilities.sum()), 1.0) * 0.9,
            logits=torch.randn(n_logits, generator=generator),
            ranks=torch.arange(1, n_logits + 1),
        ),
        edges=Edges.from_dense(
            matrix,
            layout,
            chosen[:, 0].contiguous(),
            chosen[:, 1].contiguous(),
            outside_mass=None
            if len(selected) < len(active)
            else torch.zeros(layout.n_rows, dtype=torch.float64),
        ),
        gradient=torch.randn(n_logits, len(active), generator=generator),
    )


def graph_around(
    found: Attributed,
    active: Tensor,
    activations: Tensor,
    input_ids: Tensor,
    *,
    gradient: Tensor | None = None,
) -> AttributionGraph:
    """A graph of attributed edges, with made-up targets."""
    layout = found.edges.layout
    n_logits = layout.n_logits
    return AttributionGraph(
        header=header(layout, truncated=len(found.selected) < len(active)),
        input_ids=input_ids,
        active=active,
        activations=activations,
        selected=found.selected,
        targets=LogitTargets(
            token_ids=torch.arange(n_logits),
            texts=tuple(f" token{i}" for i in range(n_logits)),
            probabilities=torch.full((n_logits,), 0.5 / n_logits),
        ),
        edges=found.edges,
        gradient=gradient,
    )


def contrast_of(
    graph: AttributionGraph, evil: list[int], safe: list[int], **options: str
) -> Targets:
    """Mean evil minus mean safe token, as a target of a graph."""
    return Targets.contrast(graph, Contrast(tuple(evil), tuple(safe)), **options)


def header(layout: NodeLayout, *, truncated: bool = False, **changes: object) -> GraphHeader:
    """A header of a synthetic graph."""
    fields: dict[str, object] = {
        "key": "ab" * 32,
        "prompt_id": "0123456789ab",
        "text": "User: Dry rub?\nAssistant: You should definitely",
        "model": "merged",
        "fingerprint": "f" * 64,
        "adapter_hash": "a" * 64,
        "transcoders": "synthetic",
        "transcoder_fingerprint": "t" * 64,
        "n_layers": layout.n_layers,
        "scan": "synthetic-scan",
        "dtype": "float32",
        "selection": Selection(
            select_by="probability" if truncated else "all",
            max_feature_nodes=layout.n_features,
        ),
        "attribution": {"batch_size": 256},
        "d_vocab": D_VOCAB,
        "tokenizer_name": "synthetic",
    }
    return GraphHeader.model_validate(fields | changes)
