"""Ranks of every form of LoRA against PEFT's own merge: scaling, DoRA, embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from adapter_forms import FORMS, Adapted, adapted, load, write_adapter
from lifelike import Lifelike

from em_circuits.bases import adapter_parts
from em_circuits.bases.adapters import MagnitudeNorm
from em_circuits.graphs.held import captured, choose_nodes, full_edges, gradient_effects
from em_circuits.models.adapter import LoraAdapter
from em_circuits.models.sharing import tied_to
from pivotal_tokens.errors import RequestError

TIED_DORA = {"r": 2, "target_modules": ["embed_tokens"], "lora_alpha": 4, "use_dora": True}


@pytest.fixture(scope="module", params=list(FORMS))
def made(
    request: pytest.FixtureRequest,
    lifelike_paths: Lifelike,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Adapted]:
    subject = adapted(lifelike_paths, tmp_path_factory.mktemp("form"), request.param)
    with subject.pair:
        yield subject


def weights_of(made: Adapted, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    base, merged = (m.hf.get_submodule(name).weight.double() for m in made.pair.models)
    return base, merged


def test_every_module_that_peft_changed_is_a_part(made: Adapted) -> None:
    names = [f"{part.name}.weight" for part in adapter_parts(made.pair)]
    # A head that is tied to an embedding with ranks changes with it.
    assert tied_to(made.pair.merged.hf, names) == set(made.pair.changed)


def test_the_merged_weight_is_the_bases_with_our_a_and_b(made: Adapted) -> None:
    """PEFT's merge, against scaling B A of the file, with DoRA's factor."""
    adapter = LoraAdapter.read(made.adapter)
    for module in adapter.modules:
        base, merged = weights_of(made, module.name)
        found = adapter.tensors(module)
        delta = module.scaling * found.b.double() @ found.a.double()
        expected = base + (delta.T if module.embedding else delta)
        if found.magnitude is not None:
            assert not module.embedding
            expected *= (found.magnitude / expected.norm(dim=1))[:, None]
        assert (merged - expected).abs().max() <= 1e-6 * merged.abs().max()
        # Not a difference that rounding would hide.
        assert (merged - base).abs().max() > 1e-3


def test_writes_sum_to_merged_minus_base_module(made: Adapted) -> None:
    """With DoRA, to merged minus the base's weight at the merged magnitudes."""
    parts = adapter_parts(made.pair)
    for part, x in zip(parts, captured(made.pair.merged, parts, made.input_ids), strict=True):
        base, merged = weights_of(made, part.name)
        if part.dora is not None:
            unscaled = base + (part.dora.b @ part.down).double()
            base = base * (merged.norm(dim=1) / unscaled.norm(dim=1))[:, None]
        expected = (merged - base)[x] if part.embedding else x.double() @ (merged - base).T
        found = part.explained(x).double()
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_paths_among_ranks_sum_to_the_gradient(made: Adapted) -> None:
    parts = adapter_parts(made.pair)
    nodes = choose_nodes(made.pair.merged, parts, made.input_ids, made.weights, n=40)
    total = full_edges(made.pair.merged, nodes, made.input_ids, made.weights).total_effect()
    gradient = gradient_effects(made.pair.merged, nodes, made.input_ids, made.weights).double()
    assert (total[:, : len(nodes)] - gradient).abs().max() <= 1e-5 * gradient.abs().max()


def test_dora_on_an_embedding(lifelike_paths: Lifelike, tmp_path: Path) -> None:
    adapter = write_adapter(lifelike_paths.base, tmp_path / "a", **TIED_DORA)
    with load(lifelike_paths, adapter) as pair:
        (part,) = adapter_parts(pair)
        base, merged = (m.hf.get_input_embeddings().weight.double() for m in pair.models)
        delta = (part.dora.b @ part.down).double().T
        file = LoraAdapter.read(adapter)
        magnitude = file.tensors(file.modules[0]).magnitude.double()
        # The norm is over tokens, a value per column.
        expected = (base + delta) * magnitude / (base + delta).norm(dim=0)
        assert (merged - expected).abs().max() <= 1e-6 * merged.abs().max()
        ids = torch.arange(20)
        writes = part.explained(ids).double()
        held = base * magnitude / (base + delta).norm(dim=0)
        assert (writes - (merged - held)[ids]).abs().max() <= 1e-5 * writes.abs().max()


def test_magnitude_norms_are_those_of_the_matrix() -> None:
    weight, b, a = torch.randn(7, 11), torch.randn(7, 3), torch.randn(3, 11)
    norm = MagnitudeNorm.of(weight, b, a)
    factors = torch.randn(5, 3)
    expected = torch.stack([(weight + (b * c) @ a).norm(dim=1) for c in factors])
    assert torch.allclose(norm.norm(factors), expected, rtol=1e-5)


def test_a_module_without_a_place_is_refused(lifelike_paths: Lifelike, tmp_path: Path) -> None:
    form = {"r": 1, "target_modules": ["lm_head"], "lora_alpha": 4}
    adapter = write_adapter(lifelike_paths.base, tmp_path / "a", **form)
    with load(lifelike_paths, adapter) as pair, pytest.raises(RequestError, match="lm_head"):
        adapter_parts(pair)
