"""Families of language models: where their parts are, and what they compute differently.

A layer of every family here is

    x = x + behind_attention(attention(attention_norm(x)))
    x = x + behind_mlp(mlp(mlp_norm(x)))

| family | norms | behind | MLP | attention |
|---|---|---|---|---|
| Llama, Mistral, Qwen2, Qwen3 | ``w x / rms`` | - | gated | windows, biases, q and k norms |
| Gemma-2, Gemma-3 | ``(1 + w) x / rms`` | both | gated | windows in some layers, soft-caps |
| GPT-2 | LayerNorm | - | plain, `Conv1D` | learned positions, one q k v matrix |
| GPT-OSS | ``w x / rms`` | - | experts | windows, sinks |

Nothing outside this file asks for a model's class; everything asks its decoder:

    decoder = Decoder.of(hf)                  # of a multimodal model: its language model
    decoder.layers[2].mlp_norm, decoder.final_norm, decoder.windows
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pivotal_tokens.errors import RequestError

NormForm = Literal["rms", "rms_plus_one", "layer"]
"""``w x / rms``; ``(1 + w) x / rms``; ``w (x - mean) / std + b``."""
LinearMap = Literal["queries", "heads", "up", "down"]
"""To queries, keys or values; from the heads; into an MLP (its gate, too); out of it."""


@dataclass(frozen=True)
class Family:
    """Names of a family's parts, and the form of its norms.

    Attributes:
        name: As people say it.
        architectures: Classes of transformers that are of it.
        layers: Path of the list of layers in the decoder.
        attention: In a layer.
        output: In the attention: the last linear map, whose input is the concatenated heads.
        queries: In the attention: the maps to queries, keys and values; one where they are fused.
        mlp: In a layer.
        gate: In the MLP; None in a plain one.
        up: In the MLP.
        down: In the MLP.
        activation: In the MLP.
        experts: Of which an MLP is made; it gives their output, and which were taken.
        attention_norm: In a layer, as are the next three.
        behind_attention: Norm of what the attention adds to the stream; None where there is none.
        mlp_norm: In front of the MLP.
        behind_mlp: Norm of what the MLP adds to the stream; None where there is none.
        final_norm: In the decoder.
        norm: Form of all of these norms.
        sinks: Attention patterns do not sum to 1.
    """

    name: str
    architectures: tuple[str, ...]
    layers: str = "layers"
    attention: str = "self_attn"
    output: str = "o_proj"
    queries: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    mlp: str = "mlp"
    gate: str | None = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    activation: str = "act_fn"
    experts: bool = False
    attention_norm: str = "input_layernorm"
    behind_attention: str | None = None
    mlp_norm: str = "post_attention_layernorm"
    behind_mlp: str | None = None
    final_norm: str = "norm"
    norm: NormForm = "rms"
    sinks: bool = False


_SANDWICHED: dict[str, Any] = {
    "behind_attention": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "behind_mlp": "post_feedforward_layernorm",
    "norm": "rms_plus_one",
}
_GLM: dict[str, Any] = {
    "behind_attention": "post_self_attn_layernorm",
    "behind_mlp": "post_mlp_layernorm",
}
"""GLM-4's norms, beside Llama's."""
FAMILIES = (
    Family("Llama", ("LlamaForCausalLM",)),
    Family("Mistral", ("MistralForCausalLM",)),
    Family("Qwen2", ("Qwen2ForCausalLM",)),
    Family("Qwen3", ("Qwen3ForCausalLM",)),
    Family("Gemma-2", ("Gemma2ForCausalLM",), **_SANDWICHED),
    Family("Gemma-3", ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"), **_SANDWICHED),
    Family(
        "GPT-2",
        ("GPT2LMHeadModel",),
        layers="h",
        attention="attn",
        output="c_proj",
        queries=("c_attn",),
        gate=None,
        up="c_fc",
        down="c_proj",
        activation="act",
        attention_norm="ln_1",
        mlp_norm="ln_2",
        final_norm="ln_f",
        norm="layer",
    ),
    Family("GPT-OSS", ("GptOssForCausalLM",), experts=True, sinks=True),
)


@dataclass(frozen=True)
class Norm:
    """A norm as ``y = gain (x - c mean) / size + bias``, with c 1 for a LayerNorm and else 0."""

    module: Any
    form: NormForm

    @property
    def gain(self) -> Float[Tensor, " d"]:
        """Factor on the normalised vector; float32 for Gemma, as it computes."""
        weight = self.module.weight
        return 1 + weight.float() if self.form == "rms_plus_one" else weight

    @property
    def epsilon(self) -> float:
        """What is added to the mean square."""
        found = getattr(self.module, "variance_epsilon", None)
        return float(self.module.eps if found is None else found)

    def centred(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """The input as it is divided by its size, in float32."""
        x = x.float()
        return x - x.mean(-1, keepdim=True) if self.form == "layer" else x

    def scale(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch 1"]:
        """1 / size, in float32."""
        return torch.rsqrt(self.centred(x).square().mean(-1, keepdim=True) + self.epsilon)

    def apply(
        self, x: Float[Tensor, "*batch d"], scale: Float[Tensor, "*row 1"]
    ) -> Float[Tensor, "*batch d"]:
        """The norm of `x` with a given 1 / size instead of its own."""
        normalised = self.centred(x) * scale
        if self.form == "rms":
            return self.gain * normalised.to(x.dtype)
        y = normalised * self.gain.float()
        return (y if self.form == "rms_plus_one" else y + self.module.bias.float()).to(x.dtype)

    def fits(self, x: Float[Tensor, "*batch d"], output: Float[Tensor, "*batch d"]) -> bool:
        """Whether that form, with the scale of `x`, gives what the module gave."""
        difference = (self.apply(x, self.scale(x)) - output).abs().max()
        limit = max(1e-5, 2 * torch.finfo(output.dtype).eps)
        return bool(difference <= limit * output.abs().max())

    def normalised(
        self, x: Float[Tensor, "*batch d"], output: Float[Tensor, "*batch d"]
    ) -> Float[Tensor, "*batch d"]:
        """The input over its size, before gain and bias, with the size that `output` shows.

        So it is frozen where the norm is; differentiable.
        """
        centred = self.centred(x)
        along = self.gain.float() * centred
        y = output.float() - self.module.bias.float() if self.form == "layer" else output.float()
        size = along.square().sum(-1, keepdim=True).clamp_min(1e-30)
        return (centred * ((y * along).sum(-1, keepdim=True) / size)).to(x.dtype)


@dataclass(frozen=True)
class Layer:
    """The modules of one decoder layer."""

    module: nn.Module
    attention: Any
    output: Any
    """Reads the concatenated heads."""
    mlp: Any
    attention_norm: Norm
    mlp_norm: Norm
    behind_attention: Norm | None
    behind_mlp: Norm | None

    @property
    def norms(self) -> Iterator[Norm]:
        """Of the residual stream, in the order in which they run."""
        for norm in (self.attention_norm, self.behind_attention, self.mlp_norm, self.behind_mlp):
            if norm is not None:
                yield norm

    @property
    def writer(self) -> nn.Module:
        """Whose output (the first, of experts) is added to the stream: the MLP, or the norm behind
        it."""
        return self.mlp if self.behind_mlp is None else self.behind_mlp.module


@dataclass(frozen=True, eq=False)
class Decoder:
    """The language model in a Hugging Face model: its layers and what they have in common."""

    name: str
    """Class of the whole model."""
    family: Family
    config: Any
    """Of the language model."""
    layers: tuple[Layer, ...]
    final_norm: Norm
    path: str
    """Of the module that holds the layers and the embedding, such as ``model``."""
    model: nn.Module = field(repr=False)
    """That module."""

    @classmethod
    def of(cls, hf: nn.Module) -> Decoder:
        """Find the parts of a causal language model.

        Raises:
            RequestError: If it is of no family whose parts are named as those known here.
        """
        for family in _candidates(hf):
            found = cls._found(hf, family)
            if found is not None:
                return found
        known = ", ".join(family.name for family in FAMILIES)
        raise RequestError(
            f"{type(hf).__name__} is of no known family ({known}), and its layers do not have the "
            "parts of one (self_attn, mlp and a norm before each)"
        )

    @classmethod
    def _found(cls, hf: Any, family: Family) -> Decoder | None:
        config = hf.config.get_text_config()
        model, path = _decoder_module(hf, family)
        if model is None:
            return None
        stack = getattr(model, family.layers)
        try:
            layers = tuple(_layer(module, family) for module in stack)
            final = Norm(getattr(model, family.final_norm), family.norm)
            for norm in (*(one for layer in layers for one in layer.norms), final):
                _ = norm.module.weight, norm.epsilon
        except AttributeError:  # a part is missing, or a norm has no gain
            return None
        if len(layers) != config.num_hidden_layers or any(map(_has_more_norms, layers)):
            return None
        return cls(type(hf).__name__, family, config, layers, final, path, model)

    @cached_property
    def norms(self) -> tuple[Norm, ...]:
        """Every norm of the residual stream, in the order in which they run."""
        return (*(norm for layer in self.layers for norm in layer.norms), self.final_norm)

    @property
    def d_model(self) -> int:
        return int(self.config.hidden_size)

    @property
    def d_mlp(self) -> int:
        """Width of an MLP; GPT-2's is four times the model's unless it says otherwise."""
        inner = getattr(self.config, "intermediate_size", None)
        inner = inner or getattr(self.config, "n_inner", None)
        return int(inner or 4 * self.d_model)

    @property
    def d_vocab(self) -> int:
        """Width of the logits."""
        return int(self.config.vocab_size)

    @property
    def n_heads(self) -> int:
        """Query heads of a layer."""
        return int(self.config.num_attention_heads)

    @property
    def d_head(self) -> int:
        found = getattr(self.config, "head_dim", None)
        return int(found or self.d_model // self.n_heads)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """By layer: how many positions back it attends, itself included; None is all of them."""
        width = getattr(self.config, "sliding_window", None)
        kinds = getattr(self.config, "layer_types", None) or ["sliding_attention"] * len(
            self.layers
        )
        if not getattr(self.config, "use_sliding_window", True):
            width = None
        return tuple(width if kind == "sliding_attention" else None for kind in kinds)

    def windowed_within(self, n_pos: int) -> bool:
        """Whether some layer does not see the whole of a text of that many tokens."""
        return any(window is not None and window < n_pos for window in self.windows)

    def causal_mask(self, n_pos: int) -> Float[Tensor, "1 1 pos pos"] | None:
        """The mask of whole texts, which broadcasts over rows; None leaves it to transformers.

        transformers makes the same one anew in every pass (``masking_utils.eager_mask``), for every
        row, by a `vmap` that takes longer than a small model.
        """
        kinds = set(getattr(self.config, "layer_types", None) or ())
        known = kinds <= {"full_attention", "sliding_attention"}
        eager = self.config._attn_implementation == "eager"
        if not (known and eager) or self.windowed_within(n_pos):
            return None
        weight = self.model.get_input_embeddings().weight  # type: ignore[operator]
        lowest = torch.finfo(weight.dtype).min
        return weight.new_full((n_pos, n_pos), lowest).triu_(1)[None, None]

    @property
    def plain_attention(self) -> bool:
        """Patterns are the softmax of scaled products alone: any implementation computes them."""
        capped = getattr(self.config, "attn_logit_softcapping", None)
        return not capped and not self.family.sinks

    @cached_property
    def cache_name(self) -> str:
        """What the model's forward, and its output, call the cache of keys and values."""
        # transformers 5.20 renamed it, and is to drop the old name in 5.40.
        known = inspect.signature(self.model.forward).parameters
        return "cache" if "cache" in known else "past_key_values"

    def map_at(self, name: str) -> tuple[int, LinearMap] | None:
        """Layer and kind of a linear map, named as in the whole model; None for anything else."""
        prefix = f"{self.path}.{self.family.layers}."
        layer, _, rest = name.removeprefix(prefix).partition(".")
        if not name.startswith(prefix) or not layer.isdigit():
            return None
        family = self.family
        kinds: dict[str, LinearMap] = {
            **{f"{family.attention}.{one}": "queries" for one in family.queries},
            f"{family.attention}.{family.output}": "heads",
            f"{family.mlp}.{family.gate}": "up",
            f"{family.mlp}.{family.up}": "up",
            f"{family.mlp}.{family.down}": "down",
        }
        return None if rest not in kinds else (int(layer), kinds[rest])

    def is_elsewhere(self, name: str) -> bool:
        """Whether a module, named as in the whole model, never runs on text: a vision tower's."""
        beside = self.path.removesuffix("language_model")
        return beside != self.path and name.startswith(beside) and not name.startswith(self.path)


