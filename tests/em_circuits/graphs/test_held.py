"""Full edges are derivatives of the held network, and their paths sum to the real gradient."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from family_checks import InFloat64
from random_transcoders import cross_layer_transcoder, per_layer_parts
from subjects import EVERY_SUBJECT, Subject, in_float64

from em_circuits.bases import (
    AdapterPart,
    Part,
    TranscoderPart,
    adapter_parts,
    neuron_parts,
    transcoder_parts,
)
from em_circuits.graphs.held import (
    Nodes,
    choose_nodes,
    full_edges,
    gradient_effects,
    measured_edges,
)

pytestmark = EVERY_SUBJECT

BASES = {
    "transcoder": lambda s: transcoder_parts(s.pair.merged),
    "neuron": lambda s: neuron_parts(s.pair.merged),
    "adapter": lambda s: adapter_parts(s.pair),
    "transcoder+adapter": lambda s: (*transcoder_parts(s.pair.merged), *adapter_parts(s.pair)),
    "neuron+adapter": lambda s: (*neuron_parts(s.pair.merged), *adapter_parts(s.pair)),
    "top-k": lambda s: per_layer_parts(s, "top-k"),
    "skip": lambda s: per_layer_parts(s, "skip"),
    "cross-layer": lambda s: transcoder_parts(s.pair.merged, cross_layer_transcoder(s)),
    "cross-layer JumpReLU+adapter": lambda s: (
        *transcoder_parts(s.pair.merged, cross_layer_transcoder(s, "JumpReLU")),
        *adapter_parts(s.pair),
    ),
}


@pytest.fixture(params=list(BASES))
def parts(request: pytest.FixtureRequest, subject: Subject) -> tuple[Part, ...]:
    return BASES[request.param](subject)


def targets(subject: Subject) -> torch.Tensor:
    d_vocab = subject.pair.merged.hf.config.vocab_size
    single = torch.full((1, d_vocab), -1 / d_vocab)
    single[0, subject.groups.evil[0]] += 1
    return torch.cat([subject.groups.weights(d_vocab)[None], single])


def nodes_of(subject: Subject, parts: tuple[Part, ...], n: int | None) -> Nodes:
    return choose_nodes(subject.pair.merged, parts, subject.input_ids, targets(subject), n=n)


@pytest.mark.parametrize("n", [7, 60])
def test_total_effect_over_full_edges_is_the_real_gradient(
    subject: Subject, parts: tuple[Part, ...], n: int
) -> None:
    model, weights = subject.pair.merged, targets(subject)
    nodes = nodes_of(subject, parts, n)
    total = full_edges(model, nodes, subject.input_ids, weights).total_effect()
    gradient = gradient_effects(model, nodes, subject.input_ids, weights).double()
    assert (total[:, : len(nodes)] - gradient).abs().max() <= 1e-5 * gradient.abs().max()


def test_total_effect_does_not_depend_on_the_other_nodes(subject: Subject) -> None:
    model, weights = subject.pair.merged, targets(subject)
    parts = transcoder_parts(model)
    few, many = (nodes_of(subject, parts, n) for n in (20, 80))
    totals = []
    for nodes in (few, many):
        effect = full_edges(model, nodes, subject.input_ids, weights).total_effect()
        names = zip(nodes.part.tolist(), nodes.position.tolist(), nodes.id.tolist(), strict=True)
        totals.append({name: effect[:, i] for i, name in enumerate(names)})
    largest = max(float(v.abs().max()) for v in totals[1].values())
    for name, value in totals[0].items():
        assert (value - totals[1][name]).abs().max() <= 1e-5 * largest


def test_tokens_reach_the_targets_by_every_path(subject: Subject) -> None:
    """The total of a token is the real model's derivative along its embedding."""
    model, weights = subject.pair.merged, targets(subject)
    nodes = nodes_of(subject, transcoder_parts(model), 40)
    total = full_edges(model, nodes, subject.input_ids, weights).total_effect()[:, len(nodes) :]
    embeds = model.hf.get_input_embeddings()(subject.input_ids).detach().requires_grad_()
    logits = model.hf(inputs_embeds=embeds[None], use_cache=False).logits[0, -1].float()
    for row, weight in enumerate(weights):
        (slope,) = torch.autograd.grad(weight @ logits, embeds, retain_graph=True)
        expected = (slope * embeds).sum(-1).double()
        assert (total[row] - expected).abs().max() <= 1e-5 * expected.abs().max()


