"""Full and measured edges to targets beyond one token: the same identities as for logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from subjects import Subject
from test_held import BASES, _attach

from em_circuits.graphs import GraphStore
from em_circuits.graphs.generate import attribute
from em_circuits.graphs.gradient import gradient_scores
from em_circuits.graphs.held import (
    Nodes,
    choose_nodes,
    full_edges,
    gradient_effects,
    measured_edges,
)
from em_circuits.influence.methods import influence
from em_circuits.interventions.feature_rows import decoder_vectors
from em_circuits.target import Target
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Prompt

KINDS = ("contrast", "continuation", "rollouts", "direction", "span")


def target_of(kind: str, subject: Subject) -> Target:
    evil, safe = subject.groups.evil, subject.groups.safe
    if kind == "contrast":
        return Target.of(subject.groups)
    if kind == "continuation":
        return Target.continuation(subject.pair, (evil[0], safe[1], evil[1]), (safe[0], evil[1]))
    if kind == "rollouts":
        answers = [(evil[0], safe[0]), (evil[1], safe[1])]
        return Target.from_rollouts(subject.pair, evil=answers, safe=[(safe[0],), (safe[0], 5)])
    if kind == "direction":
        torch.manual_seed(3)
        return Target.direction(torch.randn(subject.model.hf.config.hidden_size))
    return Target.span(-4, -1)


@pytest.fixture(params=KINDS)
def target(request: pytest.FixtureRequest, subject: Subject) -> Target:
    return target_of(request.param, subject)


@pytest.mark.parametrize("basis", ["transcoder", "neuron", "adapter"])
def test_total_effect_is_the_real_gradient_for_every_target(
    subject: Subject, target: Target, basis: str
) -> None:
    model, ids = subject.model, subject.input_ids
    nodes = choose_nodes(model, BASES[basis](subject), ids, target.terms, n=25)
    edges = full_edges(model, nodes, ids, target.terms, rows=16)
    assert edges.values.shape == (len(nodes) + len(target.terms), len(nodes) + len(ids))
    total = (target.over() @ edges.total_effect())[: len(nodes)]
    gradient = target.over() @ gradient_effects(model, nodes, ids, target.terms).double()
    assert (total - gradient).abs().max() <= 1e-5 * gradient.abs().max()
    # Rows of nodes are those of any other target: they do not know what is read at the end.
    words = full_edges(model, nodes, ids, Target.of(subject.groups).terms)
    n = len(nodes)
    scale = words.values[:n].abs().max()
    assert (edges.values[:n] - words.values[:n]).abs().max() <= 1e-5 * scale


def test_a_gradient_is_the_slope_of_the_real_model(subject: Subject, target: Target) -> None:
    """Central differences, one feature's output scaled at its place in plain passes."""
    model, ids = subject.model, subject.input_ids
    nodes = choose_nodes(model, BASES["transcoder"](subject), ids, target.terms, n=6)
    gradient = target.over() @ gradient_effects(model, nodes, ids, target.terms).double()
    for n in range(3):
        ahead, behind = (_nudged(subject, nodes, n, step, target) for step in (0.02, -0.02))
        assert abs((ahead - behind) / 0.04 - gradient[n]) <= 5e-3 * gradient.abs().max()
    # and the other implementation of the same, over transcoder features
    layers = torch.tensor([part.layer for part in nodes.parts])[nodes.part]
    places = torch.stack([layers, nodes.position, nodes.id], 1)
    written = nodes.activation[:, None] * decoder_vectors(model, layers, nodes.id)
    order = torch.tensor(sorted(range(len(nodes)), key=lambda i: places[i].tolist()))
    scores = gradient_scores(model, ids, target.terms, places[order], written[order])
    other = target.over() @ scores.double()
    assert (other - gradient[order]).abs().max() <= 1e-5 * gradient.abs().max()


@torch.no_grad()
def _nudged(subject: Subject, nodes: Nodes, n: int, step: float, target: Target) -> float:
    """The target with `step` times a node's own output added, summed over plain passes."""
    part = nodes.parts[int(nodes.part[n])]
    vector = step * nodes.activation[n] * part.written(nodes.id[n][None])[0]

    def add(_module, _args, output):
        output = output.clone()
        output[0, nodes.position[n]] += vector
        return output

    handle = part.writes[0].module.register_forward_hook(add)
    try:
        return plain_value(subject, target)
    finally:
        handle.remove()


@torch.no_grad()
def plain_value(subject: Subject, target: Target) -> float:
    """The target from plain passes of the model, in float64 where sums are taken."""
    total = 0.0
    for term, weight in zip(target.terms, target.weights, strict=True):
        ids = torch.cat([subject.input_ids, torch.tensor(term.forced, dtype=torch.int64)])
        out = subject.model.hf(input_ids=ids[None], use_cache=False)
        logits, n = out.logits[0].double(), len(subject.input_ids)
        kind = type(term).__name__
        if kind == "TokenLogit":
            value = logits[n - 1, term.token] - logits[n - 1].mean()
        elif kind == "LogProbability":
            value = sum(
                logits[n - 1 + i].log_softmax(-1)[token] for i, token in enumerate(term.ids)
            )
        elif kind == "SpanLogProbability":
            value = sum(logits[p - 1].log_softmax(-1)[ids[p]] for p in range(n - 4, n - 1))
        else:
            stream: list[torch.Tensor] = []
            norm = subject.model.hf.model.norm
            handle = norm.register_forward_pre_hook(
                lambda _m, a, stream=stream: stream.append(a[0][0, -1])
            )
            subject.model.hf(input_ids=ids[None], use_cache=False)
            handle.remove()
            value = stream[0].double() @ term.vector.double()
        total += weight * float(value)
    return total


