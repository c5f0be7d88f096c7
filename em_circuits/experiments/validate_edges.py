"""Validation of edges by real interventions: full and frozen ones against measured ones.

On each prompt the nodes of the largest gradient are held at their values; one after the other is
really removed, and the change of every later node and of the contrast is read. Each such measured
edge is compared with the full and the frozen edge of the same two nodes, everywhere in the graph.

    validation = validate_edges(work, prompt_ids, nodes=200)
    validation.rows[0].agreement.spearman, validation.curved.share

An edge is **curved** where full and measured edge differ by more than half of the larger one: there
the first order says little about removing the source.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from em_circuits.bases import own_parts
from em_circuits.contrast import Contrast
from em_circuits.experiments.analyse import LabelledCase
from em_circuits.feature import Feature
from em_circuits.graphs import AttributionSettings, attribute
from em_circuits.graphs.held import Nodes, choose_nodes, full_edges, measured_edges
from em_circuits.models import Model
from em_circuits.progress import tracked
from em_circuits.statistics import (
    Agreement,
    Interval,
    agreement,
    agreement_intervals,
    mean_agreement,
)
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen, ModelName, Prompt

EdgeKind = Literal["full", "frozen"]
KINDS: tuple[EdgeKind, ...] = ("full", "frozen")
ALL, TO_CONTRAST = "all", "contrast"
CURVED = 0.5
"""Difference of full and measured edge, as a share of the larger, above which it is curved."""
LOUD = 1e-6
"""Edges below this share of a prompt's largest are rounding, and never curved."""
LISTED = 20
"""Curved edges that are listed."""
_BOOTSTRAP = 1000


@dataclass(frozen=True, eq=False)
class PromptEdges:
    """Edges of one prompt, three ways.

    Attributes:
        prompt_id: Of the prompt.
        sources: Names of nodes.
        targets: The same; ``evil-safe`` for the contrast.
        distance: Layers from source to target; -1 to the contrast.
        measured: The target's change when the source is really removed.
        full: First order, all but the nodes responding.
        frozen: circuit-tracer's; None where nodes are no transcoder features.
    """

    prompt_id: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    distance: Int64[Tensor, " edge"]
    measured: Float[Tensor, " edge"]
    full: Float[Tensor, " edge"]
    frozen: Float[Tensor, " edge"] | None

    @property
    def curved(self) -> Bool[Tensor, " edge"]:
        """Where full and measured differ by more than half of the larger."""
        return curved(self.full, self.measured)

    def of(self, group: str) -> Bool[Tensor, " edge"]:
        """The edges of a group: ``all`` from feature to feature, a distance, or ``contrast``."""
        if group == ALL:
            return self.distance >= 0
        return self.distance == (-1 if group == TO_CONTRAST else int(group))


def curved(full: Float[Tensor, " edge"], measured: Float[Tensor, " edge"]) -> Bool[Tensor, " edge"]:
    """Which edges differ by more than half of the larger of the two."""
    larger = torch.maximum(full.abs(), measured.abs())
    loud = larger > LOUD * larger.max() if len(larger) else larger > 0
    return loud & ((measured - full).abs() > CURVED * larger)


class EdgeAgreement(Frozen):
    """How well one kind of edge predicts measured edges, averaged over prompts."""

    kind: EdgeKind
    edges: str
    """``all`` from feature to feature; ``1``, ``2`` ... that many layers apart; ``contrast``."""
    n_edges: int
    n_prompts: int
    agreement: Agreement
    intervals: dict[str, Interval]
    """95 % bootstrap interval of each statistic over prompts (over edges for one prompt)."""


class CurvedEdge(Frozen):
    """An edge whose first order is far from its measured value."""

    prompt_id: str
    source: str
    target: str
    full: float
    measured: float


class Curvature(Frozen):
    """How many edges are curved: full and measured differ by over half of the larger."""

    share: float
    """Of all edges, the ones to the contrast included."""
    share_of_size: float
    """Of the sum of all measured edges' sizes."""
    share_of_largest: float
    """Of the tenth of edges with the largest measured sizes."""
    largest: tuple[CurvedEdge, ...]
    """Those that differ most."""


class EdgeValidation(Frozen):
    """Edges against measured ones, over prompts."""

    prompts: tuple[str, ...]
    model: ModelName
    n_nodes: int
    """Nodes asked for on each prompt."""
    rows: tuple[EdgeAgreement, ...]
    curved: Curvature


def validate_edges(
    work: Workspace, prompts: Sequence[str], *, model: ModelName = "merged", nodes: int = 200
) -> tuple[EdgeValidation, tuple[PromptEdges, ...]]:
    """Compare full and frozen edges among the largest nodes with measured ones.

    Args:
        work: Its models are run.
        prompts: Ids of labelled prompts, or unique beginnings of such.
        model: Which model.
        nodes: Features of the largest gradient on the contrast that are held.

    Returns:
        What came out, and every edge.

    Raises:
        RequestError: If a prompt has no labels, no contrast, or fewer than two active features.
    """
    each = []
    for prefix in tracked(prompts, "validate edges", work.progress):
        case = LabelledCase.get(work, prefix)
        each.append(
            prompt_edges(work.pair.model(model), case.shown, case.contrast.require(), n=nodes)
        )
    return summarise_edges(each, model=model, nodes=nodes, seed=work.seed), tuple(each)


