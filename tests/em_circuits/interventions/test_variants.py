"""Precisions, places of the transcoder matrices, and transcoders with a skip connection."""

from pathlib import Path

import pytest
import torch
from lifelike import PROMPT
from safetensors.torch import load_file, save_file
from subjects import lifelike_settings

from em_circuits.interventions import ActivationCache, Intervention, Mode, Regime, run_rows
from em_circuits.models import Model, ModelPair, encode


def rows_on(model: Model, regime: Regime, value: float = 3.0) -> torch.Tensor:
    ids = torch.tensor(encode(model.tokenizer, PROMPT))
    state = ActivationCache.capture(model, ids)
    items = [
        Intervention(layer=layer, position=position, feature=7, mode=Mode.SET, value=value)
        for layer, position in ((0, 3), (1, 9), (3, len(ids) - 1))
    ]
    return run_rows(model, state, [[], items, [items[0]]], regime)


@pytest.mark.parametrize("regime", list(Regime))
def test_every_place_of_the_matrices_gives_the_same_logits(tmp_path: Path, regime: Regime) -> None:
    settings = lifelike_settings(tmp_path)
    found = []
    for place in ("disk", "cpu", "gpu"):
        with ModelPair.load(settings.model_copy(update={"transcoders_on": place})) as pair:
            found.append(rows_on(pair.merged, regime))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_bfloat16_effects_follow_the_float32_ones(tmp_path: Path) -> None:
    settings = lifelike_settings(tmp_path)
    with (
        ModelPair.load(settings) as exact,
        ModelPair.load(settings.model_copy(update={"dtype": "bfloat16"})) as short,
    ):
        for regime in Regime:
            expected, measured = rows_on(exact.base, regime), rows_on(short.base, regime)
            effects, expected = measured[1:] - measured[0], expected[1:] - expected[0]
            error = (effects - expected).norm() / expected.norm()
            assert error < 0.15, regime


@pytest.fixture(scope="module")
def skipping(tmp_path_factory: pytest.TempPathFactory):
    settings = lifelike_settings(tmp_path_factory.mktemp("skip"), transcoders_on="gpu")
    generator = torch.Generator().manual_seed(1)
    for path in Path(settings.transcoders).glob("layer_*.safetensors"):
        tensors = load_file(path)
        width = len(tensors["b_dec"])
        tensors["W_skip"] = (0.1 * torch.randn(width, width, generator=generator)).bfloat16()
        save_file(tensors, path)
    with ModelPair.load(settings) as pair:
        yield pair


@pytest.mark.frozen
def test_direct_effects_pass_through_skip_connections_as_upstream(skipping: ModelPair) -> None:
    model = skipping.merged
    ids = torch.tensor(encode(model.tokenizer, PROMPT))
    upstream = model.replacement.feature_intervention(
        ids, [(0, 3, 7, 3.0)], constrained_layers=range(4)
    )[0][0, -1]
    measured = rows_on(model, Regime.DIRECT)
    assert (measured[2] - upstream).abs().max() <= 1e-5 * upstream.abs().max()


@pytest.mark.frozen
def test_errors_complete_what_transcoders_with_a_skip_connection_make(skipping: ModelPair) -> None:
    model = skipping.base
    ids = torch.tensor(encode(model.tokenizer, PROMPT))
    state = ActivationCache.capture(model, ids)
    context = model.replacement.setup_attribution(ids)
    assert torch.allclose(state.errors(model)[:, 1:], context.error_vectors[:, 1:], atol=1e-5)