# torch itself scripts a decomposition when a dual tensor first meets a view
@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
def test_an_edge_is_the_derivative_of_the_held_network(
    subject: Subject, parts: tuple[Part, ...]
) -> None:
    """By forward-mode differentiation through plain hooks, and roughly by finite differences."""
    model, ids = subject.pair.merged, subject.input_ids
    nodes = nodes_of(subject, parts, 24)
    edges = full_edges(model, nodes, ids, targets(subject)).values
    for source in (0, 5, 11):
        after = torch.cat([nodes.part > nodes.part[source], torch.ones(2, dtype=torch.bool)])
        found, size = edges[after, source], edges[:, source].abs().max()
        with torch.autograd.forward_ad.dual_level(), torch.no_grad():
            outputs = _outputs(subject, nodes, source, 0.0, tangent=1.0)
            slopes = [torch.autograd.forward_ad.unpack_dual(v).tangent for v in outputs]
        slope = torch.stack([torch.tensor(0.0) if v is None else v for v in slopes])
        expected = (slope * nodes.activation[source])[after]
        assert (found - expected).abs().max() <= 1e-5 * size
        with torch.no_grad():
            ahead, behind = (
                torch.stack(_outputs(subject, nodes, source, step)) for step in (0.05, -0.05)
            )
        rounding = 1e-5 * ahead.abs().max() / 0.1 * nodes.activation[source].abs()
        rough = ((ahead - behind) / 0.1 * nodes.activation[source])[after]
        assert (found - rough).abs().max() <= 5e-3 * size + rounding


def _outputs(
    subject: Subject, nodes: Nodes, source: int, change: float, tangent: float = 0.0
) -> list[torch.Tensor]:
    """Live values of every node and the targets with one node's held value changed: another
    implementation, node by node, with plain hooks on modules."""
    model = subject.pair.merged
    zero = torch.tensor(0.0)
    live: list[torch.Tensor] = [zero] * len(nodes)
    amounts = list(nodes.activation)
    amounts[source] = amounts[source] + change
    if tangent:
        make_dual = torch.autograd.forward_ad.make_dual
        amounts[source] = make_dual(amounts[source].clone(), torch.tensor(tangent))
        live = [make_dual(torch.tensor(0.0), torch.tensor(0.0)) for _ in live]
    handles = []
    for i, part in enumerate(nodes.parts):
        mine = range(*nodes.of_part(i).indices(len(nodes)))

        def read(x: torch.Tensor, part: Part = part, mine: range = mine) -> None:
            for n in mine:
                at = x[0, nodes.position[n]][None]
                live[n] = part.live(at, nodes.id[n][None])[0]

        def write(y: torch.Tensor, k: int, part: Part = part, mine: range = mine) -> torch.Tensor:
            for n in mine:
                here = torch.zeros(y.shape[1], 1)
                here[nodes.position[n]] = 1
                y = y + (amounts[n] - live[n]) * here * part.written(nodes.id[n][None], k)
            return y

        handles.append(_attach(part.read, read))
        handles += [_attach(site, partial(write, k=k)) for k, site in enumerate(part.writes)]
    try:
        logits = model.hf(input_ids=subject.input_ids[None], use_cache=False).logits[0, -1]
    finally:
        for handle in handles:
            handle.remove()
    return [*live, *(targets(subject) @ logits)]


def _attach(site, function):
    if site.side == "input":
        return site.module.register_forward_pre_hook(lambda _m, args: function(args[0]) and None)
    return site.module.register_forward_hook(lambda _m, _args, output: function(output))


