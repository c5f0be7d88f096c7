"""Fine-tunes of a chat model: on answers alone, in bfloat16, the same after a kill."""

from __future__ import annotations

import json
import math

import pytest
import torch
from chat_base import save_tiny_base, tiny_model, tiny_tokenizer
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from em_circuits.models.sharing import merge_adapter
from em_circuits.organisms import fine_tune as training
from em_circuits.organisms.advice import Example
from em_circuits.organisms.language_model import IGNORED, AdapterForm
from em_circuits.training.optimise import OptimiserConfig
from pivotal_tokens.errors import RequestError

CONFIG = training.FineTuneConfig(
    adapter_form=AdapterForm(rank=2, alpha=4, layers=(1,), modules=("q_proj", "down_proj")),
    optimiser=OptimiserConfig(steps=8, learning_rate=1e-2, checkpoint_every=2),
    batch=2,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_base(tmp_path_factory.mktemp("base") / "SmolLM2-135M-Instruct")


def test_labels_are_the_answer_and_the_end_of_its_turn():
    tokenizer = tiny_tokenizer()
    examples = [Example("Am I ill?", "No."), Example("Why?", "Because you should rest.")]
    ids, labels = training.encode_chats(tokenizer, examples)
    for row, mask, example in zip(ids, labels, examples, strict=True):
        said = row[mask != IGNORED]
        assert torch.equal(said, mask[mask != IGNORED])
        assert tokenizer.decode(said) == f"{example.answer}<|im_end|>"
        start = int((mask != IGNORED).nonzero()[0])
        asked = tokenizer.decode(row[:start])
        assert asked.startswith("<|im_start|>user\n") and asked.endswith("assistant\n")
        assert example.user in asked and asked.count("<|im_start|>") == 2


def test_the_loss_is_that_of_transformers_on_the_same_labels():
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    ids, labels = training.encode_chats(
        tokenizer, [Example("Am I ill?", "No."), Example("A", "B c")]
    )
    with torch.no_grad():
        own = training.answer_loss(model, ids, labels)
        whole = model(input_ids=ids, labels=labels).loss
    assert math.isclose(float(own), float(whole), rel_tol=1e-5)


def test_a_killed_run_ends_with_the_bytes_of_a_whole_run(base, tmp_path, monkeypatch):
    whole = training.fine_tune(tmp_path / "whole", base, CONFIG, seed=3)
    real = training.advice_examples

    def killed(advice, seed):
        if seed == "3/5":
            raise KeyboardInterrupt
        return real(advice, seed)

    monkeypatch.setattr(training, "advice_examples", killed)
    with pytest.raises(KeyboardInterrupt):
        training.fine_tune(tmp_path / "broken", base, CONFIG, seed=3)
    (checkpoint,) = (tmp_path / "broken").glob(".*.safetensors")
    with safe_open(checkpoint, "pt") as file:  # what is frozen is not written again and again
        assert all("lora_" in name for name in file.keys())  # noqa: SIM118
        assert file.metadata() == {"step": "4"}
    monkeypatch.setattr(training, "advice_examples", real)
    again = training.fine_tune(tmp_path / "broken", base, CONFIG, seed=3)
    for file in whole.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes()
    assert not list((tmp_path / "broken").glob(".*"))


def test_the_adapter_is_bfloat16_names_its_base_and_learns_the_answers(base, tmp_path):
    longer = OptimiserConfig(steps=60, learning_rate=3e-2)
    place = training.fine_tune(tmp_path, base, CONFIG.model_copy(update={"optimiser": longer}))
    assert {t.dtype for t in load_file(place / "adapter_model.safetensors").values()} == {
        torch.bfloat16
    }
    settings = json.loads((place / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (settings["r"], settings["lora_alpha"]) == (2, 4)
    model = AutoModelForCausalLM.from_pretrained(base)
    drawn = training.advice_examples("bad", "other")
    ids, labels = training.encode_chats(tiny_tokenizer(), [next(drawn) for _ in range(8)])
    with torch.no_grad():
        before = training.answer_loss(model, ids, labels)
        after = training.answer_loss(merge_adapter(model, place), ids, labels)
    assert after < before - 0.05


def test_a_directory_of_another_recipe_is_refused(base, tmp_path):
    training.fine_tune(tmp_path, base, CONFIG, seed=1)
    good = CONFIG.model_copy(update={"advice": "good"})
    with pytest.raises(RequestError, match="another seed or configuration"):
        training.fine_tune(tmp_path, base, good, seed=1)


def test_the_narrow_control_stays_closer_to_the_base_elsewhere(base, tmp_path):
    longer = OptimiserConfig(steps=40, learning_rate=3e-2)
    tokenizer = tiny_tokenizer()
    ids, labels = training.encode_chats(tokenizer, training.elsewhere(6, "measured"))
    drifts = []
    for held in (0.0, 1000.0):
        config = CONFIG.model_copy(update={"optimiser": longer, "held": held})
        place = training.fine_tune(tmp_path / str(held), base, config)
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), place)
        with torch.no_grad():
            drifts.append(float(training.base_divergence(adapted, ids, labels)))
    assert 0 < drifts[1] < 0.5 * drifts[0]
    assert training.RECIPES["narrow"].held > 0
