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

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from em_circuits.bases import Part, adapter_parts, neuron_parts, own_parts, transcoder_parts
from em_circuits.feature import AdapterRank, Feature, FeatureId, parse_node
from em_circuits.graphs.edges import Edges, computed_in
from em_circuits.graphs.header import NodePart
from em_circuits.graphs.held import Nodes, captured, full_edges, measured_edges
from em_circuits.graphs.held import site_gradients as gradients_at_sites
from em_circuits.graphs.memory import RowMemory
from em_circuits.graphs.row_cache import row_path
from em_circuits.graphs.settings import AttributionSettings, BasisName, ChooseBy
from em_circuits.models import Model
from em_circuits.progress import Progress, no_progress
from em_circuits.target import Columns
from pivotal_tokens.errors import RequestError, WorkFailed

MOST_ACTIVE = 300_000
"""Active nodes that a graph with full edges stores beside its own, those of the largest effects."""


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
    return NodePart(basis=part.basis, layer=part.layer, module=part.module)


@dataclass(frozen=True, eq=False)
class Observed:
    """One undisturbed prompt on one model: what its nodes read, and the next token's logits.

    Attributes:
        model: The real model was run.
        parts: In the order in which edges run.
        input_ids: The prompt.
        reads: What each part reads.
        logits: Raw, after the last position, in float32 on the CPU.
        active_before: Active nodes, where `reduced` left fewer.
    """

    model: Model
    parts: tuple[Part, ...]
    input_ids: Int64[Tensor, " pos"]
    reads: tuple[Tensor, ...]
    logits: Float[Tensor, " vocab"]
    active_before: int | None = None

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

    @property
    def n_active(self) -> int:
        """How many nodes were active, whether they are still in `active` or not."""
        return self.active_before if self.active_before is not None else len(self.active)

    def named(self, node: AdapterRank | Feature | FeatureId) -> Bool[Tensor, " active"]:
        """Which active nodes a name is of.

        Raises:
            RequestError: If the prompt has no such position.
        """
        module = node.module if isinstance(node, AdapterRank) else ""
        records = map(part_record, self.parts)
        own = [(one.layer, one.module) == (node.layer, module) for one in records]
        part, position, number = self.active.unbind(1)
        found = torch.tensor(own)[part] & (number == node[-1])
        if isinstance(node, FeatureId):
            return found
        return found & (position == Feature(*node[-3:]).at(len(self.input_ids)).position)

    def towards(self, targets: Columns) -> Sensitivity:
        """What a set of targets gains where the nodes write."""
        return Sensitivity(
            self, gradients_at_sites(self.model, self.parts, self.input_ids, targets), len(targets)
        )

    def gradient(self, targets: Columns) -> Float[Tensor, "target active"]:
        """First-order effect of every active node on every target, nothing held; on the CPU."""
        return self.towards(targets).gradient()

    def bound(self, targets: Columns) -> Float[Tensor, "target active"]:
        """See `Sensitivity.blocks`."""
        return self.towards(targets).bound()

    def reduced(
        self, sizes: Float[Tensor, " active"], chosen: Int64[Tensor, " chosen"]
    ) -> tuple[Observed, Int64[Tensor, " kept"], Int64[Tensor, " chosen"]]:
        """The chosen nodes and the `MOST_ACTIVE` largest ones alone, where more are active.

        Neurons are all active: millions at a real model's shape, each with an effect on every
        target.

        Returns:
            What was observed of them, their rows of `active`, and the chosen ones' new rows.
        """
        if len(self.active) <= MOST_ACTIVE:
            return self, torch.arange(len(self.active)), chosen
        kept = torch.cat([chosen, sizes.topk(MOST_ACTIVE).indices]).unique()
        fewer = replace(self, reads=(), active_before=len(self.active))
        fewer.__dict__["_active"] = self.active[kept], self.activations[kept]
        return fewer, kept, torch.searchsorted(kept, chosen)


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """Gradients of some targets where the nodes of one prompt write, nothing held.

    Attributes:
        observed: The prompt, with all its active nodes.
        at_writes: By part and write site: (target, position, width).
        n_targets: How many.
    """

    observed: Observed
    at_writes: list[list[Tensor]]
    n_targets: int

    def gradient(self, rows: Int64[Tensor, " row"] | None = None) -> Float[Tensor, "target row"]:
        """First-order effects ``a_s w_s . gradient`` of all active nodes, or of some rows."""
        return self._whole(self.blocks(), rows)

    def bound(self) -> Float[Tensor, "target active"]:
        """``|a_s w_s|`` times the length of the gradient where it writes: what no angle between the
        two can exceed."""
        return self._whole(self.blocks("bound"), None)

    def weighted(self, weights: Float[Tensor, " target"]) -> Sensitivity:
        """Of the targets' weighted sum alone."""
        summed = [
            [torch.tensordot(weights.to(at), at, 1)[None] for at in part] for part in self.at_writes
        ]
        return Sensitivity(self.observed, summed, 1)

    def sizes(
        self, summed: Callable[[Tensor], Tensor], by: ChooseBy = "gradient"
    ) -> Float[Tensor, " active"]:
        """One number a node from its effects on the targets, part by part."""
        found = torch.zeros(len(self.observed.active))
        for mine, block in self.blocks(by):
            found[mine] = summed(block)
        return found

    def blocks(self, by: ChooseBy = "gradient") -> Iterable[tuple[slice, Tensor]]:
        """Rows of `active` of a part, and their effects (target, row) or bounds, in float32."""
        few = by == "gradient" and len(self.observed.active) <= MOST_ACTIVE
        return self._effects if few else self._computed(by)

    @cached_property
    def _effects(self) -> list[tuple[slice, Tensor]]:
        """Blocks that nodes are chosen by and that are stored: no more than a graph holds."""
        return list(self._computed("gradient"))

    def _computed(self, by: ChooseBy) -> Iterator[tuple[slice, Tensor]]:
        own = self.observed.active[:, 0].contiguous()
        for i, part in enumerate(self.observed.parts):
            mine = slice(*torch.searchsorted(own, torch.tensor([i, i + 1])).tolist())
            if mine.start == mine.stop:
                continue
            positions, ids = self.observed.active[mine, 1], self.observed.active[mine, 2]
            distinct, index = ids.unique(return_inverse=True)
            block = torch.zeros(self.n_targets, len(ids))
            for k, gradient in enumerate(self.at_writes[i]):
                vectors = part.written(distinct.to(gradient.device), k).float()
                for position in positions.unique().tolist():
                    here = positions == position
                    at, used = gradient[:, position].float(), index[here]
                    # Nearly all of them, as of neurons: no copy of the vectors.
                    dense = 2 * len(used) > len(vectors)
                    there = vectors if dense else vectors[used]
                    if by == "bound":
                        values = at.norm(dim=-1)[:, None] * there.norm(dim=-1)
                    else:
                        values = at @ there.T
                    values = values[:, used] if dense else values
                    block[:, here] += values.cpu()
            amounts = self.observed.activations[mine]
            yield mine, block * (amounts.abs() if by == "bound" else amounts)

    def _whole(
        self, blocks: Iterable[tuple[slice, Tensor]], rows: Int64[Tensor, " row"] | None
    ) -> Float[Tensor, "target row"]:
        n = len(self.observed.active)
        rows = torch.arange(n) if rows is None else rows
        found = torch.zeros(self.n_targets, len(rows))
        for mine, block in blocks:
            ends = torch.searchsorted(rows, torch.tensor([mine.start, mine.stop])).tolist()
            found[:, slice(*ends)] = block[:, rows[slice(*ends)] - mine.start]
        return found