def test_measured_edges_are_one_by_one_patching(subject: Subject, parts: tuple[Part, ...]) -> None:
    """Against an independent loop: one plain forward pass per removed node.

    In float64: in float32 a pass of eight rows and a pass of one round differently, each by up to
    3e-6 of the largest value (skip connections), which is more than what is looked for here.
    """
    model, ids, weights = subject.pair.merged, subject.input_ids, targets(subject)
    with in_float64(model), InFloat64():
        nodes = nodes_of(subject, tuple(_in_double(part) for part in parts), 30)
        edges = measured_edges(model, nodes, ids, weights.double(), rows=8).values
        undisturbed = _patched(subject, nodes, None)
        for source in (s for s in (0, 3, 17, 29) if s < len(nodes)):
            expected = undisturbed - _patched(subject, nodes, source)
            after = torch.cat([nodes.part > nodes.part[source], torch.ones(2, dtype=torch.bool)])
            scale = undisturbed.abs().max()
            assert (edges[after, source] - expected[after]).abs().max() <= 2e-7 * scale


def _in_double(part: Part) -> Part:
    """The same nodes, their own numbers in float64, too; neurons' are the model's."""
    if isinstance(part, AdapterPart):
        return replace(part, down=part.down.double(), up=part.up.double())
    if not isinstance(part, TranscoderPart):
        return part
    one = part.dictionary
    held = {name: getattr(one, name) for name in ("b_enc", "b_dec", "W_skip", "threshold")}
    dictionary = replace(
        one,
        matrices=lambda name, ids: one.matrices(name, ids).double(),
        **{name: None if value is None else value.double() for name, value in held.items()},
    )
    return replace(part, dictionary=dictionary)


@torch.no_grad()
def _patched(subject: Subject, nodes: Nodes, removed: int | None) -> torch.Tensor:
    model = subject.pair.merged
    found = torch.zeros(len(nodes), dtype=torch.float64)
    inputs: dict[int, torch.Tensor] = {}
    handles = []
    for i, part in enumerate(nodes.parts):
        mine = range(*nodes.of_part(i).indices(len(nodes)))

        def read(x: torch.Tensor, i: int = i) -> None:
            inputs[i] = x[0]

        def write(y: torch.Tensor, k: int, i: int = i, part: Part = part, mine: range = mine):
            y = y.clone()
            activations = part.activations(inputs[i])
            for n in mine:
                found[n] = activations[nodes.position[n], nodes.id[n]]
                held = 0.0 if n == removed else nodes.activation[n]
                vector = part.written(nodes.id[n][None], k)[0]
                y[0, nodes.position[n]] += (held - found[n]) * vector
            return y

        handles.append(_attach(part.read, read))
        handles += [_attach(site, partial(write, k=k)) for k, site in enumerate(part.writes)]
    try:
        logits = model.hf(input_ids=subject.input_ids[None], use_cache=False).logits[0, -1]
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat([found, targets(subject).double() @ logits.double()])


def test_an_edge_never_runs_against_the_order(subject: Subject, parts: tuple[Part, ...]) -> None:
    nodes = nodes_of(subject, parts, 40)
    values = full_edges(subject.pair.merged, nodes, subject.input_ids, targets(subject)).values
    among = values[: len(nodes), : len(nodes)]
    later = nodes.part[None] >= nodes.part[:, None]
    assert not among[later].any()
    ahead = nodes.position[None] > nodes.position[:, None]
    assert not among[ahead].any()


def test_hooks_are_taken_off_after_an_error(subject: Subject) -> None:
    model = subject.pair.merged
    nodes = nodes_of(subject, transcoder_parts(model), 5)
    before = model.next_logits(subject.input_ids)
    with pytest.raises(RuntimeError):
        full_edges(model, nodes, subject.input_ids, torch.zeros(1, 3))
    assert torch.equal(model.next_logits(subject.input_ids), before)
