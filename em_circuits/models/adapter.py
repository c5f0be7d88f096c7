"""LoRA adapters as PEFT and Unsloth write them, read without a model.

    merged weight = W + scaling B A
    scaling       = alpha / rank, with rank-stabilised LoRA alpha / sqrt(rank)

Only the header of the safetensors file is read, so that an adapter can be looked at in no time;
`LoraAdapter.tensors` reads the matrices of one module. Needs no torch.

    adapter = LoraAdapter.read(Path("my-adapter"))
    adapter.modules[0].name, adapter.modules[0].rank, adapter.modules[0].scaling
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import safe_open

from em_circuits.models.files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    check_adapter_files,
    json_object,
    tensor_shapes,
)
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen

if TYPE_CHECKING:
    from torch import Tensor

_PREFIX = "base_model.model."
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""In which modules of a layer act."""
_PLAIN = {
    "bias": "none",
    "lora_bias": False,
    "fan_in_fan_out": False,
    "layer_replication": None,
    "use_qalora": False,
    "use_bdlora": False,
    "target_parameters": None,
}
"""Settings, beside rank and scaling, under which a module is ``W + scaling B A``."""


class LoraTensors(NamedTuple):
    """Matrices of one module as the file has them."""

    a: Tensor
    """Rank x what the module reads (token ids, for an embedding)."""
    b: Tensor
    """What the module writes x rank."""
    magnitude: Tensor | None
    """DoRA's m, one value per row of the weight (per column of an embedding)."""


class LoraModule(Frozen, use_attribute_docstrings=True):
    """What an adapter holds for one module."""

    name: str
    """Path of the module in the base model."""
    layer: int | None
    """Counted from 0, as code counts; null outside the layers."""
    layer_from_1: int | None
    """The same as people count."""
    rank: int
    alpha: float
    scaling: float
    """Factor on B A."""
    dora: bool
    """The file holds a magnitude vector (weight-decomposed LoRA)."""
    embedding: bool
    """A's columns are token ids."""
    d_read: int
    """Width of what A reads."""
    d_write: int
    """Width of what B writes."""
    parameters: int
    """Trained numbers in A, B and the magnitude vector."""

    @property
    def leaf(self) -> str:
        """Last part of the name, such as ``down_proj``."""
        return self.name.rsplit(".", 1)[-1]


class LoraAdapter(Frozen, use_attribute_docstrings=True):
    """A LoRA adapter on disk."""

    path: str
    """Directory."""
    base_model: str | None
    """The model that it names as its base."""
    rank: int
    """Default; a module of a pattern may differ."""
    alpha: float
    """Default; a module of a pattern may differ."""
    rslora: bool
    """Rank-stabilised: scaling is alpha / sqrt(rank)."""
    dora: bool
    bias: str
    """Which biases were trained too: none, all or lora_only."""
    modules_to_save: tuple[str, ...]
    """Modules that were trained whole; no rank stands for them."""
    unusual: tuple[str, ...]
    """Settings under which a module is not ``W + scaling B A`` alone."""
    parameters: int
    """Trained numbers in the file, of whatever kind."""
    modules: tuple[LoraModule, ...]
    """In the order in which the model runs them."""

    @classmethod
    def read(cls, path: Path) -> LoraAdapter:
        """Read the configuration and the header of the weights.

        Args:
            path: PEFT directory.

        Raises:
            RequestError: If it holds no LoRA adapter in safetensors, or the two files disagree.
        """
        config = _config(path)
        check_adapter_files("adapter", path)
        shapes = tensor_shapes("adapter", path / ADAPTER_WEIGHTS)
        names = {_module_name(key) for key in shapes if ".lora_" in key}
        modules = [_module(path, config, shapes, name) for name in names]
        if not modules:
            raise RequestError(f"{path / ADAPTER_WEIGHTS} holds no LoRA matrices")
        return cls(
            path=str(path),
            base_model=config.get("base_model_name_or_path") or None,
            rank=config["r"],
            alpha=config["lora_alpha"],
            rslora=bool(config.get("use_rslora")),
            dora=bool(config.get("use_dora")),
            bias=config.get("bias") or "none",
            modules_to_save=tuple(config.get("modules_to_save") or ()),
            unusual=tuple(
                f"{name}={config[name]}"
                for name, plain in _PLAIN.items()
                if name in config and (config[name] or plain) != plain
            ),
            parameters=sum(math.prod(shape) for shape in shapes.values()),
            modules=tuple(sorted(modules, key=_sort_key)),
        )

    def tensors(self, module: LoraModule) -> LoraTensors:
        """A, B and the magnitude vector of one module, on the CPU; needs torch."""
        names = _tensor_names(module.name, embedding=module.embedding)
        with safe_open(Path(self.path) / ADAPTER_WEIGHTS, framework="pt") as file:
            magnitude = file.get_tensor(names.magnitude) if module.dora else None
            return LoraTensors(file.get_tensor(names.a), file.get_tensor(names.b), magnitude)


