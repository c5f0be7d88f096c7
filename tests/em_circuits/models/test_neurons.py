"""Neurons as a model's dictionaries: exact, differentiable, and each model's own."""

from __future__ import annotations

import pytest
import torch
from subjects import Subject
from transformers import NemotronConfig, NemotronForCausalLM

from em_circuits.interventions import ActivationCache
from em_circuits.models import ModelPair
from em_circuits.models.family import Decoder
from em_circuits.models.health import check_pair
from em_circuits.models.neurons import NeuronDictionary, neuron_dictionaries
from pivotal_tokens.errors import RequestError


def plain_model() -> NemotronForCausalLM:
    """An MLP without a gate: ``act(up)``."""
    torch.manual_seed(0)
    config = NemotronConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        mlp_bias=True,
    )
    model = NemotronForCausalLM(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.normal_()
    return model


@pytest.fixture
def plain() -> tuple[NeuronDictionary, torch.nn.Module]:
    model = plain_model()
    return neuron_dictionaries(Decoder.of(model))[1], model.model.layers[1].mlp


def gated(subject: Subject) -> tuple[NeuronDictionary, torch.nn.Module]:
    model = subject.pair.merged
    return model.dictionaries[2], model.sites.writes[2].module


@pytest.fixture(params=["plain", "gated"])
def layer(request: pytest.FixtureRequest, neurons: Subject, plain):
    """One layer's neurons and its real MLP, and some inputs, in float64."""
    dictionary, mlp = plain if request.param == "plain" else gated(neurons)
    copy = type(mlp)(mlp.config).double().requires_grad_(False)
    copy.load_state_dict(mlp.state_dict())
    double = NeuronDictionary(
        getattr(copy, "gate_proj", None), copy.up_proj, copy.down_proj, copy.act_fn
    )
    x = torch.randn(2, 5, dictionary.d_model, dtype=torch.float64)
    return double, copy, x


def test_writes_and_bias_are_the_whole_mlp_output_everywhere(neurons: Subject) -> None:
    for model in neurons.pair.models:
        state = ActivationCache.capture(model, neurons.input_ids)
        assert state.first_position == 0 and (state.active[:, 1] == 0).any()
        largest = state.mlp_outputs.abs().amax((1, 2))
        assert (state.errors(model).abs().amax((1, 2)) <= 1e-5 * largest).all()


def test_one_by_one_neurons_write_what_the_mlp_writes(layer) -> None:
    dictionary, mlp, x = layer
    every = torch.arange(dictionary.width)
    bias = 0 if mlp.down_proj.bias is None else mlp.down_proj.bias
    written = torch.einsum("rpn,nd->rpd", dictionary.encode(x), dictionary.decoder(every)) + bias
    assert torch.allclose(written, mlp(x)) and torch.allclose(
        dictionary.decode(dictionary.activations(x), x), mlp(x)
    )


def test_a_few_neurons_are_encoded_as_all_of_them_are(layer) -> None:
    dictionary, _, x = layer
    ids = torch.tensor([1, 7, 20])
    which = torch.tensor([2, 0, 0, 1, 2])
    found = dictionary.encoder(ids).activations(x[0], which)
    assert torch.allclose(found, dictionary.encode(x[0])[torch.arange(5), ids[which]])
    assert torch.allclose(dictionary.encoder(ids).encode(x[0]), dictionary.encode(x[0])[:, ids])


def test_linearisations_are_the_derivative_by_finite_differences(layer) -> None:
    dictionary, mlp, x = layer
    change, step = torch.randn_like(x), 1e-6
    slope = (mlp(x + step * change) - mlp(x - step * change)) / (2 * step)
    nothing = (torch.empty(0, dtype=torch.int64),) * 3
    assert torch.allclose(dictionary.linearised(x, nothing)(change), slope, rtol=1e-5, atol=1e-7)
    ids, which = torch.tensor([3, 9]), torch.tensor([0, 1, 1, 0, 1])
    at = torch.arange(5), ids[which]
    ahead, behind = (dictionary.encode(x[0] + s * change[0])[at] for s in (step, -step))
    found = dictionary.encoder(ids).responses(
        x[0], change[0], which, before=dictionary.encode(x[0])[at]
    )
    assert torch.allclose(found, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-7)


def test_each_model_has_neurons_of_its_own_where_the_adapter_is(neurons: Subject) -> None:
    changed = {name for name in neurons.pair.changed if "down_proj" in name}
    base, merged = (m.dictionaries for m in neurons.pair.models)
    same = [torch.equal(b.down.weight, m.down.weight) for b, m in zip(base, merged, strict=True)]
    assert same.count(False) == len(changed) == (1 if neurons.name == "lifelike" else 0)


def test_a_pair_without_transcoders_has_a_key_of_its_own(
    neurons: Subject, subject: Subject
) -> None:
    assert neurons.pair.key != subject.pair.key and "transcoders" not in neurons.pair.sources
    assert neurons.pair.transcoder_fingerprint is None
    assert neurons.pair.base.fingerprint == subject.pair.base.fingerprint


def test_every_health_check_of_a_pair_of_neurons_holds(neurons: Subject) -> None:
    checks = list(check_pair(neurons.pair, neurons.input_ids))
    assert all(check.ok for check in checks), checks
    names = " ".join(check.name for check in checks)
    assert "neurons are the whole MLP" in names and "replacement" not in names


def test_there_is_no_replacement_model_without_transcoders(neurons: Subject) -> None:
    with pytest.raises(RequestError, match="no frozen edges"):
        _ = neurons.pair.merged.replacement


def test_bfloat16_neurons_pass_the_health_check(neurons: Subject) -> None:
    settings = neurons.pair.settings.model_copy(update={"dtype": "bfloat16"})
    with ModelPair.load(settings) as pair:
        checks = list(check_pair(pair, neurons.input_ids))
    assert all(c.ok for c in checks if "whole MLP" in c.name), checks


def test_an_mlp_of_another_make_is_refused_by_name() -> None:
    model = plain_model()
    del model.model.layers[1].mlp.up_proj
    with pytest.raises(RequestError, match=r"NemotronForCausalLM: 1 MLPs .* in 2 layers"):
        neuron_dictionaries(Decoder.of(model))
