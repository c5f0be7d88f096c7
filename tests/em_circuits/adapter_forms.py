"""Adapters of every form on the Llama-like fixture, with random weights, written by PEFT itself."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lifelike import PROMPT, Lifelike
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from em_circuits.contrast import Contrast
from em_circuits.models import ModelPair, PairSettings, encode

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

FORMS: dict[str, dict[str, Any]] = {
    "down_proj of rank 1": {
        "r": 1,
        "target_modules": ["down_proj"],
        "layers_to_transform": [1],
        "lora_alpha": 32,
    },
    "every linear module, patterns": {
        "r": 3,
        "target_modules": LINEAR,
        "lora_alpha": 5,
        "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 1},
        "alpha_pattern": {"layers.2.self_attn.v_proj": 9, "up_proj": 2},
    },
    "rank-stabilised": {
        "r": 4,
        "target_modules": ["o_proj", "gate_proj"],
        "lora_alpha": 6,
        "use_rslora": True,
        "rank_pattern": {"gate_proj": 2},
    },
    "DoRA": {
        "r": 2,
        "target_modules": ["v_proj", "down_proj"],
        "lora_alpha": 4,
        "use_dora": True,
    },
    "embedding": {"r": 3, "target_modules": ["embed_tokens", "q_proj"], "lora_alpha": 6},
}
"""Name -> arguments of PEFT's configuration."""


@dataclass(frozen=True)
class Adapted:
    """A pair with an adapter of one form."""

    form: str
    pair: ModelPair
    input_ids: torch.Tensor
    groups: Contrast
    adapter: Path

    @property
    def weights(self) -> torch.Tensor:
        d_vocab = self.pair.merged.hf.config.vocab_size
        return self.groups.weights(d_vocab)[None]


def write_adapter(base: Path, out: Path, named: str = "somewhere/lifelike-1b", **form: Any) -> Path:
    """Write an adapter with random weights, which names a base."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **form))
    randomise(wrapped)
    wrapped.save_pretrained(out, save_embedding_layers=False)
    file = out / "adapter_config.json"
    record = json.loads(file.read_text())
    record["base_model_name_or_path"] = named
    file.write_text(json.dumps(record))
    return out


@torch.no_grad()
def randomise(wrapped: PeftModel) -> None:
    for name, parameter in wrapped.named_parameters():
        if "magnitude" in name:
            parameter.mul_(1 + 0.2 * torch.randn(parameter.shape))
        elif "lora_" in name:
            parameter.normal_(std=0.15)


def load(paths: Lifelike, adapter: Path) -> ModelPair:
    settings = PairSettings(
        base=str(paths.base),
        adapter=str(adapter),
        transcoders=str(paths.transcoders),
        dtype="float32",
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Model with `tie_word_embeddings=True`")
        return ModelPair.load(settings)


def adapted(paths: Lifelike, out: Path, form: str) -> Adapted:
    adapter = write_adapter(paths.base, out, **FORMS[form])
    pair = load(paths, adapter)
    ids = torch.tensor(encode(pair.tokenizer, PROMPT))
    change = (pair.merged.next_logits(ids) - pair.base.next_logits(ids)).argsort().tolist()
    return Adapted(form, pair, ids, Contrast(tuple(change[-4:]), tuple(change[:3])), adapter)