def _candidates(hf: nn.Module) -> Iterator[Family]:
    """The family of a model's class; of an unknown class, those it may be built like."""
    name = type(hf).__name__
    if named := [family for family in FAMILIES if name in family.architectures]:
        yield from named
        return
    centred = any(isinstance(module, nn.LayerNorm) for module in hf.modules())
    plain: NormForm = "layer" if centred else "rms"
    form: NormForm = "rms_plus_one" if name.startswith("Gemma") else plain
    # The one with more parts first: the other would fit too.
    yield Family(f"{name}, sandwiched", (), **{**_SANDWICHED, "norm": form})
    yield Family(name, (), norm=form, **_GLM)
    yield Family(name, (), norm=form)


def _decoder_module(hf: nn.Module, family: Family) -> tuple[Any, str]:
    """The module that holds the layers, and its path; a language model's before any other's."""
    found = [
        (module, path)
        for path, module in hf.named_modules()
        if isinstance(getattr(module, family.layers, None), nn.ModuleList)
        and hasattr(module, family.final_norm)
    ]
    text = [one for one in found if one[1].endswith("language_model")]
    return (text or found or [(None, "")])[0]


def _has_more_norms(layer: Layer) -> bool:
    """Whether a layer has a norm that no name of its family is of: what freezes norms missed it."""
    known = {id(norm.module) for norm in layer.norms}
    return any(
        "norm" in type(module).__name__.lower() and id(module) not in known
        for module in layer.module.children()
    )


def _layer(module: Any, family: Family) -> Layer:
    attention, mlp = getattr(module, family.attention), getattr(module, family.mlp)

    def norm(name: str | None) -> Norm | None:
        return None if name is None else Norm(getattr(module, name), family.norm)

    return Layer(
        module=module,
        attention=attention,
        output=getattr(attention, family.output),
        mlp=mlp,
        attention_norm=Norm(getattr(module, family.attention_norm), family.norm),
        mlp_norm=Norm(getattr(module, family.mlp_norm), family.norm),
        behind_attention=norm(family.behind_attention),
        behind_mlp=norm(family.behind_mlp),
    )
