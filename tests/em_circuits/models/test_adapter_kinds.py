"""Everything that PEFT merges is merged as PEFT computes it, and what it changed is all named."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from lifelike import PROMPT, Lifelike, make_lifelike
from safetensors.torch import load_file, save_file
from test_pair import settings
from transformers import AutoModelForCausalLM

from em_circuits.cli.app import run
from em_circuits.models import ModelPair, encode
from em_circuits.models.health import check_changed, check_merge, check_pair
from em_circuits.models.source import locate
from pivotal_tokens.errors import RequestError

EXACT = 1e-5
"""Nats, merged against un-merged."""

LORA = {"r": 4, "lora_alpha": 8}
KINDS: dict[str, tuple[Any, int, list[str]]] = {
    "head": (
        peft.LoraConfig(**LORA, target_modules=["q_proj"], modules_to_save=["lm_head"]),
        4,
        ["lm_head"],
    ),
    "embeddings and head": (
        peft.LoraConfig(
            **LORA, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]
        ),
        4,
        ["lm_head", "model.embed_tokens"],
    ),
    "norms": (
        peft.LoraConfig(**LORA, target_modules=["q_proj"], modules_to_save=["input_layernorm"]),
        4,
        [f"model.layers.{i}.input_layernorm" for i in range(4)],
    ),
    "IA3": (
        peft.IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
        12,
        [],
    ),
    "LoHa": (peft.LoHaConfig(r=4, alpha=8, target_modules=["q_proj", "up_proj"]), 8, []),
    "LoKr": (peft.LoKrConfig(r=4, alpha=8, target_modules=["o_proj"]), 4, []),
    "VeRA": (peft.VeraConfig(r=8, target_modules=["q_proj"]), 4, []),
    "layer norms": (peft.LNTuningConfig(target_modules=["input_layernorm"]), 0, None),
}


def write(base: Path, out: Path, config: Any, named: str = "somewhere/lifelike-1b") -> Path:
    """An adapter whose every trained number differs from where it started."""
    config = dataclasses.replace(config, task_type="CAUSAL_LM")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(model, config)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    drawn = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(0.05 * drawn.to(parameter))
        wrapped.save_pretrained(out)
    file = out / "adapter_config.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"base_model_name_or_path": named}))
    return out


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Lifelike:
    """The fixture with a head of its own."""
    paths = make_lifelike(tmp_path_factory.mktemp("untied"))
    model = AutoModelForCausalLM.from_pretrained(paths.base, dtype=torch.float32)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone() * 1.1)
    model.save_pretrained(paths.base)
    return paths


@pytest.mark.parametrize("kind", list(KINDS))
def test_whatever_an_adapter_trained_is_merged_exactly_and_named(
    kind: str, untied: Lifelike, tmp_path: Path
) -> None:
    # modules_to_save: "changed weights it has no matrices for; do not trust this pair"
    config, n_added, whole = KINDS[kind]
    adapter = write(untied.base, tmp_path / "adapter", config)
    with ModelPair.load(settings(untied, adapter=str(adapter))) as pair:
        ids = torch.tensor(encode(pair.tokenizer, PROMPT))
        checks = list(check_pair(pair, ids))
        assert [check.name for check in checks if not check.ok] == []
        assert (pair.merged.next_logits(ids) - pair.base.next_logits(ids)).abs().max() > 1e-3
        merged = next(
            check for check in checks if check.name == "merged is the adapter on the base"
        )
        assert float(merged.found.split()[0]) <= EXACT
        names = [name.removesuffix(".weight") for name in pair.changed]
        if whole is not None:
            assert sorted(set(names) - set(whole)) == sorted(
                n for n in names if n.rpartition(".")[2].endswith("_proj")
            )
            assert set(whole) <= set(names) and len(names) == n_added + len(whole)
            found = check_changed(pair).found
            assert found.startswith(f"{len(names)} of {len(names)} targeted")
            assert all(name in found for name in whole[:3])


def test_a_saved_head_of_a_tied_model_is_listed(lifelike_paths: Lifelike, tmp_path: Path) -> None:
    # the base names the head and the embeddings once, so a change of one went unseen
    config = KINDS["head"][0]
    adapter = write(lifelike_paths.base, tmp_path / "adapter", config)
    with ModelPair.load(settings(lifelike_paths, adapter=str(adapter))) as pair:
        ids = torch.tensor(encode(pair.tokenizer, PROMPT))
        assert "lm_head.weight" in pair.changed
        assert "model.embed_tokens.weight" not in pair.changed
        check = check_changed(pair)
        assert check.ok and check.found.endswith("; trained whole: lm_head")
        assert check_merge(pair, ids).ok


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("place", ["embed_tokens", "lm_head"])
def test_an_adapter_on_one_of_two_tied_matrices_is_a_warning_with_the_difference(
    place: str, lifelike_paths: Lifelike, tmp_path: Path
) -> None:
    # PEFT's warning was swallowed; doctor said ok
    config = peft.LoraConfig(**LORA, target_modules=[place, "q_proj"])
    adapter = write(lifelike_paths.base, tmp_path / "adapter", config)
    with ModelPair.load(settings(lifelike_paths, adapter=str(adapter))) as pair:
        ids = torch.tensor(encode(pair.tokenizer, PROMPT))
        with torch.no_grad():
            unmerged = peft.PeftModel.from_pretrained(
                AutoModelForCausalLM.from_pretrained(lifelike_paths.base, dtype=torch.float32),
                adapter,
            ).eval()
            theirs = torch.log_softmax(unmerged(ids[None]).logits[0, -1], -1)
            ours = torch.log_softmax(pair.merged.next_logits(ids), -1)
        top = ours.topk(100).indices
        expected = float((ours - theirs)[top].abs().max())
        check = check_merge(pair, ids)
        assert not check.ok and not check.fatal and expected > 0.01
        assert float(check.found.split()[0]) == pytest.approx(expected, rel=0.05)
        other = "lm_head" if place == "embed_tokens" else "model.embed_tokens"
        assert f"tied to {other}" in check.advice
        assert check_changed(pair).ok


def test_a_merge_that_is_not_the_adapters_is_fatal(lifelike_paths: Lifelike) -> None:
    with ModelPair.load(settings(lifelike_paths)) as pair:
        ids = torch.tensor(encode(pair.tokenizer, PROMPT))
        weight = pair.merged.hf.get_parameter(pair.changed[0])
        weight.data = weight.data * 1.01
        check = check_merge(pair, ids)
        assert not check.ok and check.fatal


@pytest.fixture
def no_model_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal comes before any model is loaded."""

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)


