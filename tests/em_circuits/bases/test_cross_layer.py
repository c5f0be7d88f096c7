"""Cross-layer transcoders as parts agree with circuit-tracer's own class."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder, load_clt
from random_transcoders import cross_layer_transcoder
from subjects import Subject

from em_circuits.bases import Part, cross_layer_parts
from em_circuits.graphs.held import captured
from pivotal_tokens.errors import RequestError


@pytest.fixture(params=["relu", "JumpReLU"])
def clt(request: pytest.FixtureRequest, subject: Subject) -> CrossLayerTranscoder:
    return cross_layer_transcoder(subject, request.param)


@torch.no_grad()
def written(parts: tuple[Part, ...], reads: list[torch.Tensor]) -> torch.Tensor:
    """Sum of every node's writes into each layer's MLP output, one node at a time."""
    total = torch.zeros(len(parts), *reads[0].shape)
    for part, x in zip(parts, reads, strict=True):
        for position, one in part.activations(x).nonzero().tolist():
            amount = part.activations(x)[position, one]
            for k in range(len(part.writes)):
                total[part.layer + k, position] += amount * part.written(torch.tensor([one]), k)[0]
    return total


def test_all_writes_sum_to_the_transcoder_s_reconstruction(
    subject: Subject, clt: CrossLayerTranscoder
) -> None:
    model = subject.pair.merged
    parts = cross_layer_parts(model, clt)
    reads = [x[:5] for x in captured(model, parts, subject.input_ids)]
    with torch.no_grad():
        expected = clt(torch.stack(reads)) - clt.b_dec[:, None]
    found = written(parts, reads)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (expected[1:].abs().amax((1, 2)) > 0).all()


def test_a_layer_writes_into_itself_and_every_later_one(
    subject: Subject, clt: CrossLayerTranscoder
) -> None:
    parts = cross_layer_parts(subject.pair.merged, clt)
    outputs = subject.pair.merged.sites.writes
    assert [part.writes for part in parts] == [outputs[i:] for i in range(len(parts))]


def test_read_from_disk_it_is_the_same(
    subject: Subject, clt: CrossLayerTranscoder, tmp_path: Path
) -> None:
    model = subject.pair.merged
    clt.to_safetensors(str(tmp_path))
    lazy = load_clt(
        str(tmp_path),
        clt.feature_input_hook,
        clt.feature_output_hook,
        device=model.device,
        dtype=clt.dtype,
        lazy_decoder=True,
        lazy_encoder=True,
    )
    ids = torch.tensor([3, 0, 3, 39])
    for one, other in zip(
        cross_layer_parts(model, clt), cross_layer_parts(model, lazy), strict=True
    ):
        x = torch.randn(4, clt.d_model)
        assert torch.equal(one.activations(x), other.activations(x))
        assert torch.equal(one.live(x, ids), other.live(x, ids))
        for k in range(len(one.writes)):
            assert torch.equal(one.written(ids, k), other.written(ids, k))


def test_one_of_another_depth_is_refused(subject: Subject, clt: CrossLayerTranscoder) -> None:
    clt.n_layers += 1
    with pytest.raises(RequestError, match=f"has {clt.n_layers} layers of width"):
        cross_layer_parts(subject.pair.merged, clt)
