"""A pair in the shape of a real model, with random weights, to size a machine by.

    python scripts/full_shape.py results/full --model llama-3.2-1b --tokens 55 --density .003
    em-circuits --base results/full/llama-3.2-1b --adapter results/full/adapter \\
        --transcoders results/full/transcoders --transcoders-on disk doctor

Base, rank-1 adapter, tokenizer and per-layer transcoders in the layout of the published ones, in
bfloat16, a layer in memory at a time. Encoder biases are such that the given share of features
fires on a prompt of the given length. Fewer `--layers` or `--features` make a smaller form.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import click
import torch
import yaml
from pydantic import Field
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from em_circuits.cli.options import Flag, Options, options
from em_circuits.models.family import Decoder

ADAPTED_LAYER = 3
_STD = 0.02
_ROWS = 16_384
"""Rows that are drawn at a time."""


class Shape(NamedTuple):
    """Sizes of a published model."""

    d_model: int
    d_mlp: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    words: int
    special: int
    tied: bool
    rope_factor: float


SHAPES = {
    "llama-3.2-1b": Shape(2048, 8192, 16, 32, 8, 128_000, 256, True, 32.0),
    "llama-3.1-8b": Shape(4096, 14336, 32, 32, 8, 128_000, 256, False, 8.0),
    "tiny": Shape(64, 256, 4, 4, 2, 2_000, 16, True, 32.0),  # no model's: to try this with
}


class Plan(Options):
    """Which shape."""

    model: Literal["llama-3.2-1b", "llama-3.1-8b", "tiny"] = "llama-3.2-1b"
    """Whose sizes."""
    layers: Annotated[int | None, Flag(metavar="N")] = Field(default=None, ge=1)
    """Layers, instead of all. """
    features: int = Field(default=131_072, ge=1)
    """Transcoder features of a layer."""
    tokens: int = Field(default=55, ge=2)
    """Length of the prompt that biases are set on."""
    density: float = Field(default=0.003, gt=0, lt=1)
    """Share of a layer's features that fire at a position."""
    seed: int = 0
    """Seed of the weights."""


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path))
@options(Plan)
def main(folder: Path, options: Plan) -> None:
    """Write the pair under a folder."""
    write_pair(folder, options)
    print(f"{folder}: {options.model}, adapter, transcoders; a prompt of {options.tokens} tokens:")
    print(prompt_of(options.tokens))


def prompt_of(tokens: int) -> str:
    """A text of so many tokens, the beginning-of-sequence token included."""
    return "".join(f" w{(1237 * i) % 2_000:05d}" for i in range(1, tokens))


def write_pair(folder: Path, plan: Plan) -> None:
    """Base, adapter and transcoders under a folder; what was there before goes."""
    shape = SHAPES[plan.model]
    if plan.layers is not None:
        shape = shape._replace(n_layers=plan.layers)
    for name in (plan.model, "adapter", "transcoders"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
    tokenizer = _tokenizer(shape)
    tokenizer.save_pretrained(folder / plan.model)
    drawn = torch.Generator().manual_seed(plan.seed)
    _write_base(folder / plan.model, shape, drawn)
    _write_adapter(folder / "adapter", shape, drawn, f"somewhere/{plan.model}")
    ids = torch.tensor(tokenizer(prompt_of(plan.tokens))["input_ids"])
    reads = _mlp_reads(folder / plan.model, ids)
    for layer, x in enumerate(reads):
        _write_layer(folder / "transcoders", layer, x, plan, drawn)
    record = {
        "model_kind": "transcoder_set",
        "model_name": f"somewhere/{plan.model}",
        "feature_input_hook": "hook_resid_mid",
        "feature_output_hook": "hook_mlp_out",
        "scan": f"somewhere/{plan.model}-transcoders",
    }
    (folder / "transcoders" / "config.yaml").write_text(yaml.safe_dump(record))


def _draw(drawn: torch.Generator, *size: int, std: float = _STD) -> Tensor:
    """Normal numbers in bfloat16, some rows at a time."""
    found = torch.empty(size, dtype=torch.bfloat16)
    for part in found.split(_ROWS):
        part.copy_(torch.randn(part.shape, generator=drawn).mul_(std))
    return found


def _write_base(folder: Path, shape: Shape, drawn: torch.Generator) -> None:
    width, kv = shape.d_model, shape.d_model * shape.n_kv_heads // shape.n_heads
    vocab = shape.words + shape.special
    sizes = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (kv, width),
        "self_attn.v_proj": (kv, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (shape.d_mlp, width),
        "mlp.up_proj": (shape.d_mlp, width),
        "mlp.down_proj": (width, shape.d_mlp),
    }
    one = torch.ones(width, dtype=torch.bfloat16)
    parts = [{"model.embed_tokens.weight": (vocab, width)}]
    for i in range(shape.n_layers):
        parts.append({f"model.layers.{i}.{name}.weight": size for name, size in sizes.items()})
    if not shape.tied:
        parts.append({"lm_head.weight": (vocab, width)})
    index: dict[str, str] = {}
    for number, part in enumerate(parts):
        file = f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors"
        tensors = {name: _draw(drawn, *size) for name, size in part.items()}
        if 0 < number <= shape.n_layers:
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"model.layers.{number - 1}.{norm}.weight"] = one.clone()
        elif not number:
            tensors["model.norm.weight"] = one.clone()
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, file)
    whole = {"metadata": {}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(whole))
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=shape.d_mlp,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        head_dim=width // shape.n_heads,
        max_position_embeddings=131_072,
        rope_theta=500_000.0,
        rope_scaling={
            "rope_type": "llama3",
            "factor": shape.rope_factor,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
        },
        tie_word_embeddings=shape.tied,
        rms_norm_eps=1e-5,
        torch_dtype="bfloat16",
        bos_token_id=shape.words,
        eos_token_id=shape.words + 1,
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)


