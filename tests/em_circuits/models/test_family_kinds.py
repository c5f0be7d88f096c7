"""What families take beside their own transcoders: bfloat16, cross-layer sets, trained biases."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from family_checks import LIMITS, differences
from peft import LoraConfig, get_peft_model
from tiny_families import PROMPT, RECIPES, make_family, tiny_model

from em_circuits.feature import AdapterRank
from em_circuits.graphs.full import Observed, parts_of
from em_circuits.models import ModelPair
from em_circuits.models.health import check_pair
from em_circuits.models.sharing import sharing_copy


@pytest.mark.frozen
@pytest.mark.parametrize("name", ["gemma-2", "gpt-oss"])
def test_a_replacement_model_leaves_the_real_one_s_modules_alone(name: str, tmp_path: Path) -> None:
    # nnsight rewrote the embedding's forward: copies made later embedded with the original's weight
    made = make_family(tmp_path, name)
    with ModelPair.load(made.settings()) as pair:
        assert pair.base.replacement is not None
        assert not [n for n, m in pair.base.hf.named_modules() if "forward" in vars(m)]
        double = sharing_copy(pair.base.hf).double()
        assert double.get_input_embeddings()(torch.tensor([5])).dtype == torch.float64


@pytest.mark.frozen
@pytest.mark.parametrize("name", list(RECIPES))
def test_bfloat16_stays_within_twice_the_error_of_hugging_face_s_own(
    name: str, tmp_path: Path
) -> None:
    made = make_family(tmp_path, name)
    with ModelPair.load(made.settings(dtype="bfloat16")) as pair:
        checks = {check.name: check for check in check_pair(pair, pair.input_ids(PROMPT))}
    compared = ["merged is the adapter on the base"]
    compared += [f"{m}: replacement model is the Hugging Face model" for m in ("base", "merged")]
    for one in compared:
        assert checks[one].ok, (checks[one].found, checks[one].expected)
    assert not [check for check in checks.values() if check.fatal and not check.ok]


@pytest.mark.parametrize("name", ["qwen2", "gpt-2"])
def test_adapters_that_train_every_bias_are_merged_as_peft_runs_them(
    name: str, tmp_path: Path
) -> None:
    made = make_family(tmp_path, name)
    model = tiny_model(made.recipe)
    form = LoraConfig(r=4, target_modules=made.recipe.targets, task_type="CAUSAL_LM", bias="all")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        wrapped = get_peft_model(model, form)
    with torch.no_grad():
        for parameter_name, parameter in wrapped.named_parameters():
            if "lora_" in parameter_name or parameter_name.endswith("bias"):
                parameter.add_(0.05 * torch.randn_like(parameter))
    wrapped.save_pretrained(made.adapter)
    file = made.adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "base"}))
    with ModelPair.load(made.settings(kind="none")) as pair:
        checks = {check.name: check for check in check_pair(pair, pair.input_ids(PROMPT))}
        changed = pair.changed
        plain = type(model).from_pretrained(made.base, dtype=torch.float32)
        # PEFT loaded the biases in place, into the base, too, which shared their memory
        for one, value in plain.named_parameters():
            assert torch.equal(value, dict(pair.base.hf.named_parameters())[one]), one
    merged = checks["merged is the adapter on the base"]
    assert merged.ok and float(merged.found.split()[0]) <= 1e-5, merged.found
    differ = checks["weights differ where the fine-tune is"]
    assert differ.ok and "trained whole" in differ.found, differ.found
    assert any(one.endswith("bias") for one in changed)


FORMATS = [
    *((name, "scope-2") for name in ("gemma-3", "gemma-3-multimodal", "llama-untied")),
    *((name, "cross-layer") for name in RECIPES),
]


@pytest.mark.parametrize(("name", "kind"), FORMATS)
def test_other_formats_give_the_numbers_of_plain_hugging_face(
    name: str, kind: str, tmp_path: Path
) -> None:
    found = differences(make_family(tmp_path, name, kind=kind), "plt")
    assert found["doctor"] == "ok" and "full edges" in found
    figures = {k: v for k, v in found.items() if k in LIMITS and isinstance(v, float)}
    assert not {k: v for k, v in figures.items() if v > LIMITS[k]}
    assert all(found[f"ablation, {at}, effect"] > 1e-6 for at in ("last", "early"))


def test_ranks_of_modules_of_one_name_are_told_apart(tmp_path: Path) -> None:
    # GPT-2's attention and MLP both end in c_proj: two nodes of a layer had one name
    with ModelPair.load(make_family(tmp_path, "gpt-2").settings("none")) as pair:
        ids = pair.input_ids(PROMPT)
        observed = Observed.of(pair.merged, parts_of(pair.merged, ["adapter"]), ids)
        modules = {part.module for part in observed.parts}
        assert modules == {"c_attn", "attn_c_proj", "c_fc", "mlp_c_proj"}
        for part in observed.parts:
            name = AdapterRank(part.module, part.layer, 5, 1)
            assert observed.named(AdapterRank.parse(str(name))).sum() == 1
