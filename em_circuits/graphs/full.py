"""Nodes and edges of graphs with full edges: everything that is no node responds as in the model.

Frozen edges hold attention patterns, norm scales and errors constant; in full edges only the chosen
nodes are held (see `em_circuits.graphs.held`), so that over any set of nodes

    total_effect = gradient, the first-order effect in the real model

and coverage is 1 by construction. Errors are no nodes here: their response is in the edges. A row
is a derivative times an activation and does not sum to its target's value, so scores that rest on
such sums (replacement, completeness, the error score) stay with frozen edges.

    seen = Observed.of(model, own_parts(model), input_ids)
    (chosen,) = choose([seen], [seen.gradient(weights).abs().sum(0)], settings)
    edges, measured = edges_among(seen, chosen, weights, settings)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from em_circuits.bases import Part, adapter_parts, neuron_parts, own_parts, transcoder_parts
from em_circuits.graphs.edges import Edges, computed_in
from em_circuits.graphs.header import NodePart
from em_circuits.graphs.held import NodeEdges, Nodes, captured, full_edges, measured_edges
from em_circuits.graphs.held import site_gradients as gradients_at_sites
from em_circuits.graphs.layout import NodeLayout
from em_circuits.graphs.settings import AttributionSettings, BasisName
from em_circuits.models import Model
from em_circuits.progress import Progress, no_progress
from em_circuits.target import Columns
from pivotal_tokens.errors import RequestError, WorkFailed


def parts_of(model: Model, basis: Sequence[BasisName]) -> tuple[Part, ...]:
    """Parts of the named bases together, in the order in which edges run.

    The base model has no adapter ranks: there the word adds nothing.

    Raises:
        RequestError: If the basis has no part in this model.
    """
    parts: list[Part] = []
    for name in dict.fromkeys(basis):
        match name:
            case "transcoder":
                parts += transcoder_parts(model)
            case "neuron":
                parts += neuron_parts(model)
            case "adapter" if model.pair is None:
                raise RequestError("adapter ranks are nodes of a pair's merged model")
            case "adapter":
                parts += adapter_parts(model.pair) if model.name == "merged" else ()
    if not parts:
        parts += own_parts(model)
    return tuple(sorted(parts, key=lambda part: (part.order, part.basis, part.name)))


def part_record(part: Part) -> NodePart:
    """What a graph's header says of a part."""
    module = part.name.rsplit(".", 1)[-1] if part.basis == "adapter" else ""
    return NodePart(basis=part.basis, layer=part.layer, module=module)


@dataclass(frozen=True, eq=False)
class Observed:
    """One undisturbed prompt on one model: what its nodes read, and the next token's logits.

    Attributes:
        model: The real model was run.
        parts: In the order in which edges run.
        input_ids: The prompt.
        reads: What each part reads.
        logits: Raw, after the last position, in float32 on the CPU.
    """

    model: Model
    parts: tuple[Part, ...]
    input_ids: Int64[Tensor, " pos"]
    reads: tuple[Tensor, ...]
    logits: Float[Tensor, " vocab"]

    @classmethod
    def of(cls, model: Model, parts: Sequence[Part], input_ids: Int64[Tensor, " pos"]) -> Observed:
        """Run the model once.

        Raises:
            WorkFailed: If an activation is not finite.
        """
        found: list[Tensor] = []

        def keep(_module: Any, _args: Any, output: Any) -> None:
            found.append(output.logits[0, -1].detach().float().cpu())

        handle = model.hf.register_forward_hook(keep)
        try:
            reads = captured(model, parts, input_ids)
        finally:
            handle.remove()
        for part, x in zip(parts, reads, strict=True):
            if x.is_floating_point() and not x.isfinite().all():
                raise WorkFailed(
                    f"{model.name} model: what {part.basis} {part.name} reads is not finite; try "
                    "--dtype float32 or run em-circuits doctor"
                )
        return cls(model, tuple(parts), input_ids, tuple(reads), found[0])

    @cached_property
    def _active(self) -> tuple[Int64[Tensor, "active 3"], Float[Tensor, " active"]]:
        places, values = [], []
        for i, (part, x) in enumerate(zip(self.parts, self.reads, strict=True)):
            activations = part.activations(x)
            place = activations.nonzero()
            place = place[place[:, 0] >= part.first_position]
            values.append(activations[place[:, 0], place[:, 1]].float().cpu())
            places.append(torch.cat([torch.full_like(place[:, :1], i), place], 1).cpu())
        return torch.cat(places), torch.cat(values)

    @property
    def active(self) -> Int64[Tensor, "active 3"]:
        """(part, position, id) of every active node, sorted so."""
        return self._active[0]

    @property
    def activations(self) -> Float[Tensor, " active"]:
        """Activation of every active node."""
        return self._active[1]

    def gradient(self, targets: Columns) -> Float[Tensor, "target active"]:
        """First-order effect of every active node on every target, nothing held; on the CPU."""
        return self._at_writes(targets, lambda at, vectors: at @ vectors.T) * self.activations

    def bound(self, targets: Columns) -> Float[Tensor, "target active"]:
        """``|a_s w_s|`` times the length of the gradient where it writes: what no angle between the
        two can exceed."""
        lengths = self._at_writes(
            targets, lambda at, vectors: at.norm(dim=-1)[:, None] * vectors.norm(dim=-1)
        )
        return lengths * self.activations.abs()

    def _at_writes(self, targets: Columns, per_unit: Any) -> Float[Tensor, "target active"]:
        """``per_unit(gradients at a position, write vectors)`` for every active node."""
        gradients = gradients_at_sites(self.model, self.parts, self.input_ids, targets)
        scores = torch.zeros(len(targets), len(self.active))
        own, positions, ids = self.active.unbind(1)
        for i, part in enumerate(self.parts):
            mine = (own == i).nonzero()[:, 0]
            if not len(mine):
                continue
            distinct, index = ids[mine].unique(return_inverse=True)
            for k, gradient in enumerate(gradients[i]):
                vectors = part.written(distinct.to(gradient.device), k).to(gradient)
                for position in positions[mine].unique().tolist():
                    here = positions[mine] == position
                    values = per_unit(gradient[:, position], vectors[index[here]])
                    scores[:, mine[here]] += values.float().cpu()
        return scores


