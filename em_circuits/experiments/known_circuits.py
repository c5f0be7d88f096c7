"""Every method of the package scored on circuits whose nodes and edges are known.

Programs of `em_circuits.organisms.known` are compiled, loaded like any model, and asked in both
error-free bases. An edge method is scored by AUROC over every pair of nodes that could have an
edge, and by how many of the n largest are among the n true ones; a node method by AUROC of
circuit against idle nodes, and by the faithfulness of its n largest nodes,

    f = (m(kept) - m(nothing)) / (m(everything) - m(nothing))

where m is the contrast and what is not kept is ablated.

    score = score_known(directory)
    score.edges[0].auroc, score.nodes[0].faithfulness
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from em_circuits.activation_cache import ActivationCache
from em_circuits.contrast import Contrast
from em_circuits.experiments.validate_edges import PromptEdges, prompt_edges
from em_circuits.feature import Feature
from em_circuits.graphs import AttributionGraph, attribute
from em_circuits.influence import Method, Targets, influence, prune
from em_circuits.influence.circuit_search import search_circuit
from em_circuits.interventions import live_scores
from em_circuits.interventions.circuits import CircuitRuns
from em_circuits.models import Model
from em_circuits.organisms.compiled import known_contrast, known_pair, write_known
from em_circuits.organisms.known import OUTPUT, PROGRAMS, KnownNode, KnownTruth, Program
from em_circuits.scoring import Scoring
from em_circuits.statistics import auroc
from pivotal_tokens.errors import WorkFailed
from pivotal_tokens.schema import Frozen

KnownBasis = Literal["neuron", "transcoder"]
_GRAPH_METHODS = (Method.DIRECT, Method.TOTAL_EFFECT, Method.SIGNED)
_LIVE = (Scoring.GRADIENT, Scoring.MEASURED, Scoring.JOINT, Scoring.GREEDY)


class KnownEdgeScore(Frozen):
    """How well one kind of edge finds the true ones."""

    kind: str
    """``full``, ``measured`` or ``frozen``."""
    basis: KnownBasis
    programs: int
    auroc: float
    """Mean over programs and prompts."""
    worst: float
    """The least of them."""
    worst_program: str
    exact: int
    """Programs on which the n largest edges are the n true ones, on every prompt."""
    not_exact: tuple[str, ...]


class KnownNodeScore(Frozen):
    """How well one method tells the circuit's nodes from idle ones."""

    method: str
    basis: KnownBasis
    programs: int
    auroc: float
    exact: int
    """Programs on which the n largest nodes are the circuit, on every prompt."""
    faithfulness: float | None
    """Of the n largest nodes, mean over the prompts on which nodes move the contrast."""


class KnownScores(Frozen):
    """Every method on every known circuit."""

    programs: tuple[str, ...]
    edges: tuple[KnownEdgeScore, ...]
    nodes: tuple[KnownNodeScore, ...]


class _Found(Frozen):
    program: str
    auroc: float | None
    exact: bool
    faithfulness: float | None = None


def score_known(directory: Path, programs: Sequence[Program] | None = None) -> KnownScores:
    """Compile programs into a directory and score every method on them.

    Args:
        directory: Gets one folder per program.
        programs: All of them if not given.
    """
    chosen = tuple(PROGRAMS.values()) if programs is None else programs
    edges: dict[tuple[str, KnownBasis], list[_Found]] = defaultdict(list)
    nodes: dict[tuple[str, KnownBasis], list[_Found]] = defaultdict(list)
    for program in chosen:
        paths = write_known(program, directory / program.name)
        bases: tuple[KnownBasis, ...] = ("neuron", "transcoder")
        for basis in bases[: 1 if paths.transcoders is None else 2]:
            with known_pair(paths, neurons=basis == "neuron") as pair:
                words = known_contrast(pair)
                for prompt in program.prompts:
                    truth = program.truth(prompt)
                    for kind, found in _edges(pair.base, prompt, words, truth, program.name):
                        edges[kind, basis].append(found)
                    for method, found in _nodes(pair.base, prompt, words, truth, program.name):
                        nodes[method, basis].append(found)
    return KnownScores(
        programs=tuple(program.name for program in chosen),
        edges=tuple(_edge_score(kind, basis, each) for (kind, basis), each in edges.items()),
        nodes=tuple(_node_score(method, basis, each) for (method, basis), each in nodes.items()),
    )


def _named(node: KnownNode | str) -> str:
    return "evil-safe" if node == OUTPUT else str(Feature(*node))


