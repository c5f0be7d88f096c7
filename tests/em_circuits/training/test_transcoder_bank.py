"""Transcoders of the organism: units folded into the weights, threshold, circuit-tracer's form."""

import pytest
import torch
from circuit_tracer.transcoder.single_layer_transcoder import load_relu_transcoder

from em_circuits.training.optimise import reproducible
from em_circuits.training.settings import BankConfig
from em_circuits.training.transcoder_bank import TranscoderBank, save_layer


@pytest.fixture
def trained(tmp_path):
    with reproducible(0):
        inputs = 3 + 2 * torch.randn(2, 400, 8)
        outputs = inputs.tanh() @ torch.randn(8, 8) - 5
        bank = TranscoderBank(n_layers=2, d_model=8, config=BankConfig(features=32, k=4))
        bank.fit_units(inputs, outputs)
        threshold = bank.threshold(inputs)
    for layer, tensors in enumerate(bank.folded(threshold)):
        save_layer(tmp_path, layer, tensors)
    loaded = [
        load_relu_transcoder(
            str(tmp_path / f"layer_{i}.safetensors"),
            i,
            device=torch.device("cpu"),
            lazy_encoder=False,
            lazy_decoder=False,
        )
        for i in range(2)
    ]
    return bank, loaded, inputs


@torch.no_grad()
def test_the_saved_transcoder_computes_in_model_units_what_the_bank_computes_in_its_own(trained):
    bank, loaded, inputs = trained
    pre = bank.pre_activations(inputs)
    for layer, transcoder in enumerate(loaded):
        x = inputs[layer]
        torch.testing.assert_close(
            transcoder.encode(x, apply_activation_function=False), pre[layer], atol=1e-4, rtol=1e-4
        )
        features = transcoder.encode(x)
        own = features @ bank.W_dec[layer] + bank.b_dec[layer]
        expected = own * bank.out_scale[layer] + bank.out_mean[layer]
        torch.testing.assert_close(transcoder.decode(features), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_threshold_keeps_k_features_per_position_on_average(trained):
    _, loaded, inputs = trained
    for layer, transcoder in enumerate(loaded):
        active = (transcoder.encode(inputs[layer]) > 0).sum(-1).float().mean()
        assert float(active) == pytest.approx(4, abs=0.02)


def test_the_gate_of_training_keeps_k_per_position_and_reports_idle_features(trained):
    bank, _, inputs = trained
    loss = bank(inputs, inputs)
    loss.backward()
    assert bank.W_enc.grad.abs().sum() > 0
    assert set(bank.idle.unique().tolist()) <= {0.0, 1.0}