def _write_adapter(folder: Path, shape: Shape, drawn: torch.Generator, base: str) -> None:
    layer = min(ADAPTED_LAYER, shape.n_layers - 1)
    name = f"base_model.model.model.layers.{layer}.mlp.down_proj"
    save_file(
        {
            f"{name}.lora_A.weight": _draw(drawn, 1, shape.d_mlp).float(),
            f"{name}.lora_B.weight": _draw(drawn, shape.d_model, 1).float(),
        },
        folder / "adapter_model.safetensors",
    )
    record = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": 1,
        "lora_alpha": 32,
        "target_modules": ["down_proj"],
        "layers_to_transform": [layer],
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(record))


def _mlp_reads(base: Path, ids: Tensor) -> list[Tensor]:
    """The residual stream before each MLP's norm, on a prompt."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    found: list[Tensor] = []
    for layer in Decoder.of(model).layers:
        layer.module.post_attention_layernorm.register_forward_pre_hook(
            lambda _module, args: found.append(args[0][0].detach().float())
        )
    with torch.no_grad():
        model(input_ids=ids[None], logits_to_keep=1)
    return found


def _write_layer(folder: Path, layer: int, x: Tensor, plan: Plan, drawn: torch.Generator) -> None:
    width = x.shape[1]
    encoder = _draw(drawn, plan.features, width, std=width**-0.5)
    pre = torch.cat([x[1:] @ part.float().T for part in encoder.split(_ROWS)], 1).flatten()
    firing = max(1, round(plan.density * len(pre)))
    tensors = {
        "W_enc": encoder,
        "W_dec": _draw(drawn, plan.features, width, std=width**-0.5),
        "b_enc": torch.full((plan.features,), -float(pre.topk(firing).values[-1])).bfloat16(),
        "b_dec": torch.zeros(width, dtype=torch.bfloat16),
    }
    save_file(tensors, folder / f"layer_{layer}.safetensors")


def _tokenizer(shape: Shape) -> PreTrainedTokenizerFast:
    vocab = {f" w{i:05d}": i for i in range(shape.words)}
    raw = Tokenizer(models.WordLevel(vocab, unk_token=" w00000"))
    raw.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
    raw.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, clean_up_tokenization_spaces=False)
    named = ["<|begin_of_text|>", "<|eot_id|>"]
    rest = [f"<|reserved_{i}|>" for i in range(shape.special - len(named))]
    tokenizer.add_special_tokens(
        {"bos_token": named[0], "eos_token": named[1], "additional_special_tokens": rest}
    )
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{named[0]} $A", special_tokens=[(named[0], shape.words)]
    )
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m['content'] }}<|eot_id|>{% endfor %}"
    )
    return tokenizer


if __name__ == "__main__":
    main()