def scaling(config: Mapping[str, Any], module: str) -> float:
    """LoRA's factor on ``B A`` of a module, rank and alpha patterns included.

    Source: peft, `LoraModel._create_and_replace` and `LoraLayer.set_scale`.
    """
    rank = _pattern(config, "rank_pattern", module, config["r"])
    alpha = _pattern(config, "alpha_pattern", module, config["lora_alpha"])
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


class _Names(NamedTuple):
    a: str
    b: str
    magnitude: str


def _tensor_names(module: str, *, embedding: bool) -> _Names:
    kind, end = ("lora_embedding_", "") if embedding else ("lora_", ".weight")
    a, b = (f"{_PREFIX}{module}.{kind}{side}{end}" for side in "AB")
    return _Names(a, b, f"{_PREFIX}{module}.lora_magnitude_vector")


def _config(path: Path) -> dict[str, Any]:
    file = path / ADAPTER_CONFIG
    if not file.is_file():
        raise RequestError(f"{path} holds no {ADAPTER_CONFIG}; give the directory of an adapter")
    config = json_object("adapter", file)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise RequestError(f"{path} is a {kind} adapter; only LoRA has ranks")
    if not (isinstance(config.get("r"), int) and isinstance(config.get("lora_alpha"), int | float)):
        raise RequestError(f"{file} names no rank (r) or no lora_alpha")
    return config


def _module(
    path: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], name: str
) -> LoraModule:
    embedding = _tensor_names(name, embedding=True).a in shapes
    names = _tensor_names(name, embedding=embedding)
    try:
        (rank, d_read), (d_write, _) = shapes[names.a], shapes[names.b]
    except (KeyError, ValueError) as error:
        raise RequestError(
            f"{path / ADAPTER_WEIGHTS}: no A and B of two axes for {name}"
        ) from error
    expected = _pattern(config, "rank_pattern", name, config["r"])
    if rank != expected:
        raise RequestError(
            f"{name} has rank {rank} in {ADAPTER_WEIGHTS} and {expected} in {ADAPTER_CONFIG} of "
            f"{path}; the two files are not of one adapter"
        )
    found = _LAYER.search(name)
    layer = None if found is None else int(found[1])
    held = [shapes[one] for one in names if one in shapes]
    return LoraModule(
        name=name,
        layer=layer,
        layer_from_1=None if layer is None else layer + 1,
        rank=rank,
        alpha=_pattern(config, "alpha_pattern", name, config["lora_alpha"]),
        scaling=scaling(config, name),
        dora=names.magnitude in shapes,
        embedding=embedding,
        d_read=d_read,
        d_write=d_write,
        parameters=sum(math.prod(shape) for shape in held),
    )


def _pattern(config: Mapping[str, Any], which: str, module: str, default: Any) -> Any:
    """The first pattern that the end of a module's name matches, as `peft` looks for it."""
    for pattern, value in (config.get(which) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _module_name(key: str) -> str:
    return key.removeprefix(_PREFIX).split(".lora_")[0]


def _sort_key(module: LoraModule) -> tuple[int, int, str]:
    layer = -1 if module.layer is None else module.layer
    order = _ORDER.index(module.leaf) if module.leaf in _ORDER else -1
    return layer, order, module.name
