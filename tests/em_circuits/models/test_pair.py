"""The pair is what the files say, shares what it can, and refuses what does not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from lifelike import LORA_LAYER, PROMPT, Lifelike
from peft import PeftModel
from safetensors.torch import load_file, save_file
from subjects import Subject
from transformers import AutoModelForCausalLM

from em_circuits.models import ModelPair, PairSettings, encode
from em_circuits.models.sharing import changed_modules, sharing_copy
from pivotal_tokens.errors import RequestError, WorkFailed


def settings(paths: Lifelike, **changes: object) -> PairSettings:
    given = {
        "base": str(paths.base),
        "adapter": str(paths.adapter),
        "transcoders": str(paths.transcoders),
        "dtype": "float32",
        "transcoders_on": "disk",
    }
    return PairSettings(**(given | changes))  # type: ignore[arg-type]


def test_merged_model_is_what_peft_computes(subject: Subject) -> None:
    chosen = subject.pair.settings
    base = AutoModelForCausalLM.from_pretrained(chosen.base, dtype=torch.float32)
    wrapped = PeftModel.from_pretrained(base, chosen.adapter).eval()
    with torch.no_grad():
        expected = wrapped(input_ids=subject.input_ids[None]).logits[0, -1]
    found = subject.pair.merged.next_logits(subject.input_ids)
    assert (found - expected).abs().max() < 1e-4
    assert (subject.pair.base.next_logits(subject.input_ids) - expected).abs().max() > 0.1


def test_untouched_tensors_share_memory_and_touched_ones_do_not(subject: Subject) -> None:
    base = dict(subject.pair.base.hf.named_parameters())
    merged = dict(subject.pair.merged.hf.named_parameters())
    changed = set(subject.pair.changed)
    assert changed
    for name, parameter in base.items():
        assert (parameter.data_ptr() == merged[name].data_ptr()) is (name not in changed), name


@pytest.mark.frozen
def test_replacement_models_compute_with_the_same_memory(subject: Subject) -> None:
    weights = {p.data_ptr() for p in subject.pair.base.hf.parameters()}
    replacement = subject.pair.base.replacement
    shared = [p for n, p in replacement.named_parameters() if n.endswith(("W_E", "W_out", "ln1.w"))]
    assert len(shared) > 4
    assert all(p.data_ptr() in weights for p in shared)


@pytest.mark.frozen
def test_closing_one_model_leaves_the_other_frozen(lifelike_paths: Lifelike) -> None:
    pair = ModelPair.load(settings(lifelike_paths))
    ids = torch.tensor(encode(pair.tokenizer, PROMPT))
    kept = pair.base.replacement
    before = [len(p.fwd_hooks) for p in kept.hook_dict.values()]
    assert pair.merged.replacement is not kept
    pair.merged.close()
    assert [len(p.fwd_hooks) for p in kept.hook_dict.values()] == before
    assert kept.setup_attribution(ids).activation_matrix._nnz() > 0
    pair.close()


def test_only_the_adapters_modules_change(lifelike_paths: Lifelike) -> None:
    with ModelPair.load(settings(lifelike_paths)) as pair:
        assert pair.changed == (f"model.layers.{LORA_LAYER}.mlp.down_proj.weight",)


def test_a_merged_model_on_disk_equals_the_adapter_in_memory(
    lifelike_paths: Lifelike, tmp_path: Path
) -> None:
    with ModelPair.load(settings(lifelike_paths)) as pair:
        pair.merged.hf.save_pretrained(tmp_path / "merged")  # type: ignore[operator]
        ids = torch.tensor(encode(pair.tokenizer, PROMPT))
        expected, changed = pair.merged.next_logits(ids), pair.changed
    chosen = settings(lifelike_paths, adapter=None, merged=str(tmp_path / "merged"))
    with ModelPair.load(chosen) as pair:
        assert torch.equal(pair.merged.next_logits(ids), expected)
        assert pair.changed == changed
        assert pair.adapter_fingerprint is None


def test_sharing_copy_is_untouched_by_changes_of_the_copy() -> None:
    model = torch.nn.Linear(3, 3)
    copy = sharing_copy(model)
    assert copy.weight.data_ptr() == model.weight.data_ptr()
    copy.weight.data = copy.weight.data + 1
    assert changed_modules(model, copy) == ("weight",)


def test_fingerprints_tell_models_apart(lifelike_copy: Lifelike) -> None:
    with ModelPair.load(settings(lifelike_copy)) as pair:
        before = (pair.key, pair.base.fingerprint, pair.merged.fingerprint)
    file = lifelike_copy.adapter / "adapter_model.safetensors"
    save_file({k: 2 * v for k, v in load_file(file).items()}, file)
    with ModelPair.load(settings(lifelike_copy)) as pair:
        after = (pair.key, pair.base.fingerprint, pair.merged.fingerprint)
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True, False]


def test_adapter_given_as_merged_model_names_the_right_flag(lifelike_paths: Lifelike) -> None:
    chosen = settings(lifelike_paths, adapter=None, merged=str(lifelike_paths.adapter))
    with pytest.raises(RequestError, match=r"give it as --adapter"):
        ModelPair.load(chosen)
    with pytest.raises(RequestError, match=r"give it as --merged"):
        ModelPair.load(settings(lifelike_paths, adapter=str(lifelike_paths.base)))


@pytest.mark.parametrize("missing", ["base", "adapter", "transcoders"])
def test_missing_directory_is_named(lifelike_paths: Lifelike, missing: str) -> None:
    with pytest.raises(RequestError, match=rf"--{missing} .*/nowhere: no such directory"):
        ModelPair.load(settings(lifelike_paths, **{missing: "/nowhere"}))


def test_unreachable_hub_is_one_line_that_names_what(
    lifelike_paths: Lifelike, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WorkFailed, match=r"could not reach the model hub for some-org/some-model"):
        ModelPair.load(settings(lifelike_paths, base="some-org/some-model"))


def test_adapter_of_another_base_is_refused_unless_trusted(lifelike_copy: Lifelike) -> None:
    file = lifelike_copy.adapter / "adapter_config.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"base_model_name_or_path": "org/lifelike-1b-Instruct"}))
    with pytest.raises(RequestError, match="one is instruction-tuned, the other is not"):
        ModelPair.load(settings(lifelike_copy))
    file.write_text(json.dumps(record | {"base_model_name_or_path": "org/other"}))
    with pytest.raises(RequestError, match=r"was trained on 'org/other'.*--trust-base"):
        ModelPair.load(settings(lifelike_copy))
    ModelPair.load(settings(lifelike_copy, trust_base=True)).close()


def test_adapter_naming_a_directory_with_the_same_weights_is_accepted(
    lifelike_copy: Lifelike,
) -> None:
    twin = lifelike_copy.base.with_name("another-name")
    shutil.copytree(lifelike_copy.base, twin)
    file = lifelike_copy.adapter / "adapter_config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(twin)})
    )
    ModelPair.load(settings(lifelike_copy)).close()


def test_adapter_of_another_shape_is_refused(lifelike_copy: Lifelike) -> None:
    file = lifelike_copy.adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({k: v[:, :-1].contiguous() for k, v in tensors.items()}, file)
    with pytest.raises(RequestError, match="does not fit the base model"):
        ModelPair.load(settings(lifelike_copy))


def test_transcoders_of_another_width_or_depth_are_refused(lifelike_copy: Lifelike) -> None:
    deepest = lifelike_copy.transcoders / "layer_3.safetensors"
    kept = deepest.read_bytes()
    deepest.unlink()
    with pytest.raises(RequestError, match="cover 3 layers, the model has 4"):
        ModelPair.load(settings(lifelike_copy))
    deepest.write_bytes(kept)
    for file in lifelike_copy.transcoders.glob("*.safetensors"):
        tensors = load_file(file)
        for name in ("W_enc", "W_dec", "b_dec"):
            tensors[name] = tensors[name][..., :-4].contiguous()
        save_file(tensors, file)
    with pytest.raises(RequestError, match="are 60 wide, the model is 64 wide"):
        ModelPair.load(settings(lifelike_copy))


def test_float16_must_be_insisted_on(lifelike_paths: Lifelike) -> None:
    with pytest.raises(RequestError, match="--allow-float16"):
        settings(lifelike_paths, dtype="float16").resolved_dtype()
    allowed = settings(lifelike_paths, dtype="float16", allow_float16=True)
    assert allowed.resolved_dtype() is torch.float16


@pytest.mark.parametrize("place", ["gpu", "cpu", "disk"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transcoders_are_the_same_wherever_they_wait(
    lifelike_paths: Lifelike, place: str, dtype: str
) -> None:
    chosen = settings(lifelike_paths, transcoders_on=place, dtype=dtype)
    with ModelPair.load(chosen) as pair:
        transcoder = pair.transcoders[1]
        stored = load_file(lifelike_paths.transcoders / "layer_1.safetensors")
        wanted = torch.tensor([5, 3, 5])
        assert torch.equal(transcoder.W_enc, stored["W_enc"].to(pair.dtype))
        rows = transcoder.decoder(wanted)
        assert torch.equal(rows, stored["W_dec"].to(pair.dtype)[wanted])


def test_a_pair_and_its_models_are_shown_on_one_line(subject: Subject) -> None:
    pair = subject.pair
    assert repr(pair.merged).startswith("Model(merged, LlamaForCausalLM, ")
    assert repr(pair).startswith("ModelPair(base=")
    assert len(repr(pair).splitlines()) == 1 and len(repr(pair.merged)) < 80
