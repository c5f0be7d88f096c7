"""Planted directions are found among features; spectra are those of the dense matrix."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from subjects import Subject
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm

from em_circuits.bases import AdapterPart, adapter_parts
from em_circuits.bases.part import Stage
from em_circuits.features.adapter_geometry import (
    Alignment,
    alignments,
    gini,
    singular_values,
    spectra,
    through_norm,
    top_share,
)
from em_circuits.models.sites import Site


def part_on(subject: Subject, module: str, up: torch.Tensor, down: torch.Tensor) -> AdapterPart:
    """A part with these vectors on a module of the model, whether an adapter is there or not."""
    found = subject.pair.merged.hf.get_submodule(module)
    return AdapterPart(
        basis="adapter",
        name=module,
        layer=int(module.split(".")[2]),
        stage=Stage.MLP_HIDDEN,
        read=Site(found, "input"),
        writes=(Site(found, "output"),),
        n_nodes=len(up),
        down=down,
        up=up,
    )


def found(subject: Subject, part: AdapterPart, side: str) -> list[Alignment]:
    lines = alignments(subject.pair, [part], n_random=50, seed=0)
    return [line for line in lines if line.side == side]


def rows(subject: Subject, name: str, layer: int) -> torch.Tensor:
    return getattr(subject.pair.transcoders[layer], name).detach().float()


def test_a_write_along_a_decoder_is_found(subject: Subject) -> None:
    decoder = rows(subject, "W_dec", 1)[7]
    weight = subject.pair.merged.hf.model.layers[1].mlp.down_proj.weight
    down = torch.randn(2, weight.shape[1])
    part = part_on(
        subject, "model.layers.1.mlp.down_proj", torch.stack([-3 * decoder, decoder]), down
    )
    away, along = found(subject, part, "decoder")
    assert (away.feature_layer, away.feature) == (along.feature_layer, along.feature) == (1, 7)
    assert along.cosine == pytest.approx(1, abs=1e-5)
    assert away.cosine == pytest.approx(-1, abs=1e-5)
    assert along.quantile == away.quantile == 1.0 and along.random < 0.9
    # A random write stands nowhere in particular, and is as spread as random ones.
    other = replace(part, up=torch.randn(2, len(decoder)), n_nodes=2)
    for line in found(subject, other, "decoder"):
        assert abs(line.cosine) < 0.9
        assert line.gini == pytest.approx(line.random_gini, abs=0.15)


def test_a_write_along_an_encoder_is_found_behind_the_norm(subject: Subject) -> None:
    """What o_proj writes passes the norm's weight before the transcoder of its layer reads it."""
    site = subject.pair.merged.sites.reads[1]
    encoder = rows(subject, "W_enc", 1)[5]
    behind_norm = site.side == "output"
    write = encoder / site.module.weight if behind_norm else encoder
    down = torch.randn(1, subject.pair.merged.hf.model.layers[1].self_attn.o_proj.in_features)
    part = part_on(subject, "model.layers.1.self_attn.o_proj", write[None], down)
    by_layer = {line.feature_layer: line for line in found(subject, part, "encoder")}
    assert sorted(by_layer) == list(range(1, subject.pair.merged.sites.n_layers))
    assert by_layer[1].feature == 5 and by_layer[1].quantile == 1.0
    assert by_layer[1].cosine == pytest.approx(1, abs=1e-5)
    # An MLP's own layer has read already what it writes.
    width = subject.pair.merged.hf.model.layers[1].mlp.down_proj.in_features
    late = part_on(subject, "model.layers.1.mlp.down_proj", write[None], torch.randn(1, width))
    assert min(line.feature_layer for line in found(subject, late, "encoder")) == 2


