"""Cross-layer transcoders as parts agree with circuit-tracer's own class."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from random_transcoders import (
    cross_layer_transcoder,
    write_cross_layer,
    write_scope_2_cross_layer,
)
from subjects import Subject

from em_circuits.bases import Part, transcoder_parts
from em_circuits.graphs.held import captured
from em_circuits.models.transcoder_files import TranscoderFiles
from em_circuits.models.transcoders import Transcoders, load_transcoders
from pivotal_tokens.errors import RequestError


@pytest.fixture(params=["relu", "JumpReLU"])
def clt(request: pytest.FixtureRequest, subject: Subject) -> Transcoders:
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


def test_all_writes_sum_to_the_reconstruction_of_circuit_tracer(
    subject: Subject, clt: Transcoders, tmp_path: Path
) -> None:
    pytest.importorskip("circuit_tracer")
    from circuit_tracer.transcoder.cross_layer_transcoder import load_clt

    model = subject.pair.merged
    parts = transcoder_parts(model, clt)
    reads = [x[:5] for x in captured(model, parts, subject.input_ids)]
    theirs = load_clt(str(write_cross_layer(tmp_path / "clt", clt)), dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.stack(reads)) - theirs.b_dec[:, None]
    found = written(parts, reads)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (expected[1:].abs().amax((1, 2)) > 0).all()


def test_a_layer_writes_into_itself_and_every_later_one(subject: Subject, clt: Transcoders) -> None:
    parts = transcoder_parts(subject.pair.merged, clt)
    outputs = subject.pair.merged.sites.writes
    assert [part.writes for part in parts] == [outputs[i:] for i in range(len(parts))]


@pytest.mark.parametrize("place", ["gpu", "cpu", "disk"])
@pytest.mark.parametrize("layout", ["circuit-tracer", "gemma-scope-2"])
def test_read_from_files_it_is_the_same(
    subject: Subject, clt: Transcoders, layout: str, place: str, tmp_path: Path
) -> None:
    # gemma-scope-2's list of files was refused
    model = subject.pair.merged
    if layout == "gemma-scope-2" and clt[0].threshold is None:
        clt = cross_layer_transcoder(subject, "JumpReLU")  # all of gemma-scope-2 are
    write = write_cross_layer if layout == "circuit-tracer" else write_scope_2_cross_layer
    files = TranscoderFiles.read("--transcoders", "clt", write(tmp_path / "clt", clt))
    loaded = load_transcoders(files, device=model.device, dtype=model.dtype, place=place)
    ids = torch.tensor([3, 0, 3, 39])
    both = transcoder_parts(model, clt), transcoder_parts(model, loaded)
    for one, other in zip(*both, strict=True):
        x = torch.randn(4, clt[0].d_model)
        assert torch.equal(one.activations(x), other.activations(x))
        assert torch.equal(one.live(x, ids), other.live(x, ids))
        assert len(one.writes) == len(other.writes)
        for k in range(len(one.writes)):
            assert torch.equal(one.written(ids, k), other.written(ids, k))


def test_one_of_another_depth_is_refused(subject: Subject, clt: Transcoders) -> None:
    shorter = dataclasses.replace(clt, layers=clt.layers[:-1])
    with pytest.raises(RequestError, match=f"have {len(clt) - 1} layers of width"):
        transcoder_parts(subject.pair.merged, shorter)