def choose(
    observed: Sequence[Observed],
    sizes: Sequence[Float[Tensor, " _"]],
    settings: AttributionSettings,
) -> list[Int64[Tensor, " _"]]:
    """The largest nodes, or those named, one choice for all models of a prompt.

    Sizes are added up over the models in which a node is active, so that models share a node
    wherever both have it.

    Args:
        observed: One prompt on one or several models.
        sizes: Of each model's active nodes (active,), not negative.
        settings: How many, or which.

    Returns:
        Rows of each model's `active`, ascending.

    Raises:
        RequestError: If no node is active, or a named one is not.
    """
    if settings.named:
        return _named(observed, settings.named)
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


def _named(observed: Sequence[Observed], names: Sequence[str]) -> list[Int64[Tensor, " _"]]:
    """Rows of each model's `active` that some names are of, ascending; each of one at least."""
    chosen = [torch.zeros(len(one.active), dtype=torch.bool) for one in observed]
    for name in names:
        node = parse_node(name)
        found = False
        for one, mask in zip(observed, chosen, strict=True):
            mine = one.named(node)
            mask |= mine
            found |= bool(mine.any())
        if not found:
            raise RequestError(f"node {name} is not active on the prompt, or of no basis here")
    return [mask.nonzero()[:, 0] for mask in chosen]


def edges_among(
    observed: Observed,
    chosen: Int64[Tensor, " chosen"],
    targets: Columns,
    settings: AttributionSettings,
    *,
    scratch: tuple[Path, str] | None = None,
    progress: Progress = no_progress,
) -> tuple[Edges, Edges | None]:
    """Full edges among some of a model's active nodes, and measured ones, packed for a graph.

    Args:
        observed: The prompt on the model.
        chosen: Rows of its `active`, ascending.
        targets: Rows of weights of the logits, or terms.
        settings: Whether edges are measured, and in what batches and memory.
        scratch: Folder and key under which finished rows are kept until the graph is stored.
        progress: Called with the rows done.

    Raises:
        RequestError: If not even one row at once fits into the settings' `max_memory`.
        NonFiniteEdges: If a value is NaN or infinite; the message names the edge.
    """
    nodes = Nodes.of(observed.parts, observed.active[chosen], observed.activations[chosen])
    compute = partial(
        computed_edges,
        observed.model,
        nodes,
        observed.input_ids,
        targets,
        settings,
        scratch=scratch,
        progress=progress,
    )
    return compute("full"), compute("measured") if settings.measure else None


def computed_edges(
    model: Model,
    nodes: Nodes,
    input_ids: Int64[Tensor, " pos"],
    targets: Columns,
    settings: AttributionSettings,
    kind: Literal["full", "measured"],
    *,
    scratch: tuple[Path, str] | None = None,
    progress: Progress = no_progress,
) -> Edges:
    """One kind of edges among nodes, packed for a graph; see `edges_among`."""
    rows = settings.batch_size
    if settings.max_memory is not None:
        need = RowMemory.of(model, nodes, len(targets), len(input_ids))
        rows = min(rows, need.rows_within(settings.max_memory))
    engine = full_edges if kind == "full" else measured_edges
    resume = None if scratch is None else row_path(*scratch, kind)
    with computed_in(str(model.dtype)):
        found = engine(
            model, nodes, input_ids, targets, rows=rows, resume=resume, progress=progress
        )
        return found.packed()
