"""One list of laws that every part of every basis is run through."""

from __future__ import annotations

import pytest
import torch
from random_transcoders import cross_layer_transcoder, per_layer_parts
from subjects import EVERY_SUBJECT, Subject

from em_circuits.bases import (
    Part,
    adapter_parts,
    neuron_parts,
    transcoder_parts,
)
from em_circuits.graphs.held import captured

pytestmark = EVERY_SUBJECT

BASES = {
    "transcoder": lambda subject: transcoder_parts(subject.pair.merged),
    "neuron": lambda subject: neuron_parts(subject.pair.merged),
    "adapter": lambda subject: adapter_parts(subject.pair),
    "top-k": lambda subject: per_layer_parts(subject, "top-k"),
    "skip": lambda subject: per_layer_parts(subject, "skip"),
    "cross-layer": lambda s: transcoder_parts(s.pair.merged, cross_layer_transcoder(s)),
    "cross-layer JumpReLU": lambda s: transcoder_parts(
        s.pair.merged, cross_layer_transcoder(s, "JumpReLU")
    ),
}


@pytest.fixture(params=list(BASES))
def parts(request: pytest.FixtureRequest, subject: Subject) -> tuple[Part, ...]:
    return BASES[request.param](subject)


@pytest.fixture
def reads(parts: tuple[Part, ...], subject: Subject) -> list[torch.Tensor]:
    return captured(subject.pair.merged, parts, subject.input_ids)


def active(part: Part, x: torch.Tensor, most: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """(position, id) of some active nodes."""
    place = part.activations(x).nonzero()[:most]
    return place[:, 0], place[:, 1]


def test_live_equals_the_activation_where_a_node_is_active(parts, reads) -> None:
    for part, x in zip(parts, reads, strict=True):
        position, ids = active(part, x)
        expected = part.activations(x)[position, ids]
        assert torch.allclose(part.live(x[position], ids), expected, rtol=1e-4, atol=1e-5)


def test_the_derivative_is_that_of_finite_differences(parts, reads) -> None:
    generator = torch.Generator().manual_seed(0)
    for part, x in zip(parts, reads, strict=True):
        position, ids = active(part, x)
        if not x.is_floating_point():
            continue
        at = x[position].double().requires_grad_()
        direction = torch.randn(at.shape, generator=generator, dtype=torch.float64)
        live = part.live(at, ids)
        (slope,) = torch.autograd.grad(live.sum(), at)
        step = 1e-5
        ahead, behind = (part.live(at.detach() + s * direction, ids) for s in (step, -step))
        found = (ahead - behind) / (2 * step)
        assert torch.allclose((slope * direction).sum(-1), found, rtol=1e-6, atol=1e-8)


def test_writes_sum_to_what_the_part_claims_to_explain(parts, reads) -> None:
    for part, x in zip(parts, reads, strict=True):
        position, ids = part.activations(x).nonzero().unbind(1)
        amounts = part.activations(x)[position, ids]
        written = amounts[:, None].float() * part.written(ids).float()
        total = torch.zeros(len(x), written.shape[1]).index_add(0, position, written)
        expected = part.explained(x).float()
        assert (total - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1e-3)


def test_scores_are_activation_times_write_times_gradient(parts, reads) -> None:
    generator = torch.Generator().manual_seed(0)
    for part, x in zip(parts, reads, strict=True):
        activations = part.activations(x)
        position, ids = active(part, x)
        width = part.written(ids[:1]).shape[-1]
        gradients = torch.randn(len(part.writes), 2, len(x), width, generator=generator)
        scores = part.scores(activations, list(gradients))
        written = torch.stack([part.written(ids, k) for k in range(len(part.writes))]).float()
        expected = torch.einsum(
            "n,knd,ktnd->tn",
            activations[position, ids].float(),
            written,
            gradients[:, :, position],
        )
        assert torch.allclose(scores[:, position, ids], expected, rtol=1e-3, atol=1e-5)


def test_neurons_explain_the_whole_mlp(subject: Subject) -> None:
    parts = neuron_parts(subject.pair.merged)
    for part, x in zip(parts, captured(subject.pair.merged, parts, subject.input_ids), strict=True):
        assert torch.allclose(part.explained(x), part.dictionary.down(x), rtol=1e-4, atol=1e-5)


def test_adapter_ranks_explain_merged_minus_base(subject: Subject) -> None:
    parts = adapter_parts(subject.pair)
    assert parts
    for part, x in zip(parts, captured(subject.pair.merged, parts, subject.input_ids), strict=True):
        base, merged = (
            m.hf.get_submodule(part.name).weight for m in (subject.pair.base, subject.pair.merged)
        )
        expected = x @ (merged - base).T
        bound = 1e-4 * expected.abs().max() + 1e-5 * (x @ base.T).abs().max()
        assert (part.explained(x) - expected).abs().max() <= bound


def test_parts_read_after_what_they_depend_on_was_written(parts) -> None:
    orders = [part.order for part in parts]
    assert orders == sorted(orders)