def test_measured_edges_are_patches_one_by_one(subject: Subject, target: Target) -> None:
    """Against plain passes in which every node is clamped by hooks, the removed one to 0."""
    model, ids = subject.model, subject.input_ids
    parts = BASES["transcoder"](subject)
    nodes = choose_nodes(model, parts, ids, target.terms, n=12)
    found = measured_edges(model, nodes, ids, target.terms, rows=5)
    to_target = target.over() @ found.to_targets.double()
    undisturbed = _clamped(subject, nodes, None, target)
    for source in (0, 5, 11):
        expected = undisturbed - _clamped(subject, nodes, source, target)
        assert abs(to_target[source] - expected) <= 1e-5 * max(1.0, abs(undisturbed))


def _clamped(subject: Subject, nodes: Nodes, removed: int | None, target: Target) -> float:
    inputs: dict[int, torch.Tensor] = {}
    handles = []
    for i, part in enumerate(nodes.parts):
        mine = range(*nodes.of_part(i).indices(len(nodes)))

        def read(x, i=i):
            inputs[i] = x[0]

        def write(output, i=i, part=part, mine=mine):
            output = output.clone()
            live = part.activations(inputs[i])
            for n in mine:
                held = 0.0 if n == removed else nodes.activation[n]
                change = held - live[nodes.position[n], nodes.id[n]]
                output[0, nodes.position[n]] += change * part.written(nodes.id[n][None])[0]
            return output

        handles += [_attach(part.read, read), _attach(part.writes[0], write)]
    try:
        return plain_value(subject, target)
    finally:
        for handle in handles:
            handle.remove()


def test_nodes_at_an_answers_positions_carry_credit_between_its_tokens(subject: Subject) -> None:
    """The answer as part of the prompt, a span as target: same value, more nodes, and their
    effects at the prompt's positions are those of the continuation."""
    model, prompt = subject.model, subject.input_ids
    answer = (subject.groups.evil[0], subject.groups.safe[0], subject.groups.evil[1])
    whole = torch.cat([prompt, torch.tensor(answer)])
    parts = BASES["transcoder"](subject)
    span, continuation = Target.span(-3), Target.continuation(subject.pair, answer)
    nodes = choose_nodes(model, parts, whole, span.terms, n=60)
    later = nodes.position >= len(prompt)
    assert later.any() and not later.all()
    total = full_edges(model, nodes, whole, span.terms).total_effect()[0, : len(nodes)]
    gradient = gradient_effects(model, nodes, whole, span.terms)[0].double()
    assert (total - gradient).abs().max() <= 1e-5 * gradient.abs().max()
    assert gradient[later].abs().max() > 1e-3 * gradient.abs().max()
    own = Nodes(
        nodes.parts,
        nodes.part[~later],
        nodes.position[~later],
        nodes.id[~later],
        nodes.activation[~later],
    )
    among = full_edges(model, own, prompt, continuation.terms).total_effect()[0, : len(own)]
    assert (among - total[~later]).abs().max() <= 1e-5 * total.abs().max()


@pytest.mark.parametrize("edges", ["full", "measured"])
def test_a_graph_over_a_target_gives_its_gradient_and_survives_a_file(
    subject: Subject, target: Target, edges: str, tmp_path: Path
) -> None:
    prompt = Prompt.of("ignored", token_ids=tuple(subject.input_ids.tolist()))
    graph = attribute(subject.model, prompt, target, edges=edges, nodes=20)  # type: ignore[arg-type]
    store = GraphStore(tmp_path)
    store.save(graph, {"inputs": {}, "config": {}})
    graph = store.load(graph.header.key)
    assert len(graph.selected) == 20 and len(graph.targets) == len(target.terms)
    assert (graph.targets.token_ids >= graph.header.d_vocab).all()
    found = influence(graph, target)
    assert graph.gradient is not None
    expected = (target.over() @ graph.gradient.double())[graph.selected]
    values = found.values[0, graph.layout.features]
    assert (values - expected).abs().max() <= 1e-5 * expected.abs().max()
    table = found.top(3)
    assert table.unit == target.unit and table.about["target"] == target.name
    assert graph.targets.logits is not None
    value = float(target.over() @ graph.targets.logits.double())
    assert value == pytest.approx(plain_value(subject, target), rel=1e-4, abs=1e-4)
    with pytest.raises(RequestError, match="no row of"):
        influence(graph, Target.span(2, 3))
    with pytest.raises(RequestError, match="frozen edges"):
        attribute(subject.model, prompt, target, edges="frozen")