def test_values_write_through_their_heads(subject: Subject) -> None:
    """Against a matrix product head by head, grouped queries included."""
    attention = subject.pair.merged.hf.model.layers[0].self_attn
    value, output = attention.v_proj, attention.o_proj.weight.float()
    up = torch.randn(1, value.out_features)
    part = part_on(
        subject, "model.layers.0.self_attn.v_proj", up, torch.randn(1, value.in_features)
    )
    size, n_heads = attention.head_dim, output.shape[1] // attention.head_dim
    groups = n_heads // (value.out_features // size)
    stream = torch.zeros(output.shape[0])
    for head in range(n_heads):
        mine = up[0, (head // groups) * size : (head // groups + 1) * size]
        stream += output[:, head * size : (head + 1) * size] @ mine
    decoders = rows(subject, "W_dec", 0)
    cosines = torch.nn.functional.cosine_similarity(decoders, stream[None])
    (line,) = found(subject, part, "decoder")
    assert line.feature == int(cosines.abs().argmax())
    assert line.cosine == pytest.approx(float(cosines[line.feature]), abs=1e-5)
    expected = torch.histc(cosines.abs(), 40, 0, line.upper).tolist()
    assert sum(line.histogram) == len(cosines)
    assert sum(abs(a - b) for a, b in zip(line.histogram, expected, strict=True)) <= 2


def test_a_read_along_a_decoder_before_is_found(subject: Subject) -> None:
    layer = subject.pair.merged.hf.model.layers[2]
    decoder = rows(subject, "W_dec", 1)[3]
    query, gate = layer.self_attn.q_proj, layer.mlp.gate_proj
    for name, module, norm in (
        ("self_attn.q_proj", query, layer.input_layernorm),
        ("mlp.gate_proj", gate, layer.post_attention_layernorm),
    ):
        down = (decoder / norm.weight)[None]
        part = part_on(subject, f"model.layers.2.{name}", torch.randn(1, module.out_features), down)
        lines = found(subject, part, "upstream")
        assert [line.feature_layer for line in lines] == [0, 1]
        assert lines[1].feature == 3 and lines[1].cosine == pytest.approx(1, abs=1e-5)
        assert not found(subject, part, "decoder") and not found(subject, part, "encoder")


def test_random_directions_are_not_beyond_random(subject: Subject) -> None:
    """A quantile is uniform where the write itself is a random direction."""
    width = subject.pair.merged.hf.model.layers[0].mlp.down_proj.in_features
    d_model = subject.pair.transcoders[0].d_model
    part = part_on(
        subject, "model.layers.0.mlp.down_proj", torch.randn(60, d_model), torch.randn(60, width)
    )
    quantiles = torch.tensor([line.quantile for line in found(subject, part, "decoder")])
    assert 0.3 < quantiles.mean() < 0.7 and quantiles.std() > 0.15


def test_a_norms_linear_part_is_its_weight_and_centring() -> None:
    vectors = torch.randn(5, 12)
    layer_norm, gemma = torch.nn.LayerNorm(12), Gemma2RMSNorm(12)
    with torch.no_grad():
        for parameter in (*layer_norm.parameters(), *gemma.parameters()):
            parameter.normal_()
    centred = vectors - vectors.mean(1, keepdim=True)
    for norm, expected in (
        (layer_norm, centred * layer_norm.weight),
        (gemma, vectors * (1 + gemma.weight)),
        (None, vectors),
    ):
        found = through_norm(norm, vectors).detach()
        assert torch.nn.functional.cosine_similarity(found, expected).min() > 1 - 1e-5


def test_gini_and_top_share_of_known_distributions() -> None:
    alike, one = torch.ones(200), torch.zeros(200)
    one[3] = 5
    values = torch.stack([alike, one, torch.zeros(200)], 1)
    assert gini(values).tolist() == pytest.approx([0, 1 - 1 / 200, 0], abs=1e-9)
    assert top_share(values, 100).tolist() == pytest.approx([0.5, 1, 0])
    drawn = torch.rand(40, 1)
    differences = (drawn - drawn.T).abs().double().sum() / (2 * 40**2 * drawn.double().mean())
    assert float(gini(drawn)[0]) == pytest.approx(float(differences), rel=1e-6)


def test_spectra_are_those_of_the_dense_matrix(subject: Subject) -> None:
    parts = adapter_parts(subject.pair)
    for part, spectrum in zip(parts, spectra(subject.pair, parts, n_random=4, seed=0), strict=True):
        base, merged = (
            m.hf.get_submodule(part.name).weight.double()
            for m in (subject.pair.base, subject.pair.merged)
        )
        s = torch.linalg.svdvals(merged - base)[: part.n_nodes]
        p = s / s.sum()
        assert spectrum.module == part.name
        assert spectrum.singular_values == pytest.approx(s.tolist(), rel=1e-3, abs=1e-5)
        assert spectrum.stable_rank == pytest.approx(float((s**2).sum() / s[0] ** 2), rel=1e-3)
        entropy = -(p * p.log()).sum() if part.n_nodes > 1 else torch.tensor(0.0)
        assert spectrum.effective_rank == pytest.approx(float(entropy.exp()), rel=1e-3)
        assert spectrum.relative == pytest.approx(
            float((merged - base).norm() / base.norm()), rel=1e-3
        )
        assert 1 <= spectrum.random_stable_rank <= part.n_nodes + 1e-6


def test_singular_values_of_an_adapter_that_does_nothing() -> None:
    assert singular_values(torch.zeros(3, 5), torch.randn(3, 7)).abs().max() == 0
