"""How does a gradient pass back through a model whose patterns, scales and MLPs are frozen?

circuit-tracer's local replacement model is linear in the residual stream, so that a layer passes
the gradient g of the stream behind it on to the stream before it as

    g + (sum over heads of pattern^T . g . W_O^T . W_V^T) * w / scale

for as many rows at once as fit. Only patterns and scales of one forward pass are needed: no tape
of automatic differentiation. Patterns of long prompts are large (heads x pos^2 for every layer);
those that exceed `PATTERN_BYTES` are computed again, a layer at a time, from the stream before it.

    frozen = FrozenModel.of(replacement, input_ids)
    if frozen is not None:
        gradient = frozen.enter(layer, positions, vectors, length=length)
        frozen.through_attention(layer, gradient)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from circuit_tracer.replacement_model.replacement_model_transformerlens import (
    TransformerLensReplacementModel,
)
from jaxtyping import Float, Int64
from torch import Tensor

PATTERN_BYTES = 1 << 30
"""Attention patterns of one prompt that are kept; further ones are computed when needed."""
_STEP = 512
"""Query positions that are multiplied at once: what lies behind them is zero."""
_READS = ("hook_resid_mid", "ln2.hook_normalized", "mlp.hook_in")
_WRITES = ("hook_mlp_out", "mlp.hook_out")
_SETTINGS = {
    "original_architecture": "LlamaForCausalLM",
    "normalization_type": "RMS",
    "positional_embedding_type": "rotary",
    "parallel_attn_mlp": False,
    "use_normalization_before_and_after": False,
    "use_attn_in": False,
    "use_split_qkv_input": False,
    "use_attn_result": False,
}


class Scales(NamedTuple):
    """A layer's normalisation scales, each ``[pos, 1]``."""

    attention: Tensor
    mlp: Tensor


