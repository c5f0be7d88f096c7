"""Long prompts: what saves memory (recomputed patterns, offloaded rows and contexts, gradients
without pattern matrices) changes no graph, and the memory formula holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from subjects import Subject, lifelike_subject

from em_circuits.graphs import (
    AttributionSettings,
    build_pair_graphs,
    builder,
    gradient,
    linear_rows,
)
from em_circuits.graphs.linear_rows import LinearRows
from em_circuits.graphs.offload import Scratch, offload
from pivotal_tokens.schema import Prompt

SETTINGS = AttributionSettings(edges="frozen", max_feature_nodes=300, update_rows=256)
ROOT = Path(__file__).parents[3]


@pytest.fixture
def prompt(subject: Subject) -> Prompt:
    text = subject.pair.tokenizer.decode(subject.input_ids[1:])
    return Prompt.of(text, token_ids=tuple(subject.input_ids.tolist()))


def test_a_graph_made_within_little_memory_is_the_same_graph(
    subject: Subject, prompt: Prompt, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    roomy = build_pair_graphs(subject.pair, prompt, SETTINGS)
    monkeypatch.setattr(linear_rows, "PATTERN_BYTES", 0)
    monkeypatch.setattr(builder, "ROW_BYTES", 0)
    monkeypatch.setattr("em_circuits.graphs.offload.LEAST_BYTES", 0)
    tight = build_pair_graphs(subject.pair, prompt, SETTINGS, scratch=tmp_path / "scratch")
    for left, right in zip(roomy.both, tight.both, strict=True):
        assert torch.equal(left.selected, right.selected)
        assert torch.equal(left.edges.values, right.edges.values)
        assert torch.equal(left.edges.logit_values, right.edges.logit_values)
        assert torch.equal(left.edges.outside_mass, right.edges.outside_mass)
        assert torch.equal(left.gradient, right.gradient)
    assert list((tmp_path / "scratch").iterdir()) == []  # it was used, and nothing is left


def test_gradients_without_pattern_matrices_are_the_same(
    subject: Subject, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = subject.model.hf.config._attn_implementation
    short = build_pair_graphs(subject.pair, prompt, SETTINGS)
    monkeypatch.setattr(gradient, "LONG", 4)
    long = build_pair_graphs(subject.pair, prompt, SETTINGS)
    for left, right in zip(short.both, long.both, strict=True):
        assert not torch.equal(left.gradient, right.gradient)  # another kernel
        largest = left.gradient.abs().max()
        assert (left.gradient - right.gradient).abs().max() <= 1e-5 * largest
    assert subject.model.hf.config._attn_implementation == before == "eager"


def test_an_offloaded_context_comes_back_bit_for_bit(subject: Subject) -> None:
    replacement = subject.model.replacement
    context, twin = (replacement.setup_attribution(subject.input_ids) for _ in range(2))
    offloaded = offload(context, Scratch())
    assert context.logits.shape[1] == 1
    assert offloaded.slots.keys() <= {"encoder_vecs", "decoder_vecs"}
    whole = offloaded.restore()
    assert torch.equal(whole.encoder_vecs, twin.encoder_vecs)
    assert torch.equal(whole.decoder_vecs, twin.decoder_vecs)
    assert torch.equal(whole.logits[0, -1], twin.logits[0, -1])


def test_scratch_keeps_every_type_and_shape() -> None:
    scratch = Scratch()
    tensors = [
        torch.randn(3, 4),
        torch.randn(5).bfloat16(),
        torch.arange(7),
        torch.empty(0),
        torch.randn(4, 6).T,
    ]
    slots = [scratch.put(tensor) for tensor in tensors]
    for tensor, slot in reversed(list(zip(tensors, slots, strict=True))):
        for back in (scratch.get(slot), scratch.mapped(slot)):
            assert back.dtype == tensor.dtype and torch.equal(back, tensor)
    scratch.clear()
    assert torch.equal(scratch.get(scratch.put(tensors[0])), tensors[0])


def test_rows_pass_through_skip_connections(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Skip connections of transcoders carry rows on, as in upstream's backward pass."""
    made = lifelike_subject(tmp_path_factory.mktemp("skip"))
    torch.manual_seed(0)
    own = made.model.transcoders
    assert own is not None
    layers = tuple(
        replace(one, W_skip=0.3 * torch.randn(one.d_model, one.d_model) / one.d_model**0.5)
        for one in own.layers
    )
    made.pair.merged = replace(made.model, transcoders=replace(own, layers=layers))
    with made.pair:
        replacement = made.model.replacement
        context = replacement.setup_attribution(made.input_ids)
        rows = LinearRows.of(replacement, context, made.input_ids)
        assert rows is not None
        replacement.run_forward_pass(made.input_ids, 16, context)
        last = int(rows.layers.max())
        chosen = (rows.layers == last).nonzero()[:16, 0]
        expected = context.compute_batch(
            layers=rows.layers[chosen],
            positions=rows.positions[chosen],
            inject_values=context.encoder_vecs[chosen],
        )
        found = rows.features(chosen)
        assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.fixture(scope="module")
def nnsight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    made = lifelike_subject(tmp_path_factory.mktemp("nnsight"), backend="nnsight")
    with made.pair:
        yield made


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_nnsight_backend_makes_the_same_pair_of_graphs(
    nnsight: Subject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = lifelike_subject(tmp_path_factory.mktemp("transformerlens"))
    ids = nnsight.input_ids
    prompt = Prompt.of(nnsight.pair.tokenizer.decode(ids[1:]), token_ids=tuple(ids.tolist()))
    settings = AttributionSettings(edges="frozen", max_feature_nodes=None)
    with other.pair:
        expected = build_pair_graphs(other.pair, prompt, settings)
    found = build_pair_graphs(nnsight.pair, prompt, settings)
    for left, right in zip(expected.both, found.both, strict=True):
        assert torch.equal(left.active, right.active)
        assert torch.equal(left.targets.token_ids, right.targets.token_ids)
        dense, largest = left.edges.to_dense(), left.edges.to_dense().abs().max()
        assert (right.edges.to_dense() - dense).abs().max() <= 1e-5 * largest
        assert (left.gradient - right.gradient).abs().max() <= 1e-5 * left.gradient.abs().max()
        assert left.header.key != right.header.key  # the backend is part of it


_SHAPES = (
    {"n_pos": 320, "active": 20_000, "features": 600, "batch_size": 64},
    {"n_pos": 48, "n_layers": 4, "d_model": 512, "n_heads": 8, "active": 12_000, "features": 400},
)


@pytest.mark.slow
def test_the_memory_formula_holds_on_two_shapes(tmp_path: Path) -> None:
    """Measured in a process of its own, as `make bench-long` does."""
    script = [sys.executable, "-W", "ignore", str(ROOT / "scripts" / "bench_long_prompt.py")]
    for i, shape in enumerate(_SHAPES):
        out = tmp_path / f"{i}.json"
        given = [f"--{name.replace('_', '-')}={value}" for name, value in shape.items()]
        subprocess.run(
            [*script, *given, "--out", str(out)],
            check=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        took = {row["work"]: row["ours"] for row in json.loads(out.read_text())["rows"]}
        reckoned = took["the same, by the formula of --max-memory"]
        assert reckoned / 2 <= took["attribution: memory beside the model"] <= 1.2 * reckoned, took
