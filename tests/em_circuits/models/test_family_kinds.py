"""What families take beside their own transcoders: bfloat16, cross-layer sets, trained biases."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from family_checks import LIMITS, differences
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tiny_families import D_TRANSCODER, PROMPT, RECIPES, MadeFamily, make_family, tiny_model

from em_circuits.bases import transcoder_parts
from em_circuits.graphs.held import choose_nodes, full_edges, gradient_effects
from em_circuits.intervention import Intervention, Mode
from em_circuits.interventions import ActivationCache
from em_circuits.interventions.run import run_rows
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


@pytest.mark.parametrize("name", ["gemma-3", "gemma-3-multimodal", "llama-untied"])
def test_gemma_scope_2_files_give_the_numbers_of_plain_hugging_face(
    name: str, tmp_path: Path
) -> None:
    found = differences(make_family(tmp_path, name, kind="scope-2"), "plt")
    assert found["doctor"] == "ok"
    wrong = {k: v for k, v in found.items() if k in LIMITS and float(v) > LIMITS[k]}
    assert not wrong and "full edges" in found


def write_cross_layer_set(made: MadeFamily) -> dict[str, torch.Tensor]:
    """A cross-layer transcoder in place of a family's per-layer ones; its decoders by layer."""
    generator = torch.Generator().manual_seed(3)
    held: dict[str, torch.Tensor] = {}
    n_layers, files = made.recipe.n_layers, sorted(made.transcoders.glob("layer_*.safetensors"))
    from safetensors.torch import load_file

    for layer, file in enumerate(files):
        own = load_file(file)
        rows = 0.1 * torch.randn(D_TRANSCODER, n_layers - layer, 64, generator=generator)
        names = {f"{name}_{layer}": own[name] for name in ("W_enc", "b_enc", "b_dec")}
        save_file(names, made.transcoders / f"W_enc_{layer}.safetensors")
        save_file({f"W_dec_{layer}": rows}, made.transcoders / f"W_dec_{layer}.safetensors")
        held[str(layer)] = rows
        file.unlink()
    config = made.transcoders / "config.yaml"
    record = yaml.safe_load(config.read_text()) | {"model_kind": "cross_layer_transcoder"}
    config.write_text(yaml.safe_dump(record))
    return held


@pytest.mark.parametrize("name", list(RECIPES))
def test_cross_layer_sets_give_the_numbers_of_plain_hooks(name: str, tmp_path: Path) -> None:
    made = make_family(tmp_path, name)
    decoders = write_cross_layer_set(made)
    with ModelPair.load(made.settings()) as pair:
        model, ids = pair.merged, pair.input_ids(PROMPT)
        state = ActivationCache.capture(model, ids)
        first = state.active[state.active[:, 0] == 0]
        effects = []
        for layer, position, feature in first[:: max(1, len(first) // 4)].tolist():
            amount = float(state.activation_of(torch.tensor([[layer, position, feature]])))

            def write(
                at: int, output: torch.Tensor, what: Any = (position, feature, amount)
            ) -> Any:
                where, which, value = what
                output = output.clone()
                output[0, where] -= value * decoders["0"][which, at]
                return output

            with torch.no_grad(), model.sites.hooked(write=write):
                expected = model.next_logits(ids).softmax(-1)
            place = {"layer": layer, "feature": feature, "position": position}
            found = run_rows(model, state, [[Intervention(**place, mode=Mode.ABLATE)]])[0]
            assert (found.softmax(-1) - expected).abs().max() <= 1e-6
            effects.append(float((expected - state.logits.softmax(-1)).abs().max()))
        assert max(effects) > 1e-6
        weights = torch.zeros(1, len(state.logits))
        weights[0, state.logits.topk(2).indices] = torch.tensor([1.0, -1.0])
        nodes = choose_nodes(model, transcoder_parts(model), ids, weights, n=24)
        total = full_edges(model, nodes, ids, weights).total_effect()[:, : len(nodes)]
        true = gradient_effects(model, nodes, ids, weights)
        assert (total - true).abs().max() <= 1e-5 * true.abs().max() > 0
