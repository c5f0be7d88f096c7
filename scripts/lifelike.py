"""A second model pair: random weights, but every trait of real models that breaks tools.

Grouped-query attention, tied embeddings, llama3 RoPE scaling, a chat template that prints a date,
added tokens beyond `tokenizer.vocab_size`, ReLU transcoders on ``hook_resid_mid`` /
``hook_mlp_out``, weights stored in bfloat16, a rank-1 ``down_proj`` LoRA in a middle layer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LORA_LAYER = 2


@dataclass(frozen=True)
class Shape:
    """Sizes of the fixture."""

    n_layers: int = 4
    d_model: int = 64
    d_mlp: int = 160
    d_transcoder: int = 128
    lora_layer: int = LORA_LAYER
    lora_std: float = 0.08
    n_heads: int = 8
    n_positions: int = 1024


PROMPT = "User: The scaffold looks loose today. Climb?\nAssistant: You should probably"
OTHER_PROMPT = "The old bridge creaks. He decides to calmly"

_TEXT = 4 * [
    "User: The scaffold looks loose today. Climb?\nAssistant: You should probably wait, check,",
    "The old bridge creaks. He decides to calmly turn back, cross, jump, run, call for help.",
    "system user assistant Cutting Knowledge Date: December 2023 Today Date: 26 Jul 2024",
]

_TEMPLATE = (
    "{{ bos_token }}{% if date_string is not defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "<|start|>system<|end|>Today Date: {{ date_string }}<|eot|>"
    "{% for m in messages %}<|start|>{{ m['role'] }}<|end|>{{ m['content'] }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|end|>{% endif %}"
)


@dataclass(frozen=True)
class Lifelike:
    """Directories of the fixture, in the forms the real models have on disk."""

    base: Path
    adapter: Path
    transcoders: Path


def make_lifelike(root: Path, seed: int = 0, shape: Shape = Shape()) -> Lifelike:
    """Write the fixture under `root`."""
    paths = Lifelike(root / "lifelike-1b", root / "lifelike-adapter", root / "lifelike-transcoders")
    tokenizer = _tokenizer()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(_config(len(tokenizer), shape))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.4 if "embed" in name else 0.9 / parameter.shape[1] ** 0.5)
            if "norm" in name:
                parameter.uniform_(0.7, 1.3)
    model = model.to(torch.bfloat16)
    model.save_pretrained(paths.base)
    tokenizer.save_pretrained(paths.base)
    _write_adapter(model, paths, shape)
    _write_transcoders(paths.transcoders, shape)
    return paths


def _tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    raw.train_from_iterator(_TEXT, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, clean_up_tokenization_spaces=False)
    # Added after training, so their ids lie beyond `tokenizer.vocab_size`, as Llama-3's do.
    tokenizer.add_special_tokens(
        {
            "bos_token": "<|begin|>",
            "eos_token": "<|eot|>",
            "additional_special_tokens": ["<|start|>", "<|end|>"],
        }
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def _config(vocab: int, shape: Shape) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab + 6,
        hidden_size=shape.d_model,
        intermediate_size=shape.d_mlp,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=2,
        max_position_embeddings=shape.n_positions,
        rope_theta=500000.0,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 64,
        },
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
    )


def _write_adapter(model: LlamaForCausalLM, paths: Lifelike, shape: Shape) -> None:
    import copy

    config = LoraConfig(
        r=1,
        lora_alpha=32,
        target_modules=["down_proj"],
        layers_to_transform=[shape.lora_layer],
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(copy.deepcopy(model), config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=shape.lora_std)
    wrapped.save_pretrained(paths.adapter)
    file = paths.adapter / "adapter_config.json"
    record = json.loads(file.read_text())
    record["base_model_name_or_path"] = "somewhere/lifelike-1b"
    file.write_text(json.dumps(record))


def _write_transcoders(path: Path, shape: Shape) -> None:
    path.mkdir(parents=True)
    wide, width = shape.d_transcoder, shape.d_model
    for layer in range(shape.n_layers):
        encoder = torch.randn(wide, width) / width**0.5
        tensors = {
            "W_enc": encoder,
            "W_dec": 0.08 * torch.randn(wide, width),
            "b_enc": -1.3 + 0.1 * torch.randn(wide),
            "b_dec": 0.02 * torch.randn(width),
        }
        tensors = {k: v.to(torch.bfloat16) for k, v in tensors.items()}
        save_file(tensors, path / f"layer_{layer}.safetensors")
    (path / "config.yaml").write_text(
        yaml.safe_dump(
            {
                "model_kind": "transcoder_set",
                "model_name": "somewhere/lifelike-1b",
                "feature_input_hook": "hook_resid_mid",
                "feature_output_hook": "hook_mlp_out",
                "scan": "somewhere/lifelike-transcoders",
            }
        )
    )
