"""Attribution of one prompt: selection of features by circuit-tracer's rule, and their edges.

Targets are attributed first; then, again and again, the active features that carry most of the
targets' influence *so far* are attributed next, until there are enough. Rows go straight to where a
graph stores them: no (node x node) matrix is made.

    result = attribute_prompt(replacement, context, input_ids, targets, settings)
    result.selected, result.edges

`via_upstream` does the same by circuit-tracer's own loop, for what `LinearRows` does not fit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from em_circuits.graphs.builder import EdgesBuilder
from em_circuits.graphs.edges import Edges
from em_circuits.graphs.layout import NodeLayout
from em_circuits.graphs.linear_rows import LinearRows
from em_circuits.graphs.offload import Scratch
from em_circuits.graphs.settings import AttributionSettings
from em_circuits.graphs.unpickle import circuit_tracer_record
from em_circuits.progress import Progress, no_progress


@dataclass(frozen=True, eq=False)
class Attributed:
    """Edges of the selected features.

    Attributes:
        selected: Active indices, ascending.
        edges: With the mass of active sources that were not selected.
        record: What else circuit-tracer's graph would hold, as JSON values.
    """

    selected: Int64[Tensor, " feature"]
    edges: Edges
    record: dict[str, Any]


def attribute_prompt(
    replacement: Any,
    context: Any,
    input_ids: Int64[Tensor, " pos"],
    targets: Any,
    settings: AttributionSettings,
    *,
    scratch: Scratch | None = None,
    progress: Progress = no_progress,
) -> Attributed:
    """Attribute a prompt by batched rows where they fit, else by circuit-tracer's own loop.

    Args:
        replacement: From `em_circuits.models.replacement.build_replacement`.
        context: Its attribution context of the prompt.
        input_ids: The prompt.
        targets: circuit-tracer's `AttributionTargets`: logit directions, and their weights in the
            choice of features.
        settings: How many features, in what steps.
        scratch: File for rows that are too many for memory, which is cleared when they are packed;
            one in the system's temporary folder if None.
        progress: Called after every batch of feature rows.
    """
    from circuit_tracer.graph import Graph

    rows = LinearRows.of(replacement, context, input_ids)
    if rows is None:
        selected, edges = via_upstream(replacement, context, input_ids, targets, settings)
    else:
        selected, edges = select(rows, targets, settings, scratch=scratch, progress=progress)
    graph = Graph(  # circuit-tracer's, but for its edges
        input_string=replacement.tokenizer.decode(input_ids),
        input_tokens=input_ids,
        logit_targets=targets.logit_targets,
        logit_probabilities=targets.logit_probabilities,
        vocab_size=targets.vocab_size,
        active_features=context.activation_matrix.indices().T,
        activation_values=context.activation_matrix.values(),
        selected_features=selected,
        adjacency_matrix=torch.empty(0, 0),
        cfg=replacement.model_config,
        scan=replacement.scan,
    )
    return Attributed(selected, edges, circuit_tracer_record(graph))


def select(
    rows: LinearRows,
    targets: Any,
    settings: AttributionSettings,
    *,
    scratch: Scratch | None = None,
    progress: Progress = no_progress,
) -> tuple[Int64[Tensor, " feature"], Edges]:
    """Attribute targets, then features by their influence so far.

    Returns:
        Active indices of the selected features, ascending, and the graph's edges.
    """
    layout = rows.layout
    builder = EdgesBuilder(
        rows.layers,
        rows.positions,
        n_layers=layout.n_layers,
        n_pos=layout.n_pos,
        n_logits=len(targets),
        scratch=scratch,
    )
    vectors = targets.logit_vectors.to(rows.context.encoder_vecs)
    logit_rows = rows.targets(vectors, batch_size=settings.batch_size)
    builder.add_logits(torch.arange(len(targets)), logit_rows)
    weights = targets.logit_probabilities.detach().double().cpu()
    n_active = layout.n_features
    total = min(settings.max_feature_nodes or n_active, n_active)
    queue, done = torch.arange(n_active), 0
    while done < total:
        if total < n_active:
            # float32, as upstream ranks: ties there are ties here.
            influence = builder.influence(weights)[layout.features].float()
            influence[builder.visited] = -1.0
            order = torch.argsort(influence, descending=True, stable=True)
            queue = order[: min(settings.update_rows, total - done)].sort().values
        for batch in rows.groups(queue, settings.batch_size):
            builder.add_features(batch, rows.features(batch), causal=True)
            done += len(batch)
            progress("attribution", done, total)
    rows.forget()
    selected = builder.visited
    return selected, builder.build(selected)


def via_upstream(
    replacement: Any,
    context: Any,
    input_ids: Int64[Tensor, " pos"],
    targets: Any,
    settings: AttributionSettings,
) -> tuple[Int64[Tensor, " feature"], Edges]:
    """The same through `circuit_tracer.attribute`, whatever the backend and the transcoders."""
    from circuit_tracer import attribute

    batch = 1 << min(settings.batch_size, settings.update_rows).bit_length() - 1
    wanted = [
        (target.token_str, float(weight), vector)
        for target, weight, vector in zip(
            targets.logit_targets,
            targets.logit_probabilities.tolist(),
            targets.logit_vectors,
            strict=True,
        )
    ]
    with _recorded_masses(context) as masses, replacement.prepared(context):
        graph = attribute(
            input_ids,
            replacement,
            attribution_targets=wanted,
            batch_size=batch,
            update_interval=settings.update_rows // batch,
            max_feature_nodes=settings.max_feature_nodes,
        )
    selected = graph.selected_features.cpu()
    active = context.activation_matrix.indices().T.cpu()[selected]
    n_layers, n_pos, _ = context.activation_matrix.shape
    edges = Edges.from_dense(
        graph.adjacency_matrix.cpu(),
        NodeLayout(len(selected), n_layers, n_pos, len(targets)),
        active[:, 0].contiguous(),
        active[:, 1].contiguous(),
    )
    return selected, replace(edges, outside_mass=masses.outside(selected, edges.row_mass))


@dataclass
class _RowMasses:
    """Sum of absolute edges into each node, over *all* active sources, as attributed.

    circuit-tracer stores the columns of selected features only; the mass that the others carried
    is what a truncated graph does not cover.
    """

    targets: list[Tensor] = field(default_factory=list)
    """Per batch of targets, float64 ``[batch]``, in the targets' order."""
    features: dict[int, float] = field(default_factory=dict)
    """Active feature index -> mass of its row."""

    def outside(
        self, selected: Int64[Tensor, " feature"], inside: Float64[Tensor, " row"]
    ) -> Float64[Tensor, " row"]:
        """Mass of sources that were active but not selected, per row: features, then targets.

        Args:
            selected: Active indices of the feature nodes, in row order.
            inside: Sum of absolute edges of the same rows in the finished graph.
        """
        features = torch.tensor([self.features[i] for i in selected.tolist()], dtype=torch.float64)
        total = torch.cat([features, *self.targets])
        # The two sums run over the same float32 values; below their rounding there is nothing.
        rest = total - inside
        return torch.where(rest > 1e-12 * total, rest, torch.zeros_like(rest))


class _NotedRows:
    """Rows of a matrix, and which of them were read last."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows
        self.last: list[int] | None = None

    def __getitem__(self, index: Tensor) -> Tensor:
        self.last = index.tolist()
        return self._rows[index]


@contextlib.contextmanager
def _recorded_masses(context: Any) -> Iterator[_RowMasses]:
    """Note every attribution row's mass while `context` is used inside the block.

    Works with either backend's context: circuit-tracer asks ``encoder_vecs[indices]`` for the
    features whose rows it then computes; for targets it asks for none.
    """
    masses, encoder, compute = _RowMasses(), context.encoder_vecs, context.compute_batch
    noted = _NotedRows(encoder)

    def compute_batch(*args: Any, **kwargs: Any) -> Tensor:
        rows = compute(*args, **kwargs)
        mass = rows.double().abs().sum(1).cpu()
        features, noted.last = noted.last, None
        if features is None:
            masses.targets.append(mass)
        else:
            masses.features.update(zip(features, mass.tolist(), strict=True))
        return rows

    context.encoder_vecs, context.compute_batch = noted, compute_batch
    try:
        yield masses
    finally:
        context.encoder_vecs = encoder
        del context.compute_batch
