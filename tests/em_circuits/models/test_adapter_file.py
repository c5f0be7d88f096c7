"""An adapter is read from its header, with the scaling that PEFT gives each module."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from adapter_forms import FORMS, write_adapter
from lifelike import Lifelike
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from em_circuits.models.adapter import LoraAdapter
from em_circuits.organisms.paths import organism_paths
from pivotal_tokens.errors import RequestError


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_rank_and_scaling_are_pefts(form: str, lifelike_paths: Lifelike, tmp_path: Path) -> None:
    folder = write_adapter(lifelike_paths.base, tmp_path / "a", **FORMS[form])
    adapter = LoraAdapter.read(folder)
    model = AutoModelForCausalLM.from_pretrained(lifelike_paths.base)
    wrapped = PeftModel.from_pretrained(model, folder)
    theirs = {
        name.removeprefix("base_model.model."): (module.r["default"], module.scaling["default"])
        for name, module in wrapped.named_modules()
        if isinstance(getattr(module, "scaling", None), dict)
    }
    assert {m.name: (m.rank, m.scaling) for m in adapter.modules} == theirs
    tensors = load_file(folder / "adapter_model.safetensors")
    assert adapter.parameters == sum(tensor.numel() for tensor in tensors.values())
    assert adapter.parameters == sum(module.parameters for module in adapter.modules)
    assert all(module.dora == (form == "DoRA") for module in adapter.modules)
    for module in adapter.modules:
        found = adapter.tensors(module)
        assert found.a.shape == (module.rank, module.d_read)
        assert found.b.shape == (module.d_write, module.rank)


def test_layers_are_counted_from_0_and_from_1() -> None:
    modules = LoraAdapter.read(organism_paths().adapter).modules
    assert {(m.layer, m.layer_from_1) for m in modules} == {(0, 1), (1, 2)}
    leaves = [m.name.rsplit(".", 1)[-1] for m in modules]
    assert leaves == 2 * ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert all(m.scaling == 2.0 and m.rank == 4 for m in modules)


def test_reading_takes_no_torch() -> None:
    path = organism_paths().adapter
    code = (
        "import sys; from pathlib import Path; from em_circuits.models.adapter import LoraAdapter; "
        f"LoraAdapter.read(Path({str(path)!r})); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_what_is_not_plain_lora_is_said(lifelike_copy: Lifelike) -> None:
    file = lifelike_copy.adapter / "adapter_config.json"
    record = json.loads(file.read_text())
    changes = {"bias": "lora_only", "lora_bias": True, "modules_to_save": ["lm_head"]}
    file.write_text(json.dumps(record | changes))
    adapter = LoraAdapter.read(lifelike_copy.adapter)
    assert adapter.unusual == ("bias=lora_only", "lora_bias=True")
    assert adapter.modules_to_save == ("lm_head",)
    file.write_text(json.dumps(record | {"use_rslora": True, "rank_pattern": {}}))
    (module,) = LoraAdapter.read(lifelike_copy.adapter).modules
    assert module.scaling == 32 / math.sqrt(1) and module.layer == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: _configured(folder, peft_type="IA3"), "only LoRA has ranks"),
        (lambda folder: _configured(folder, r=5), "rank 1 in .* and 5"),
        (lambda folder: _configured(folder, r=None), "names no rank"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "holds no adapter_config"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "safe_serialization"),
        (
            lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"\x00" * 20),
            "not a whole safetensors file",
        ),
    ],
)
def test_what_is_no_lora_adapter_is_refused(lifelike_copy: Lifelike, change, message: str) -> None:
    change(lifelike_copy.adapter)
    with pytest.raises(RequestError, match=message):
        LoraAdapter.read(lifelike_copy.adapter)


def _configured(folder: Path, **changes) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
