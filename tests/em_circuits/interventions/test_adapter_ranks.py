"""Ranks scaled by hooks are adapters changed on disk and merged by PEFT; scores are derivatives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from adapter_forms import FORMS, Adapted, adapted, load, write_adapter
from lifelike import Lifelike
from safetensors.torch import load_file, save_file
from subjects import Subject

from em_circuits.bases import adapter_parts
from em_circuits.graphs.held import choose_nodes, gradient_effects
from em_circuits.interventions.adapter_ranks import (
    drop_effects,
    integrated_rank_effects,
    n_ranks,
    pulls,
    random_writes,
    rank_gradients,
    scaled_logits,
)
from pivotal_tokens.errors import RequestError


@pytest.fixture(scope="module", params=list(FORMS))
def made(
    request: pytest.FixtureRequest,
    lifelike_paths: Lifelike,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Adapted]:
    subject = adapted(lifelike_paths, tmp_path_factory.mktemp("form"), request.param)
    with subject.pair:
        yield subject


def logits(made: Adapted, factors: torch.Tensor, **options) -> torch.Tensor:
    parts = adapter_parts(made.pair)
    with torch.no_grad():
        return scaled_logits(made.pair.merged, parts, made.input_ids, factors, **options)


def on_disk(made: Adapted, lifelike: Lifelike, out: Path, factors: torch.Tensor) -> torch.Tensor:
    """Logits of a pair whose adapter has the columns of B multiplied in its file."""
    shutil.copytree(made.adapter, out)
    file = out / "adapter_model.safetensors"
    tensors = load_file(file)
    start = 0
    for part in adapter_parts(made.pair):
        end = "lora_embedding_B" if part.embedding else "lora_B.weight"
        key = f"base_model.model.{part.name}.{end}"
        tensors[key] = tensors[key] * factors[start : start + part.n_nodes]
        start += part.n_nodes
    save_file(tensors, file, metadata={"format": "pt"})
    with load(lifelike, out) as pair:
        return pair.merged.next_logits(made.input_ids).float()


def test_factors_are_a_changed_adapter_merged_by_peft(
    made: Adapted, lifelike_paths: Lifelike, tmp_path: Path
) -> None:
    n = n_ranks(adapter_parts(made.pair))
    dropped = torch.ones(n)
    dropped[n // 2] = 0
    mixed = torch.linspace(0, 1.5, n)
    found = logits(made, torch.stack([dropped, mixed]))
    for number, factors in enumerate((dropped, mixed)):
        expected = on_disk(made, lifelike_paths, tmp_path / str(number), factors)
        assert (found[number] - expected).abs().max() <= 2e-5 * expected.abs().max()
    merged = made.pair.merged.next_logits(made.input_ids)
    assert (found[0] - merged).abs().max() > 1e-3


def test_one_is_merged_and_zero_is_base(made: Adapted) -> None:
    n = n_ranks(adapter_parts(made.pair))
    zero, one = logits(made, torch.stack([torch.zeros(n), torch.ones(n)]))
    base, merged = (m.next_logits(made.input_ids) for m in made.pair.models)
    assert (one - merged).abs().max() <= 1e-5 * merged.abs().max()
    if made.form == "DoRA":  # the base's directions at the merged magnitudes are not the base
        assert (zero - base).abs().max() > 1e-3
    else:
        assert (zero - base).abs().max() <= 2e-5 * base.abs().max()


def test_a_drop_is_the_difference_of_two_runs(made: Adapted) -> None:
    parts = adapter_parts(made.pair)
    n = n_ranks(parts)
    effects = drop_effects(made.pair.merged, parts, made.input_ids, made.weights, rows=3)
    assert effects.shape == (1, n)
    whole = made.pair.merged.next_logits(made.input_ids) @ made.weights[0]
    for rank in {0, n // 2, n - 1}:
        factors = torch.ones(1, n)
        factors[0, rank] = 0
        expected = whole - logits(made, factors)[0] @ made.weights[0]
        assert abs(float(effects[0, rank] - expected)) <= 1e-5 * float(whole.abs() + 1)
    some = drop_effects(
        made.pair.merged, parts, made.input_ids, made.weights, ranks=torch.tensor([n - 1, 0])
    )
    assert torch.allclose(some[0], effects[0, [n - 1, 0]], atol=1e-5)


def test_the_gradient_is_that_of_finite_differences(made: Adapted) -> None:
    parts = adapter_parts(made.pair)
    n = n_ranks(parts)
    found = rank_gradients(
        made.pair.merged, parts, made.input_ids, made.weights, torch.tensor([1.0])
    )[0]
    step = 0.02
    for rank in {0, n // 2, n - 1}:
        change = step * torch.eye(n)[rank]
        ahead, behind = logits(made, torch.stack([1 + change, 1 - change])) @ made.weights[0]
        slope = (ahead - behind) / (2 * step)
        assert abs(float(found[rank] - slope)) <= 2e-2 * float(found.abs().max()) + 1e-4


def test_the_gradient_sums_the_scores_of_a_ranks_nodes(subject: Subject) -> None:
    model, parts = subject.pair.merged, adapter_parts(subject.pair)
    weights = subject.groups.weights(model.hf.config.vocab_size)[None]
    nodes = choose_nodes(model, parts, subject.input_ids, weights, n=None)
    scores = gradient_effects(model, nodes, subject.input_ids, weights)[0]
    start = torch.tensor([0, *[part.n_nodes for part in nodes.parts]]).cumsum(0)
    place = {part.name: i for i, part in enumerate(nodes.parts)}
    summed = torch.zeros(n_ranks(parts)).index_add(0, start[nodes.part] + nodes.id, scores)
    order = torch.tensor(
        [int(start[place[part.name]]) + r for part in parts for r in range(part.n_nodes)]
    )
    found = rank_gradients(model, parts, subject.input_ids, weights, torch.tensor([1.0]))[0]
    assert torch.allclose(found, summed[order], atol=1e-5 * float(summed.abs().max()))
    pulled = pulls(model, parts, subject.input_ids, weights)
    again = torch.cat([(v[0] * part.up).sum(-1) for v, part in zip(pulled, parts, strict=True)])
    assert torch.allclose(again, found, atol=1e-5 * float(found.abs().max()))


def test_integrated_effects_sum_to_the_shift(subject: Subject) -> None:
    model, parts = subject.pair.merged, adapter_parts(subject.pair)
    weights = subject.groups.weights(model.hf.config.vocab_size)[None]
    base, merged = (
        m.next_logits(subject.input_ids).float() @ weights[0] for m in subject.pair.models
    )
    found = integrated_rank_effects(model, parts, subject.input_ids, weights, steps=16)
    assert abs(float(found.sum() - (merged - base))) <= 0.02 * abs(float(merged - base))


def test_random_writes_have_the_norms_and_take_their_place(
    made: Adapted, lifelike_paths: Lifelike
) -> None:
    parts = adapter_parts(made.pair)
    n = n_ranks(parts)
    drawn = random_writes(parts, seed=1)
    for part, other in zip(parts, drawn, strict=True):
        assert torch.allclose(other.norm(dim=1), part.up.norm(dim=1), rtol=1e-5)
        assert not torch.allclose(other, part.up, atol=1e-2)
    own = [part.up for part in parts]
    if made.form != "DoRA":  # its norms follow its own writes
        factors = torch.stack([torch.ones(n), torch.full((n,), 0.5)])
        found, expected = logits(made, factors, instead=own), logits(made, factors)
        assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()
    none, some = logits(made, torch.stack([torch.zeros(n), torch.ones(n)]), instead=drawn)
    assert (none - logits(made, torch.zeros(1, n))[0]).abs().max() <= 2e-5 * none.abs().max()
    assert (some - none).abs().max() > 1e-3


def test_hooks_are_taken_off_after_an_error(made: Adapted) -> None:
    parts = adapter_parts(made.pair)
    before = made.pair.merged.next_logits(made.input_ids)
    with pytest.raises(RuntimeError):
        scaled_logits(made.pair.merged, parts, made.input_ids, torch.zeros(2, 1000)[:, :0])
    assert torch.equal(made.pair.merged.next_logits(made.input_ids), before)


def test_dora_on_a_tied_embedding_cannot_be_scaled(lifelike_paths: Lifelike, tmp_path) -> None:
    form = {"r": 2, "target_modules": ["embed_tokens"], "lora_alpha": 4, "use_dora": True}
    adapter = write_adapter(lifelike_paths.base, tmp_path / "a", **form)
    assert json.loads((adapter / "adapter_config.json").read_text())["use_dora"]
    with load(lifelike_paths, adapter) as pair, pytest.raises(RequestError, match="tied"):
        scaled_logits(pair.merged, adapter_parts(pair), torch.tensor([1, 2]), torch.ones(1, 2))