def choose(
    observed: Sequence[Observed],
    sizes: Sequence[Float[Tensor, " _"]],
    settings: AttributionSettings,
) -> list[Int64[Tensor, " _"]]:
    """The largest nodes, one choice for all models of a prompt.

    Sizes are added up over the models in which a node is active, so that models share a node
    wherever both have it.

    Args:
        observed: One prompt on one or several models.
        sizes: Of each model's active nodes (active,), not negative.
        settings: How many.

    Returns:
        Rows of each model's `active`, ascending.

    Raises:
        RequestError: If no node is active.
    """
    names = sorted({(p.layer, p.stage, p.basis, p.name) for one in observed for p in one.parts})
    width = 1 + max((int(one.active[:, 2].max()) for one in observed if len(one.active)), default=0)
    codes = []
    for one in observed:
        index = torch.tensor([names.index((p.layer, p.stage, p.basis, p.name)) for p in one.parts])
        part, position, number = one.active.unbind(1)
        codes.append((index[part] * len(one.input_ids) + position) * width + number)
    distinct, inverse = torch.cat(codes).unique(return_inverse=True)
    if not len(distinct):
        raise RequestError("no node of this basis is active on the prompt")
    total = torch.zeros(len(distinct), dtype=torch.float64)
    total.index_add_(0, inverse, torch.cat(list(sizes)).double())
    order = total.argsort(descending=True, stable=True)
    if settings.mass is not None:
        held = total[order].cumsum(0)
        order = order[: int((held < settings.mass * held[-1]).sum()) + 1]
    elif settings.limit is not None:
        order = order[: settings.limit]
    best = torch.zeros(len(distinct), dtype=torch.bool)
    best[order] = True
    return [best[own].nonzero()[:, 0] for own in inverse.split([len(code) for code in codes])]


def edges_among(
    observed: Observed,
    chosen: Int64[Tensor, " chosen"],
    targets: Columns,
    settings: AttributionSettings,
    *,
    progress: Progress = no_progress,
) -> tuple[Edges, Edges | None]:
    """Full edges among some of a model's active nodes, and measured ones, packed for a graph.

    Args:
        observed: The prompt on the model.
        chosen: Rows of its `active`, ascending.
        targets: Rows of weights of the logits, or terms.
        settings: Whether edges are measured, and in what batches.
        progress: Called with the rows done.

    Raises:
        NonFiniteEdges: If a value is NaN or infinite; the message names the edge.
    """
    model, ids = observed.model, observed.input_ids
    nodes = Nodes.of(observed.parts, observed.active[chosen], observed.activations[chosen])
    with computed_in(str(model.dtype)):
        full = _packed(full_edges(model, nodes, ids, targets, progress=progress), observed)
        if not settings.measure:
            return full, None
        real = measured_edges(model, nodes, ids, targets, progress=progress)
        return full, _packed(real, observed)


def _packed(edges: NodeEdges, observed: Observed) -> Edges:
    """In the form that graphs are stored in; measured edges have no token columns: 0."""
    nodes = edges.nodes
    layout = NodeLayout(
        n_features=len(nodes),
        n_layers=0,
        n_pos=len(observed.input_ids),
        n_logits=edges.n_targets,
        parts=len(observed.parts),
    )
    matrix = torch.zeros(layout.n_rows, layout.n_sources)
    matrix[:, layout.features] = edges.among
    if edges.from_tokens.shape[1]:
        matrix[:, layout.tokens] = edges.from_tokens
    return Edges.from_dense(matrix, layout, nodes.part, nodes.position)
