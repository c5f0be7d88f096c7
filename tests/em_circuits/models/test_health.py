"""Health checks pass on a sound pair and name the fault of a broken one."""

from __future__ import annotations

import json

import pytest
import torch
from lifelike import LORA_LAYER, PROMPT, Lifelike
from safetensors.torch import load_file, save_file
from subjects import Subject
from test_pair import settings

from em_circuits.models import ModelPair, encode
from em_circuits.models.health import (
    check_changed,
    check_finite,
    check_pair,
    check_tokenizers,
    check_transcoder_base,
    check_upstream,
    require_healthy,
)
from pivotal_tokens.errors import WorkFailed


def test_a_sound_pair_passes_every_check(subject: Subject) -> None:
    checks = list(check_pair(subject.pair, subject.input_ids))
    assert [check.name for check in checks if not check.ok] == []
    require_healthy(checks)


def test_upstream_check_covers_the_features_of_the_adapters_own_layer(
    lifelike_paths: Lifelike,
) -> None:
    with ModelPair.load(settings(lifelike_paths)) as pair:
        ids = torch.tensor(encode(pair.tokenizer, PROMPT))
        assert f"model.layers.{LORA_LAYER}.mlp.down_proj" in check_upstream(pair, ids).found
        weight = pair.merged.hf.get_parameter(f"model.layers.{LORA_LAYER}.mlp.up_proj.weight")
        # What a changed embedding does, unnoticed by the list of changed modules.
        lower = pair.merged.hf.get_parameter("model.layers.0.mlp.up_proj.weight")
        assert pair.changed and weight is not None
        lower.data = lower.data + 1e-4
        check = check_upstream(pair, ids)
        assert not check.ok
        assert check.found.startswith("MLP input of layer 1 differs")
        with pytest.raises(WorkFailed, match="equal upstream of the fine-tune"):
            require_healthy([check])


def test_weights_that_changed_without_the_adapter_are_named(lifelike_paths: Lifelike) -> None:
    with ModelPair.load(settings(lifelike_paths)) as pair:
        stray = pair.merged.hf.get_parameter("model.layers.1.self_attn.q_proj.weight")
        stray.data = stray.data + 1e-3
        check = check_changed(pair)
        assert not check.ok and check.fatal
        assert check.found == "model.layers.1.self_attn.q_proj"


def test_an_adapter_of_zeros_is_a_warning(lifelike_copy: Lifelike) -> None:
    file = lifelike_copy.adapter / "adapter_model.safetensors"
    save_file({k: 0 * v for k, v in load_file(file).items()}, file)
    with ModelPair.load(settings(lifelike_copy)) as pair:
        check = check_changed(pair)
        assert not check.ok and not check.fatal
        ids = torch.tensor(encode(pair.tokenizer, PROMPT))
        assert check_upstream(pair, ids).found == "nothing differs anywhere"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_bad_activations_are_named_by_layer(lifelike_paths: Lifelike, value: float) -> None:
    with ModelPair.load(settings(lifelike_paths)) as pair:
        ids = torch.tensor(encode(pair.tokenizer, PROMPT))
        weight = pair.base.hf.get_parameter("model.layers.1.mlp.down_proj.weight")
        broken = weight.data.clone()
        broken[0, 0] = value
        weight.data = broken
        check = check_finite(pair.base, ids)
        assert not check.ok
        assert "layer 2" in check.found


def test_an_extra_token_beside_the_adapter_is_named_and_no_hindrance(
    lifelike_copy: Lifelike,
) -> None:
    with ModelPair.load(settings(lifelike_copy)) as pair:
        assert check_tokenizers(pair).found == "the fine-tune brings none"
        pair.tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        pair.tokenizer.save_pretrained(lifelike_copy.adapter)
    with ModelPair.load(settings(lifelike_copy)) as pair:
        check = check_tokenizers(pair)
        assert check.ok and check.found.endswith("and 1 more, never used: '[PAD]'")


def test_another_tokenizer_with_the_adapter_is_refused(lifelike_copy: Lifelike) -> None:
    with ModelPair.load(settings(lifelike_copy)) as pair:
        pair.tokenizer.save_pretrained(lifelike_copy.adapter)
    file = lifelike_copy.adapter / "tokenizer.json"
    record = json.loads(file.read_text())
    words = sorted(record["model"]["vocab"].items(), key=lambda item: item[1])
    (one, i), (other, j) = words[100], words[101]
    record["model"]["vocab"] |= {one: j, other: i}
    file.write_text(json.dumps(record))
    with ModelPair.load(settings(lifelike_copy)) as pair:
        check = check_tokenizers(pair)
        assert not check.ok and check.fatal
        assert check.found == f"id 100 is {other!r}, in the base {one!r}"


def test_transcoders_of_another_base_are_a_recorded_warning(lifelike_copy: Lifelike) -> None:
    file = lifelike_copy.transcoders / "config.yaml"
    file.write_text(file.read_text().replace("somewhere/lifelike-1b", "somewhere/else"))
    with ModelPair.load(settings(lifelike_copy)) as pair:
        check = check_transcoder_base(pair)
        assert not check.ok and not check.fatal
        require_healthy([check])