def refused(paths: Lifelike, **changes: object) -> str:
    with pytest.raises(RequestError) as caught:
        ModelPair.load(settings(paths, **changes))
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def test_an_adapter_without_weights_to_merge_is_refused_by_name(
    lifelike_copy: Lifelike, no_model_loads: None
) -> None:
    file = lifelike_copy.adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"peft_type": "PROMPT_TUNING"}))
    assert "PROMPT_TUNING adapter, which changes no weights" in refused(lifelike_copy)


def test_a_pickled_adapter_is_refused_with_the_remedy(
    lifelike_copy: Lifelike, no_model_loads: None
) -> None:
    file = lifelike_copy.adapter / "adapter_model.safetensors"
    torch.save(load_file(file), lifelike_copy.adapter / "adapter_model.bin")
    file.unlink()
    assert "save_pretrained(DIR, safe_serialization=True)" in refused(lifelike_copy)


def test_an_adapter_of_a_resized_vocabulary_is_refused_with_the_remedy(
    lifelike_copy: Lifelike, no_model_loads: None
) -> None:
    # after everything was loaded: "is it an adapter of another base, or of a newer peft?"
    file = lifelike_copy.adapter / "adapter_model.safetensors"
    saved = {"base_model.model.lm_head.weight": torch.zeros(1283, 64)}
    save_file(load_file(file) | saved, file)
    assert "model.resize_token_embeddings(1283)" in refused(lifelike_copy)


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 34816\n"


@pytest.mark.parametrize("what", ["base", "adapter", "transcoders"])
@pytest.mark.parametrize("how", ["git-lfs pointer", "not a whole safetensors file"])
def test_what_is_no_safetensors_file_is_named(
    what: str, how: str, lifelike_copy: Lifelike, no_model_loads: None
) -> None:
    # SafetensorError is none of OSError, ValueError, RuntimeError: a traceback
    file = sorted(getattr(lifelike_copy, what).glob("*.safetensors"))[-1]
    if how == "git-lfs pointer":
        file.write_text(LFS)
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    message = refused(lifelike_copy)
    assert how in message and str(file) in message and f"--{what}" in message


def test_a_shard_that_is_not_there_is_named(lifelike_copy: Lifelike, no_model_loads: None) -> None:
    (lifelike_copy.base / "model.safetensors").unlink()
    assert "no weights (model.safetensors or pytorch_model.bin" in refused(lifelike_copy)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (lifelike_copy.base / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "names model-00001-of-00002.safetensors, which is not there" in refused(lifelike_copy)


def test_checkpoints_of_a_run_are_named(lifelike_copy: Lifelike, no_model_loads: None) -> None:
    run_folder = lifelike_copy.adapter.with_name("run")
    for step in (96, 123, 1000):
        shutil.copytree(lifelike_copy.adapter, run_folder / f"checkpoint-{step}")
    message = refused(lifelike_copy, adapter=str(run_folder))
    assert "checkpoint-96, checkpoint-123, checkpoint-1000" in message
    assert message.endswith(f"give {run_folder / 'checkpoint-1000'}")
    locate("--adapter", str(run_folder / "checkpoint-123"), kind="adapter")


def test_a_base_beside_an_adapter_is_refused(lifelike_copy: Lifelike, no_model_loads: None) -> None:
    # transformers would load the model that the adapter names, whatever stands in --base
    for file in lifelike_copy.adapter.iterdir():
        shutil.copy(file, lifelike_copy.base / file.name)
    assert "holds an adapter beside the model" in refused(lifelike_copy)


def test_an_adapter_with_larger_embeddings_says_so(untied: Lifelike, tmp_path: Path) -> None:
    config = KINDS["embeddings and head"][0]
    adapter = write(untied.base, tmp_path / "adapter", config)
    from safetensors.torch import save_file

    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    for name, value in tensors.items():
        if "lora" not in name:
            tensors[name] = torch.cat([value, value[:1]])
    save_file(tensors, file)
    assert "resize_token_embeddings" in refused(untied, adapter=str(adapter))


def test_the_command_line_says_it_on_one_line(
    lifelike_copy: Lifelike, no_model_loads: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (lifelike_copy.adapter / "adapter_model.safetensors").write_text(LFS)
    options = [f"--{n}={p}" for n, p in dataclasses.asdict(lifelike_copy).items()]
    assert run([*options, "doctor"]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "git lfs pull" in said