def prompt_edges(model: Model, prompt: Prompt, contrast: Contrast, *, n: int) -> PromptEdges:
    """Every edge among the n features of the largest gradient, and to the contrast, three ways."""
    ids = model.input_ids(prompt)
    weights = contrast.weights(model.decoder.d_vocab)[None]
    nodes = choose_nodes(model, own_parts(model), ids, weights, n=n)
    source, target = _pairs(nodes)
    if not len(source):
        raise RequestError(f"prompt {prompt.prompt_id}: no edge lies among {len(nodes)} nodes")
    full = full_edges(model, nodes, ids, weights).values
    measured = measured_edges(model, nodes, ids, weights).values
    frozen = _frozen(model, prompt, contrast, nodes)
    names = [
        str(Feature(nodes.parts[part].layer, position, number))
        for part, position, number in zip(
            nodes.part.tolist(), nodes.position.tolist(), nodes.id.tolist(), strict=True
        )
    ] + ["evil-safe"]
    layers = torch.tensor([part.layer for part in nodes.parts])[nodes.part]
    distance = torch.where(
        target < len(nodes), layers[target.clamp_max(len(nodes) - 1)] - layers[source], -1
    )
    return PromptEdges(
        prompt_id=prompt.prompt_id,
        sources=tuple(names[i] for i in source.tolist()),
        targets=tuple(names[i] for i in target.tolist()),
        distance=distance,
        measured=measured[target, source],
        full=full[target, source],
        frozen=None if frozen is None else frozen[target, source],
    )


def _pairs(nodes: Nodes) -> tuple[Int64[Tensor, " edge"], Int64[Tensor, " edge"]]:
    """(source, target) of every edge there can be; the contrast comes after the nodes."""
    later = nodes.part[:, None] > nodes.part[None]
    reached = nodes.position[:, None] >= nodes.position[None]
    among = (later & reached).nonzero()
    every = torch.arange(len(nodes))
    target = torch.cat([among[:, 0], torch.full_like(every, len(nodes))])
    return torch.cat([among[:, 1], every]), target


def _frozen(
    model: Model, prompt: Prompt, contrast: Contrast, nodes: Nodes
) -> Float[Tensor, "row node"] | None:
    """circuit-tracer's edges among the same nodes, and to the contrast."""
    if any(part.basis != "transcoder" for part in nodes.parts):
        return None
    settings = AttributionSettings(edges="frozen", max_feature_nodes=None)
    graph = attribute(model, prompt, contrast, settings)
    layers = torch.tensor([part.layer for part in nodes.parts])[nodes.part]
    wanted = torch.stack([layers, nodes.position, nodes.id], 1).tolist()
    index = {tuple(row): i for i, row in enumerate(graph.selected_features.tolist())}
    at = torch.tensor([index[tuple(row)] for row in wanted])
    edges = graph.require_edges()
    among = torch.stack([edges.row(i)[at] for i in at.tolist()])
    logits = edges.logit_rows()[:, at].double()
    to_contrast = contrast.over(graph.targets.token_ids) @ logits
    return torch.cat([among, to_contrast[None].to(among)])


def summarise_edges(
    each: Sequence[PromptEdges], *, model: ModelName, nodes: int, seed: int = 0
) -> EdgeValidation:
    """Average over prompts: both kinds of edges, all together and by distance in layers."""
    distances = sorted({d for one in each for d in one.distance.unique().tolist() if d >= 0})
    groups = [ALL, *map(str, distances), TO_CONTRAST]
    rows = [
        row
        for group in groups
        for kind in KINDS
        if (row := _agreement(each, kind, group, seed)) is not None
    ]
    return EdgeValidation(
        prompts=tuple(one.prompt_id for one in each),
        model=model,
        n_nodes=nodes,
        rows=tuple(rows),
        curved=_curvature(each),
    )


def _agreement(
    each: Iterable[PromptEdges], kind: EdgeKind, group: str, seed: int
) -> EdgeAgreement | None:
    pairs = []
    for one in each:
        mine = one.of(group)
        predicted: Tensor | None = getattr(one, kind)
        if int(mine.sum()) > 1 and predicted is not None:
            pairs.append((predicted[mine], one.measured[mine]))
    if not pairs:
        return None
    return EdgeAgreement(
        kind=kind,
        edges=group,
        n_edges=sum(len(measured) for _, measured in pairs),
        n_prompts=len(pairs),
        agreement=mean_agreement([agreement(*pair) for pair in pairs]),
        intervals=agreement_intervals(pairs, n_bootstrap=_BOOTSTRAP, seed=seed),
    )


def _curvature(each: Sequence[PromptEdges]) -> Curvature:
    curved = torch.cat([one.curved for one in each])
    size = torch.cat([one.measured.abs() for one in each]).double()
    largest = size.topk(max(1, len(size) // 10)).indices
    listed = [
        (float((one.full - one.measured)[i].abs()), one, i)
        for one in each
        for i in one.curved.nonzero()[:, 0].tolist()
    ]
    listed.sort(key=lambda item: -item[0])
    return Curvature(
        share=float(curved.double().mean()),
        share_of_size=float(size[curved].sum() / size.sum()) if size.any() else 0.0,
        share_of_largest=float(curved[largest].double().mean()),
        largest=tuple(
            CurvedEdge(
                prompt_id=one.prompt_id,
                source=one.sources[i],
                target=one.targets[i],
                full=float(one.full[i]),
                measured=float(one.measured[i]),
            )
            for _, one, i in listed[:LISTED]
        ),
    )
