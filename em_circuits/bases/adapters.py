"""Ranks of a LoRA adapter as nodes of the merged model.

    a_r = A_r x of one module,  w_r = scale * B_r, into that module's output
    scale = alpha / rank, with rank-stabilised LoRA alpha / sqrt(rank)

With every rank of a module held, the module responds with the base's weight: the merged weight is
``W + scale B A``. With DoRA (Liu et al. 2024) the merged weight is ``m / |W + scale B A|`` times
that, row by row; the factor then multiplies both the ranks' writes and the base's weight.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from safetensors.torch import load_file
from torch import Tensor

from em_circuits.bases.part import Part, Stage
from em_circuits.models import ModelPair
from em_circuits.models.sites import Site
from pivotal_tokens.errors import RequestError

_LAYER = re.compile(r"\.(?:layers|h)\.(\d+)\.")
_STAGES = {
    "q_proj": Stage.ATTENTION_INPUT,
    "k_proj": Stage.ATTENTION_INPUT,
    "v_proj": Stage.ATTENTION_INPUT,
    "o_proj": Stage.ATTENTION_OUTPUT,
    "gate_proj": Stage.MLP_INPUT,
    "up_proj": Stage.MLP_INPUT,
    "down_proj": Stage.MLP_HIDDEN,
}


@dataclass(frozen=True)
class AdapterPart(Part):
    """The ranks of one module's LoRA."""

    down: Float[Tensor, "rank d_read"]
    """A; for an embedding, columns are token ids."""
    up: Float[Tensor, "rank d_write"]
    """``scale * B`` by rank, with DoRA's factor."""
    embedding: bool = False

    def activations(self, x: Tensor) -> Float[Tensor, "*batch node"]:
        if self.embedding:
            return self.down.T[x]
        return x.detach() @ self.down.T.to(x)

    def live(self, x: Tensor, ids: Int64[Tensor, " op"]) -> Float[Tensor, "*batch op"]:
        if self.embedding:  # token ids are no activation: nothing to differentiate
            return self.down[ids, x]
        return (x * self.down[ids].to(x)).sum(-1)

    def written(self, ids: Int64[Tensor, " op"], write: int = 0) -> Float[Tensor, "op d_write"]:
        return self.up[ids]

    def explained(self, x: Tensor) -> Float[Tensor, "pos d_write"]:
        """What the adapter adds to the module's output."""
        return self.activations(x) @ self.up.to(self.activations(x))


def adapter_parts(pair: ModelPair) -> tuple[AdapterPart, ...]:
    """One part per module that the pair's LoRA changes; nodes of the merged model.

    Raises:
        RequestError: If the adapter is no LoRA, or changes what has no place in the model.
    """
    source = pair.sources.get("adapter")
    if source is None:
        raise RequestError("the fine-tune was given as --merged; only an --adapter has ranks")
    adapter = source.path
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    if config.get("peft_type") != "LORA":
        raise RequestError(
            f"{adapter} is a {config.get('peft_type')} adapter; only LoRA ranks can be nodes"
        )
    tensors = load_file(adapter / "adapter_model.safetensors")
    names = sorted({_module_name(key) for key in tensors if ".lora_" in key}, key=_sort_key)
    return tuple(_part(pair, config, tensors, name) for name in names)


def scaling(config: dict[str, Any], module: str) -> float:
    """LoRA's factor on ``B A`` of a module (rank and alpha patterns included)."""
    rank = _pattern(config.get("rank_pattern"), module, config["r"])
    alpha = _pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return value
    return default


def _part(
    pair: ModelPair, config: dict[str, Any], tensors: dict[str, Tensor], name: str
) -> AdapterPart:
    embedding = f"base_model.model.{name}.lora_embedding_A" in tensors
    kind = "lora_embedding_" if embedding else "lora_"
    end = "" if embedding else ".weight"
    a, b = (tensors[f"base_model.model.{name}.{kind}{side}{end}"] for side in "AB")
    try:
        module: Any = pair.merged.hf.get_submodule(name)
        base: Any = pair.base.hf.get_submodule(name)
    except AttributeError as error:
        raise RequestError(f"the adapter changes {name}, which the model does not have") from error
    up = scaling(config, name) * b.to(pair.device, torch.float32)
    magnitude = tensors.get(f"base_model.model.{name}.lora_magnitude_vector")
    if magnitude is not None:
        unscaled = base.weight.float() + up @ a.to(up)
        up = up * (magnitude.to(up) / unscaled.norm(dim=1))[:, None]
    layer = _LAYER.search(name)
    leaf = name.rsplit(".", 1)[-1]
    if not embedding and (layer is None or leaf not in _STAGES):
        raise RequestError(f"the adapter changes {name}, whose ranks cannot be nodes")
    return AdapterPart(
        basis="adapter",
        name=name,
        layer=0 if layer is None else int(layer[1]),
        stage=Stage.EMBEDDING if embedding else _STAGES[leaf],
        read=Site(module, "input"),
        writes=(Site(module, "output"),),
        n_nodes=len(a),
        down=a.to(pair.device, torch.float32),
        up=up.T.contiguous(),
        embedding=embedding,
    )


def _module_name(key: str) -> str:
    return key.removeprefix("base_model.model.").split(".lora_")[0]


def _sort_key(name: str) -> tuple[int, int, str]:
    layer, leaf = _LAYER.search(name), name.rsplit(".", 1)[-1]
    return (-1 if layer is None else int(layer[1]), _STAGES.get(leaf, Stage.EMBEDDING), name)
