"""The circuit of a stored graph: searched on its full edges, measured, and grouped.

    found = circuit_of(work, graph, words, size=20)
    found.checkpoints[-1].measured, found.supernodes[0].name

Nodes outside the circuit are put to their values in the base, in a graph of the base to nothing.
The search is first order; at each checkpoint the graph's other nodes are really put there. A
supernode's members are really removed together: where their joint effect is not the sum of theirs,
they work together or stand in for each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from em_circuits.activation_cache import ActivationCache
from em_circuits.contrast import Contrast
from em_circuits.feature import FeatureId
from em_circuits.features.promoted import promoted_tokens
from em_circuits.graphs import AttributionGraph
from em_circuits.influence.circuit_search import profiles, search_circuit, supernodes
from em_circuits.interventions.circuits import CircuitRuns
from em_circuits.models import Model, ModelPair
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen, ModelName

CHECKPOINTS = (1, 2, 5, 10, 20, 50, 100, 200)
_NAMED_BY = 3


class CircuitCheckpoint(Frozen):
    """The first nodes of a circuit."""

    size: int
    predicted: float
    """First-order faithfulness over full edges."""
    measured: float | None
    """The same, the graph's other nodes really put to the reference; null below half a logit."""
    necessity: float | None
    """Share of what all the graph's nodes do that goes when these alone are removed."""


class CircuitMember(Frozen):
    """A node of a circuit; the one that the search would keep longest comes first."""

    node: str
    supernode: int
    """Number of its supernode."""


class CircuitGroup(Frozen):
    """Members with alike inputs and outputs."""

    name: str
    """Tokens that its members' decoders promote most."""
    members: tuple[str, ...]
    joint: float
    """Effect of really putting all of them to the reference, in logits; positive: they raise the
    target."""
    sum: float
    """Of each alone."""


class FoundCircuit(Frozen):
    """The circuit of one graph."""

    graph: str
    prompt_id: str
    model: ModelName
    reference: Literal["base", "nothing"]
    """What nodes outside the circuit are put to: their values in the base, or nothing."""
    target: str
    shift: float
    """What all the graph's nodes together do to the target against the reference, in logits."""
    n_nodes: int
    """Of the graph; all that the circuit is compared with."""
    checkpoints: tuple[CircuitCheckpoint, ...]
    members: tuple[CircuitMember, ...]
    supernodes: tuple[CircuitGroup, ...]
    silhouette: float | None
    """Mean silhouette at the number of supernodes that was chosen for it."""


def circuit_of(
    work: Workspace, graph: AttributionGraph, contrast: Contrast, *, size: int
) -> FoundCircuit:
    """Search, measure and group the circuit of a graph.

    Args:
        work: Its models are loaded if they are not.
        graph: With full edges among features, of a model of that pair.
        contrast: Evil and safe tokens.
        size: Nodes of the circuit.

    Raises:
        RequestError: The graph is of other models, has frozen edges, or adapter ranks.
        WorkFailed: The nodes' writes do not move the target.
    """
    header = graph.header
    if header.model not in ("base", "merged") or graph.has_adapter_nodes:
        raise RequestError(
            f"graph {header.short_key}: a circuit is searched among features of base or merged "
            "model; build such a graph: em-circuits graphs build PROMPT"
        )
    model = work.pair.model(header.model)
    if model.fingerprint != header.fingerprint:
        raise RequestError(
            f"graph {header.short_key} is of another {header.model} model; name its models by "
            "--base and --adapter or --merged"
        )
    runs = graph_runs(work.pair, graph, contrast)
    found = search_circuit(graph, contrast, size=size, reference=runs.off)
    sizes = [k for k in CHECKPOINTS if k < len(found.nodes)] + [len(found.nodes)]
    order = found.nodes
    sets = [order[:k] for k in sizes]
    measured, needed = runs.sufficiency(sets), runs.necessity(sets)
    groups, silhouette = supernodes(profiles(graph, order))
    names = [graph.name_of(int(node)) for node in order]
    shown = _supernodes(model, runs, graph, order, groups, names)
    of = {i: number for number, group in enumerate(groups) for i in group}
    return FoundCircuit(
        graph=header.key,
        prompt_id=header.prompt_id,
        model="merged" if header.model == "merged" else "base",
        reference="base" if header.model == "merged" else "nothing",
        target="evil-safe",
        shift=runs.shift,
        n_nodes=len(graph.selected),
        checkpoints=tuple(
            CircuitCheckpoint(
                size=k,
                predicted=float(found.faithfulness[k - 1]),
                measured=None if measured is None else float(measured[i]),
                necessity=None if needed is None else float(needed[i]),
            )
            for i, k in enumerate(sizes)
        ),
        members=tuple(CircuitMember(node=name, supernode=of[i]) for i, name in enumerate(names)),
        supernodes=shown,
        silhouette=silhouette,
    )


def graph_runs(pair: ModelPair, graph: AttributionGraph, contrast: Contrast) -> CircuitRuns:
    """Circuits among a graph's own nodes: what is no node of it stays as it is."""
    runs = CircuitRuns.alone(pair.model(graph.header.model), graph.input_ids, contrast)
    places, on = graph.selected_features.cpu(), graph.selected_activations.float().cpu()
    off = torch.zeros_like(on)
    if graph.header.model == "merged":
        base = ActivationCache.capture(pair.base, graph.input_ids)
        off = base.activation_of(places).float().cpu()
    return replace(runs, coordinates=places, on=on, off=off)


def _supernodes(
    model: Model,
    runs: CircuitRuns,
    graph: AttributionGraph,
    order: Tensor,
    groups: Sequence[Sequence[int]],
    names: Sequence[str],
) -> tuple[CircuitGroup, ...]:
    """Each group with what really ablating it does."""
    members = [order[torch.tensor(group)] for group in groups]
    whole = runs.ends[0]
    joint = whole - runs.removed(members)
    alone = whole - runs.removed([order[i : i + 1] for i in range(len(order))])
    places = graph.selected_features.tolist()
    return tuple(
        CircuitGroup(
            name=_name(model, [FeatureId(*places[int(node)][::2]) for node in nodes]),
            members=tuple(names[i] for i in group),
            joint=float(effect),
            sum=float(alone[torch.tensor(group)].sum()),
        )
        for group, nodes, effect in zip(groups, members, joint, strict=True)
    )


def _name(model: Model, features: Sequence[FeatureId]) -> str:
    """The tokens that most of some decoders promote."""
    votes: Counter[str] = Counter()
    for feature in dict.fromkeys(features):
        for rank, token in enumerate(promoted_tokens(model, feature, keep=5).promoted):
            votes[token.text.strip() or repr(token.text)] += 5 - rank
    return ", ".join(text for text, _ in votes.most_common(_NAMED_BY))
