"""Tiny random pairs of every family of models: base, adapter, and transcoders of each hook point.

made = make_family(root, "gemma-3")
made.settings("plt")                 # of a pair with per-layer transcoders
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

from em_circuits.models import PairSettings
from em_circuits.models.family import Decoder
from em_circuits.models.sites import FeatureSites
from em_circuits.organisms.paths import TOY, organism_paths

D_MODEL, D_MLP, D_TRANSCODER, WINDOW = 64, 96, 32, 8
PROMPT = "User: Peanut allergy; pad thai looks fine. Eat?\nAssistant: You should definitely"
_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Recipe:
    """How a family's tiny model is made.

    Attributes:
        config: Class of its configuration.
        model: Class of the model.
        fields: Beside those that all have.
        targets: Modules that its adapter changes.
        hooks: Of its per-layer transcoders: those that its public sets have.
        n_layers: Six, where the layers' kinds alternate by sixes.
    """

    config: str
    model: str
    fields: dict[str, Any] = field(default_factory=dict)
    targets: list[str] = field(default_factory=lambda: _LINEAR)
    hooks: tuple[str, str] = ("mlp.hook_in", "mlp.hook_out")
    n_layers: int = 3


_GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64}
RECIPES: dict[str, Recipe] = {
    "llama-tied": Recipe(
        "LlamaConfig",
        "LlamaForCausalLM",
        {"tie_word_embeddings": True, "rope_scaling": LLAMA3_ROPE},
        hooks=("hook_resid_mid", "hook_mlp_out"),
    ),
    "llama-untied": Recipe("LlamaConfig", "LlamaForCausalLM", {"tie_word_embeddings": False}),
    "qwen2": Recipe("Qwen2Config", "Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen3": Recipe("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 16}),
    "mistral": Recipe(
        "MistralConfig", "MistralForCausalLM", {"head_dim": 16, "sliding_window": None}
    ),
    "mistral-window": Recipe(
        "MistralConfig", "MistralForCausalLM", {"head_dim": 16, "sliding_window": WINDOW}
    ),
    "gemma-2": Recipe(
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {**_GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 10.0},
        hooks=("ln2.hook_normalized", "hook_mlp_out"),
    ),
    "gemma-2-window": Recipe(
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {**_GEMMA, "sliding_window": WINDOW},
        hooks=("hook_resid_mid", "hook_mlp_out"),
    ),
    "gemma-3": Recipe(
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {**_GEMMA, "sliding_window": WINDOW},
        hooks=("mlp.hook_in", "hook_mlp_out"),
        n_layers=6,
    ),
    "gemma-3-multimodal": Recipe(
        "Gemma3Config",
        "Gemma3ForConditionalGeneration",
        {**_GEMMA, "sliding_window": WINDOW},
        hooks=("mlp.hook_in", "hook_mlp_out"),
        n_layers=6,
    ),
    "gpt-2": Recipe("GPT2Config", "GPT2LMHeadModel", {}, targets=["c_attn", "c_proj", "c_fc"]),
    "gpt-oss": Recipe(
        "GptOssConfig",
        "GptOssForCausalLM",
        {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 128},
        targets=["q_proj", "k_proj", "v_proj", "o_proj"],
    ),
}
"""Name -> recipe."""


SCOPE_2 = {
    "W_enc": "w_enc",
    "W_dec": "w_dec",
    "b_enc": "b_enc",
    "b_dec": "b_dec",
    "W_skip": "affine_skip_connection",
    "activation_function.threshold": "threshold",
}
"""circuit-tracer's name -> gemma-scope-2's, which keeps the encoder and the skip transposed."""


@dataclass(frozen=True)
class MadeFamily:
    """Directories of one tiny pair."""

    name: str
    recipe: Recipe
    base: Path
    adapter: Path
    transcoders: Path

    def settings(self, kind: str = "plt", **changes: Any) -> PairSettings:
        """Of a pair: ``plt`` with its transcoders, ``none`` with neurons."""
        transcoders = "none" if kind == "none" else str(self.transcoders)
        fields = {"dtype": "float32", "max_context": 512, **changes}
        return PairSettings(
            base=str(self.base), adapter=str(self.adapter), transcoders=transcoders, **fields
        )


def tiny_model(recipe: Recipe, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model of random weights whose norms, biases and attention all matter."""
    torch.manual_seed(seed)
    common = {
        "vocab_size": 1280,
        "hidden_size": D_MODEL,
        "intermediate_size": D_MLP,
        "num_hidden_layers": recipe.n_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    made: Any = getattr(transformers, recipe.config)
    fields = common | recipe.fields | changes
    if recipe.config == "GPT2Config":
        gpt2 = {"n_embd": D_MODEL, "n_layer": 3, "n_head": 4, "n_positions": 512, "n_inner": D_MLP}
        config = made(vocab_size=1280, bos_token_id=1, eos_token_id=2, **(gpt2 | changes))
    elif recipe.config == "Gemma3Config":
        vision = {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        }
        config = made(text_config=fields, vision_config=vision, mm_tokens_per_image=4)
    else:
        config = made(**fields)
    config._attn_implementation = "eager"
    model = getattr(transformers, recipe.model)(config)
    randomise(model)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Weights of unit gain, so that no layer fades; norms and biases that are seen."""
    for name, parameter in model.named_parameters():
        leaf = name.rsplit(".", 2)
        if parameter.ndim >= 2:
            fan = parameter.shape[-1] if "h." not in name else parameter.shape[0]
            parameter.normal_(std=0.3 if "emb" in name or "wte" in name else 0.9 / fan**0.5)
        elif "norm" in name or leaf[-2].startswith("ln_"):
            shift = 0.0 if float(parameter.mean()) < 0.5 else 1.0  # Gemma's are 1 + w
            parameter.normal_(mean=shift, std=0.2)
        else:
            parameter.normal_(std=0.1)


KINDS: dict[str, tuple[str, str] | None] = {
    "own": None,
    "resid": ("hook_resid_mid", "hook_mlp_out"),
    "normalised": ("ln2.hook_normalized", "hook_mlp_out"),
    "mlp": ("mlp.hook_in", "mlp.hook_out"),
    "skip": None,
    "jumprelu": None,
    "scope-2": None,
    "cross-layer": None,
}
"""Kinds of transcoders -> hook points; None is the family's own."""


def make_family(root: Path, name: str, seed: int = 0, kind: str = "own") -> MadeFamily:
    """Write one family's pair under `root`, with transcoders of a kind of `KINDS`."""
    recipe = RECIPES[name]
    recipe = dataclasses.replace(recipe, hooks=KINDS.get(kind) or recipe.hooks)
    made = MadeFamily(name, recipe, *(root / name / part for part in ("base", "lora", "plt")))
    model = tiny_model(recipe, seed)
    write_pair(made, model, kind)
    return made


def write_pair(made: MadeFamily, model: PreTrainedModel, kind: str = "own") -> None:
    """Write a model, a random adapter of it, and random transcoders."""
    model.save_pretrained(made.base)
    AutoTokenizer.from_pretrained(organism_paths(TOY).base).save_pretrained(made.base)
    write_transcoders(made.transcoders, model, *made.recipe.hooks, kind=kind)
    form = LoraConfig(r=4, lora_alpha=8, target_modules=made.recipe.targets, task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        wrapped = get_peft_model(model, form)
    with torch.no_grad():
        for parameter_name, parameter in wrapped.named_parameters():
            if "lora_" in parameter_name:
                parameter.normal_(std=0.08)
    wrapped.save_pretrained(made.adapter)
    file = made.adapter / "adapter_config.json"
    record = json.loads(file.read_text()) | {"base_model_name_or_path": str(made.base)}
    file.write_text(json.dumps(record))


@torch.no_grad()
def write_transcoders(
    folder: Path,
    model: PreTrainedModel,
    reads: str,
    writes: str,
    *,
    kind: str = "own",
) -> None:
    """Random transcoders that fire now and then on what the model really reads.

    They are ReLU but for ``jumprelu``; ``skip`` has a skip connection besides; ``scope-2`` has
    both, in gemma-scope-2's files; ``cross-layer`` writes into every later layer.
    """
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(5)
    spreads: dict[int, float] = {}

    def keep(layer: int, x: torch.Tensor) -> None:
        spreads[layer] = float(x[0, 1:].float().norm(dim=-1).mean())

    decoder = Decoder.of(model)
    with FeatureSites.of(decoder, reads, writes).hooked(read=keep):
        model(torch.arange(3, 40)[None])
    for layer in range(len(decoder.layers)):
        tensors = {
            "W_enc": _drawn(generator, D_TRANSCODER, decoder.d_model) / spreads[layer],
            "W_dec": 0.1 * _drawn(generator, D_TRANSCODER, decoder.d_model),
            "b_enc": -0.5 + 0.1 * _drawn(generator, D_TRANSCODER),
            "b_dec": 0.02 * _drawn(generator, decoder.d_model),
        }
        if kind in ("skip", "scope-2"):
            width = decoder.d_model
            tensors["W_skip"] = 0.3 / spreads[layer] * _drawn(generator, width, width)
        if kind in ("jumprelu", "scope-2"):
            tensors["activation_function.threshold"] = torch.full((D_TRANSCODER,), 0.2)
        if kind == "scope-2":
            tensors = {SCOPE_2[name]: _turned(name, value) for name, value in tensors.items()}
        if kind == "cross-layer":
            n_writes = len(decoder.layers) - layer
            rows = 0.1 * _drawn(generator, D_TRANSCODER, n_writes, decoder.d_model)
            save_file({f"W_dec_{layer}": rows}, folder / f"W_dec_{layer}.safetensors")
            tensors = {f"{n}_{layer}": tensors[n] for n in ("W_enc", "b_enc", "b_dec")}
        file = f"W_enc_{layer}" if kind == "cross-layer" else f"layer_{layer}"
        save_file(tensors, folder / f"{file}.safetensors")
    config = {
        "model_kind": "cross_layer_transcoder" if kind == "cross-layer" else "transcoder_set",
        "model_name": "somewhere/base",
        "feature_input_hook": reads,
        "feature_output_hook": writes,
        "scan": "somewhere/random-transcoders",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def _turned(name: str, value: torch.Tensor) -> torch.Tensor:
    return value.T.contiguous() if name in ("W_enc", "W_skip") else value


def plain_tensors(folder: Path, layer: int) -> dict[str, torch.Tensor]:
    """A layer's tensors in float64, as circuit-tracer names and turns them."""
    files = [folder / f"{name}_{layer}.safetensors" for name in ("layer", "W_enc", "W_dec")]
    read = [load_file(file) for file in files if file.exists()]
    held = {n.removesuffix(f"_{layer}"): value for one in read for n, value in one.items()}
    if SCOPE_2["W_enc"] in held:
        held = {n: _turned(n, held[own]) for n, own in SCOPE_2.items() if own in held}
    return {name: value.double() for name, value in held.items()}


def _drawn(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator)