def _edges(
    model: Model, prompt: str, words: Contrast, truth: KnownTruth, name: str
) -> Iterator[tuple[str, _Found]]:
    """Each kind of edge against the truth."""
    asked = model.prompt(prompt)
    each: PromptEdges = prompt_edges(model, asked, words, n=10_000)
    true = {(_named(s), _named(t)) for s, t in truth.edges}
    pairs = zip(each.sources, each.targets, strict=True)
    positive = torch.tensor([pair in true for pair in pairs])
    for kind in ("full", "measured", "frozen"):
        values: Tensor | None = getattr(each, kind)
        if values is not None:
            yield kind, _against(values.abs(), positive, len(true), name)


def _against(scores: Tensor, positive: Tensor, n: int, name: str) -> _Found:
    best = scores.topk(min(n, len(scores))).indices
    exact = len(best) == n and bool(positive[best].all())
    area = auroc(scores[positive], scores[~positive])
    return _Found(program=name, auroc=None if math.isnan(area) else area, exact=exact)


def _nodes(
    model: Model, prompt: str, words: Contrast, truth: KnownTruth, name: str
) -> Iterator[tuple[str, _Found]]:
    """Each method's ranking of the active nodes, by magnitude."""
    asked = model.prompt(prompt)
    state = ActivationCache.capture(model, model.input_ids(asked))
    places = [tuple(place) for place in state.active.tolist()]
    positive = torch.tensor([place in truth.circuit for place in places])
    runs = CircuitRuns.alone(model, state.input_ids, words)
    for method, scores in _rankings(model, prompt, words, state):
        found = _against(scores.abs(), positive, len(truth.circuit), name)
        best = scores.abs().topk(min(len(truth.circuit), len(scores))).indices
        share = runs.sufficiency([best])
        faithful = None if share is None else float(share[0])
        yield method, found.model_copy(update={"faithfulness": faithful})


def _rankings(
    model: Model, prompt: str, words: Contrast, state: ActivationCache
) -> Iterator[tuple[str, Tensor]]:
    """Scores of the active nodes, in the order of ``state.active``."""
    for by in _LIVE:
        table = live_scores(model, state, words, by).contrasted(words)
        scores = torch.from_numpy(table["contrast"]).float()
        if by is Scoring.GREEDY:  # the order in which they joined
            joined = torch.from_numpy(table["joined"])
            scores = torch.where(joined.isnan(), torch.zeros(()), len(joined) - joined).float()
        yield str(by), scores
    kinds = ("full",) if model.transcoders is None else ("full", "frozen")
    order = {tuple(place): i for i, place in enumerate(state.active.tolist())}
    for kind in kinds:
        graph = attribute(model, prompt, words, edges=kind, nodes=10_000)  # type: ignore[arg-type]
        at = torch.tensor([order[tuple(place)] for place in graph.selected_features.tolist()])

        def placed(values: Tensor, at: Tensor = at) -> Tensor:
            found = torch.zeros(len(order))
            found[at] = values[: len(at)].float()
            return found

        for method in _GRAPH_METHODS:
            yield f"{kind} {method}", placed(influence(graph, words, method).values[0])
        if kind == "full":
            yield "circuit search", placed(_searched(graph, words))
        yield f"{kind} pruning", placed(prune(graph, Targets.probabilities(graph)).scores)


def _searched(graph: AttributionGraph, words: Contrast) -> Tensor:
    """Nodes by when they join the circuit; none where what they write cancels."""
    joined = torch.zeros(len(graph.selected))
    try:
        order = search_circuit(graph, words, size=len(graph.selected)).nodes
    except WorkFailed:
        return joined
    joined[order] = torch.arange(len(order), 0, -1).float()
    return joined


def _edge_score(kind: str, basis: KnownBasis, each: Sequence[_Found]) -> KnownEdgeScore:
    known = [one for one in each if one.auroc is not None]
    worst = min(known, key=lambda one: one.auroc or 0.0)
    wrong = {one.program for one in each if not one.exact}
    return KnownEdgeScore(
        kind=kind,
        basis=basis,
        programs=len({one.program for one in each}),
        auroc=_mean([one.auroc for one in known]) or 0.0,
        worst=worst.auroc or 0.0,
        worst_program=worst.program,
        exact=len({one.program for one in each} - wrong),
        not_exact=tuple(sorted(wrong)),
    )


def _node_score(method: str, basis: KnownBasis, each: Sequence[_Found]) -> KnownNodeScore:
    wrong = {one.program for one in each if not one.exact}
    return KnownNodeScore(
        method=method,
        basis=basis,
        programs=len({one.program for one in each}),
        auroc=_mean([one.auroc for one in each]) or 0.0,
        exact=len({one.program for one in each} - wrong),
        faithfulness=_mean([one.faithfulness for one in each]),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
