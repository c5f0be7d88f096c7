"""Which features does a graph keep, and what are its edges?

Targets are attributed first; then, again and again, the active features that carry most of the
targets' influence *so far* are attributed next (circuit-tracer's rule), until there are enough.
Rows go straight to where a graph keeps them: no (node x node) matrix is made.

    found = attribute_prompt(replacement, context, input_ids, targets, limits)
    found.selected, found.edges

`via_upstream` does the same by circuit-tracer's own loop, for what `LinearRows` does not fit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.targets import AttributionTargets
from circuit_tracer.graph import Graph
from jaxtyping import Int64
from torch import Tensor

from em_circuits.graphs.builder import EdgesBuilder
from em_circuits.graphs.context import LinearRows, recorded_masses
from em_circuits.graphs.edges import Edges
from em_circuits.graphs.layout import NodeLayout
from em_circuits.graphs.unpickle import circuit_tracer_record
from em_circuits.progress import Progress, no_progress


@dataclass(frozen=True)
class Limits:
    """How much is attributed, and in what steps.

    Attributes:
        max_feature_nodes: Features kept; None keeps every active one.
        update_rows: Feature rows between two rankings; it decides what is selected.
        batch_size: Rows per backward pass; it decides nothing but speed and memory.
        scratch: Folder for rows that are too many for memory; the system's if None.
    """

    max_feature_nodes: int | None
    update_rows: int
    batch_size: int
    scratch: Path | None = None


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
    targets: AttributionTargets,
    limits: Limits,
    *,
    progress: Progress = no_progress,
) -> Attributed:
    """Attribute a prompt the fast way where it fits, else circuit-tracer's.

    Args:
        replacement: From `em_circuits.models.replacement.build_replacement`.
        context: Its attribution context of the prompt.
        input_ids: The prompt.
        targets: Logit directions and their weights in the choice of features.
        limits: How much.
        progress: Called after every batch of feature rows.
    """
    rows = LinearRows.of(replacement, context, input_ids)
    if rows is None:
        return via_upstream(replacement, context, input_ids, targets, limits)
    selected, edges = select(rows, targets, limits, progress=progress)
    empty = torch.empty(0, 0)
    graph = _graph(replacement, context, input_ids, targets, selected=selected, matrix=empty)
    return Attributed(selected, edges, circuit_tracer_record(graph))


def select(
    rows: LinearRows,
    targets: AttributionTargets,
    limits: Limits,
    *,
    progress: Progress = no_progress,
) -> tuple[Int64[Tensor, " feature"], Edges]:
    """Attribute targets, then features by their influence so far.

    Returns:
        Active indices of the selected features, ascending, and the graph's edges.
    """
    builder = EdgesBuilder(
        rows.layers,
        rows.positions,
        n_layers=rows.n_layers,
        n_pos=rows.n_pos,
        n_logits=len(targets),
        scratch=limits.scratch,
    )
    vectors = targets.logit_vectors.to(rows.context.encoder_vecs)
    made = rows.targets(vectors, batch_size=limits.batch_size)
    builder.add_logits(torch.arange(len(targets)), made)
    weights = targets.logit_probabilities.detach().double().cpu()
    total = min(limits.max_feature_nodes or rows.n_active, rows.n_active)
    pending, done = torch.arange(rows.n_active), 0
    while done < total:
        queue = pending
        if total < rows.n_active:
            # float32, as upstream ranks: what it cannot tell apart is not told apart here.
            influence = builder.influence(weights)[: rows.n_active].float()
            influence[builder.visited] = -1.0
            order = torch.argsort(influence, descending=True, stable=True)
            queue = order[: min(limits.update_rows, total - done)].sort().values
        for batch in rows.groups(queue, limits.batch_size):
            builder.add_features(batch, rows.features(batch))
            done += len(batch)
            progress("attribution", done, total)
    rows.forget()
    selected = builder.visited
    return selected, builder.build(selected)


def via_upstream(
    replacement: Any,
    context: Any,
    input_ids: Int64[Tensor, " pos"],
    targets: AttributionTargets,
    limits: Limits,
) -> Attributed:
    """The same through `circuit_tracer.attribute`, whatever the backend and the transcoders."""
    batch = 1 << min(limits.batch_size, limits.update_rows).bit_length() - 1
    given = [
        (target.token_str, float(weight), vector)
        for target, weight, vector in zip(
            targets.logit_targets,
            targets.logit_probabilities.tolist(),
            targets.logit_vectors,
            strict=True,
        )
    ]
    with recorded_masses(context) as masses, replacement.prepared(context):
        graph = attribute(
            input_ids,
            replacement,
            attribution_targets=given,
            batch_size=batch,
            update_interval=limits.update_rows // batch,
            max_feature_nodes=limits.max_feature_nodes,
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
    outside = masses.outside(selected, edges.row_mass)
    named = _graph(
        replacement,
        context,
        input_ids,
        targets,
        selected=selected,
        matrix=graph.adjacency_matrix[:0, :0],
    )
    return Attributed(selected, replace(edges, outside_mass=outside), circuit_tracer_record(named))


def _graph(
    replacement: Any,
    context: Any,
    input_ids: Tensor,
    targets: AttributionTargets,
    *,
    selected: Tensor,
    matrix: Tensor,
) -> Graph:
    """circuit-tracer's graph but for its edges."""
    return Graph(
        input_string=replacement.tokenizer.decode(input_ids),
        input_tokens=input_ids,
        logit_targets=targets.logit_targets,
        logit_probabilities=targets.logit_probabilities,
        vocab_size=targets.vocab_size,
        active_features=context.activation_matrix.indices().T,
        activation_values=context.activation_matrix.values(),
        selected_features=selected,
        adjacency_matrix=matrix,
        cfg=replacement.model_config,
        scan=replacement.scan,
    )
