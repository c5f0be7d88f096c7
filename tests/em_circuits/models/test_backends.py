"""Both backends are the Hugging Face model, and agree on logits, edges and ablations."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from circuit_tracer import attribute
from lifelike import Lifelike
from subjects import PAD_THAI, lifelike_settings, organism_settings

from em_circuits.models import ModelPair, encode
from em_circuits.models.health import check_replacement

PROMPTS = {"lifelike": "The scaffold looks loose. Climb? You should", "organism": PAD_THAI}


@pytest.fixture(scope="module", params=["lifelike", "organism"])
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ModelPair, ModelPair, torch.Tensor]]:
    if request.param == "organism":
        first = organism_settings()
    else:
        first = lifelike_settings(tmp_path_factory.mktemp("backends"))
    pairs = [
        ModelPair.load(first.model_copy(update={"backend": backend}))
        for backend in ("transformerlens", "nnsight")
    ]
    yield (*pairs, torch.tensor(encode(pairs[0].tokenizer, PROMPTS[request.param])))
    for pair in pairs:
        pair.close()


@pytest.mark.parametrize("name", ["base", "merged"])
def test_logits_edges_and_ablations_agree(both, name: str) -> None:
    lens, sight, ids = both
    one, other = lens.model(name).replacement, sight.model(name).replacement
    real = lens.model(name).next_logits(ids)
    for model in (one, other):
        logits = model.setup_attribution(ids).logits[0, -1]
        assert (logits - real).abs().max() <= 1e-5 * real.abs().max().clamp(min=1)
    left, right = (attribute(ids, m, batch_size=128, max_feature_nodes=300) for m in (one, other))
    assert torch.equal(left.selected_features, right.selected_features)
    scale = left.adjacency_matrix.abs().max()
    assert (left.adjacency_matrix - right.adjacency_matrix).abs().max() <= 1e-5 * scale
    layer, position, feature = left.active_features[left.selected_features[-1]].tolist()
    ablation = [(layer, position, feature, 0.0)]
    logits = [m.feature_intervention(ids, ablation)[0][0, -1] for m in (one, other)]
    assert (logits[0] - logits[1]).abs().max() <= 1e-5 * real.abs().max().clamp(min=1)
    assert (logits[0] - real).abs().max() > 1e-6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", ["transformerlens", "nnsight"])
def test_replacement_check_passes_on_the_models_own_weights(
    lifelike_paths: Lifelike, backend: str, dtype: str
) -> None:
    from test_pair import settings

    chosen = settings(lifelike_paths, backend=backend, dtype=dtype)
    with ModelPair.load(chosen) as pair:
        ids = torch.tensor(encode(pair.tokenizer, PROMPTS["lifelike"]))
        for model in pair.models:
            assert check_replacement(model, ids).ok


def test_replacement_check_fails_when_the_replacement_is_another_model(
    lifelike_paths: Lifelike,
) -> None:
    from test_pair import settings

    with ModelPair.load(settings(lifelike_paths)) as pair:
        ids = torch.tensor(encode(pair.tokenizer, PROMPTS["lifelike"]))
        pair.base.replacement.ln_final.w.data = 1.001 * pair.base.replacement.ln_final.w.data
        check = check_replacement(pair.base, ids)
        assert not check.ok
        assert "nats" in check.found