class FrozenModel:
    """One prompt's frozen model; see `of`."""

    def __init__(self, replacement: Any, input_ids: Int64[Tensor, " pos"]) -> None:
        self._model = replacement
        self.n_layers: int = replacement.cfg.n_layers
        self._streams: list[Tensor] = []
        self._scales: list[Scales] = []
        self._patterns: dict[int, Tensor] = {}
        self._record(input_ids)

    @classmethod
    def of(cls, replacement: Any, input_ids: Int64[Tensor, " pos"]) -> FrozenModel | None:
        """Run a prompt forward once, keeping what is frozen; None for a model of another kind.

        Args:
            replacement: circuit-tracer's TransformerLens replacement model of a Llama.
            input_ids: The prompt.
        """
        return cls(replacement, input_ids) if is_known(replacement) else None

    def enter(
        self,
        layer: int,
        positions: Int64[Tensor, " row"],
        vectors: Float[Tensor, "row d_model"],
        *,
        length: int,
    ) -> Float[Tensor, "pos row d_model"]:
        """Gradient of the stream behind a layer's attention (behind the model: before its norm).

        Args:
            layer: Whose transcoder reads; the number of layers for the unembedding.
            positions: Where each row reads.
            vectors: What it multiplies what it reads with.
            length: Positions, beginning with the first, that are looked at.
        """
        stream = self._streams[0]
        gradient = stream.new_zeros((length, len(vectors), stream.shape[-1]))
        read = self._to_stream(layer, positions, vectors.to(stream))
        gradient[positions.to(stream.device), torch.arange(len(vectors))] = read
        return gradient

    def through_mlp(self, layer: int, gradient: Float[Tensor, "pos row d_model"]) -> None:
        """Add, in place, what passes through a transcoder's skip connection; MLPs are frozen."""
        skip = self._model.transcoders[layer].W_skip
        if skip is not None:
            length, n_rows, width = gradient.shape
            places = torch.arange(length).repeat_interleave(n_rows)
            passed = gradient.reshape(-1, width) @ skip.to(gradient)
            gradient += self._to_stream(layer, places, passed).view_as(gradient)

    def through_attention(self, layer: int, gradient: Float[Tensor, "pos row d_model"]) -> None:
        """Turn, in place, the gradient behind a layer's attention into that before the layer."""
        length, n_rows, width = gradient.shape
        block, pattern = self._model.blocks[layer], self._pattern(layer)
        writes, reads = block.attn.W_O, _value_weights(block.attn)
        per_group = len(writes) // len(reads)
        flat = gradient.view(length * n_rows, width)
        passed = torch.zeros_like(flat)
        for group, read in enumerate(reads):
            values = gradient.new_zeros(length, n_rows * read.shape[1])
            for head in range(group * per_group, (group + 1) * per_group):
                heads = (flat @ writes[head].T).view(length, -1)
                for start in range(0, length, _STEP):
                    stop = min(start + _STEP, length)
                    values[:stop].addmm_(pattern[head, start:stop, :stop].T, heads[start:stop])
            passed.addmm_(values.view(-1, read.shape[1]), read.T)
        scale = self._scales[layer].attention[:length, None]
        gradient.addcmul_(passed.view_as(gradient), (block.ln1.w / scale).to(gradient))

    def _to_stream(self, layer: int, positions: Tensor, vectors: Tensor) -> Tensor:
        """Through the norm, if any, between the stream and what is read of it."""
        if layer == self.n_layers:
            return vectors * self._model.ln_final.w / self._final[positions].to(vectors)
        reads = self._model.feature_input_hook
        if reads == "hook_resid_mid":
            return vectors
        weight = self._model.blocks[layer].ln2.w if reads == "mlp.hook_in" else 1.0
        return vectors * weight / self._scales[layer].mlp[positions].to(vectors)

    def _pattern(self, layer: int) -> Float[Tensor, "head query key"]:
        kept = self._patterns.get(layer)
        if kept is not None:
            return kept
        found: list[Tensor] = []
        name = f"blocks.{layer}.attn.hook_pattern"
        block = self._model.blocks[layer]
        with torch.no_grad(), self._model.hooks(fwd_hooks=[(name, _into(found))]):
            normed = block.ln1(self._streams[layer])
            block.attn(normed, normed, normed, attention_mask=self._mask)
        return found[0][0]

    def _record(self, input_ids: Tensor) -> None:
        model, layers = self._model, range(self.n_layers)
        before: list[list[Tensor]] = [[] for _ in layers]
        mlp: list[list[Tensor]] = [[] for _ in layers]
        final: list[Tensor] = []
        kept: list[list[Tensor]] = [[] for _ in layers]
        hooks = [("ln_final.hook_scale", _into(final))]
        for layer in layers:
            hooks.append((f"blocks.{layer}.hook_resid_pre", _into(self._streams)))
            hooks.append((f"blocks.{layer}.ln1.hook_scale", _into(before[layer])))
            hooks.append((f"blocks.{layer}.ln2.hook_scale", _into(mlp[layer])))
        each = model.cfg.n_heads * len(input_ids) ** 2 * model.W_E.element_size()
        for layer in range(min(self.n_layers, PATTERN_BYTES // each)):
            # The lowest layers first: every row passes through them.
            hooks.append((f"blocks.{layer}.attn.hook_pattern", _into(kept[layer])))
        with torch.no_grad(), model.hooks(fwd_hooks=hooks):
            self._mask = model.input_to_embed(input_ids[None])[3]
            model.ln_final(model.forward(input_ids[None], stop_at_layer=self.n_layers))
        self._scales = [Scales(a[0][0], m[0][0]) for a, m in zip(before, mlp, strict=True)]
        self._final = final[0][0]
        self._patterns = {layer: found[0][0] for layer, found in enumerate(kept) if found}


def is_known(replacement: Any) -> bool:
    """Whether this file's formula is the model's."""
    if not isinstance(replacement, TransformerLensReplacementModel):
        return False
    config = replacement.cfg
    return (
        all(getattr(config, name, None) == value for name, value in _SETTINGS.items())
        and getattr(replacement, "feature_input_hook", None) in _READS
        and getattr(replacement, "original_feature_output_hook", None) in _WRITES
        and hasattr(replacement.transcoders, "__getitem__")
    )


def _value_weights(attention: Any) -> Float[Tensor, "group d_model d_head"]:
    """W_V, once for all heads that share it."""
    shared = getattr(attention, "_W_V", None)
    return attention.W_V if shared is None else shared


def _into(found: list[Tensor]) -> Any:
    def hook(acts: Tensor, hook: Any) -> None:
        found.append(acts.detach())

    return hook
