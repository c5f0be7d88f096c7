"""Regimes: what stays frozen while a feature is changed, as context managers.

| regime | attention patterns | norm scales | MLP outputs |
|---|---|---|---|
| `direct` | frozen | frozen | frozen |
| `frozen_linear` | frozen | frozen | dictionary, gates and errors frozen |
| `gates_recomputed` | frozen | frozen | dictionary, features switch on and off, errors frozen |
| `attention_frozen` | frozen | real | real |
| `free` | real | real | real |

    with frozen(model, stacked, Regime.DIRECT):
        model.hf(batch)

The dictionary is a layer's transcoder, or its neurons: then `frozen_linear` is the MLP's own
linearisation and `gates_recomputed` the real MLP. A transcoder's skip connection belongs to the
linear part: in the first three regimes it passes changes on. Whatever is put into the model is
taken out again, also after an exception.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from em_circuits.activation_cache import BatchedCache, attention_modules
from em_circuits.intervention import Regime
from em_circuits.models import Model
from em_circuits.models.dictionaries import one_layer_only
from em_circuits.models.family import Norm
from pivotal_tokens.errors import RequestError


@contextlib.contextmanager
def frozen(
    model: Model, stacked: BatchedCache, regime: Regime, *, start: int = 0
) -> Iterator[None]:
    """Freeze attention patterns and norm scales as the regime wants them.

    Args:
        model: The real model.
        stacked: The undisturbed prompts of the batch's rows.
        regime: What is frozen.
        start: First position that is run; what stands before it comes from a cache.

    Raises:
        RequestError: If the model has parts that cannot be frozen.
    """
    with contextlib.ExitStack() as stack:
        if regime is not Regime.FREE:
            stack.enter_context(frozen_patterns(model, stacked.patterns[..., start:, :]))
        if regime.freezes_norms:
            stack.enter_context(frozen_norms(model, stacked.norm_scales))
        yield


@contextlib.contextmanager
def frozen_patterns(
    model: Model,
    patterns: Float[Tensor, "layer row head query key"],
) -> Iterator[None]:
    """Attend as `patterns` say; values flow, queries and keys are ignored.

    Goes through transformers' own registry of attention functions.
    """
    layer_of = {id(m): i for i, m in enumerate(attention_modules(model))}

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, None]:
        pattern = patterns[layer_of[id(module)]]
        values = value.repeat_interleave(pattern.shape[1] // value.shape[1], dim=1)
        return torch.matmul(pattern, values).transpose(1, 2).contiguous(), None

    name = f"em_circuits_frozen_patterns_{id(attend)}"
    config: Any = model.hf.config
    before = config._attn_implementation
    ALL_ATTENTION_FUNCTIONS[name] = attend
    try:
        config._attn_implementation = name
        yield
    finally:
        config._attn_implementation = before
        del ALL_ATTENTION_FUNCTIONS[name]


@contextlib.contextmanager
def frozen_norms(model: Model, scales: tuple[Tensor | None, ...]) -> Iterator[None]:
    """Norms multiply by the given 1 / size instead of their own."""

    def hook(norm: Norm, scale: Tensor) -> Callable:
        return lambda _module, args, _output: norm.apply(args[0], scale)

    hooks = []
    for norm, scale in zip(model.decoder.norms, scales, strict=True):
        if scale is None:
            raise RequestError(
                f"{type(norm.module).__name__} is not of a form whose scale can be frozen: "
                "use regime attention_frozen or free"
            )
        hooks.append((norm.module, hook(norm, scale)))
    with _hooks(hooks):
        yield


@contextlib.contextmanager
def replaced_attention(model: Model, outputs: Float[Tensor, "layer pos d_model"]) -> Iterator[None]:
    """Every attention layer gives `outputs`, whatever it attends to."""

    def hook(layer: int) -> Callable:
        def replace(_module: nn.Module, _args: tuple, output: tuple) -> tuple:
            return (outputs[layer].expand_as(output[0]), *output[1:])

        return replace

    with _hooks([(m, hook(i)) for i, m in enumerate(attention_modules(model))]):
        yield


@contextlib.contextmanager
def _hooks(hooks: list[tuple[nn.Module, Callable]]) -> Iterator[None]:
    handles: list[RemovableHandle] = []
    try:
        for module, hook in hooks:
            handles.append(module.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


class FrozenMLP:
    """One layer's MLP output as a function of its input, in a regime that freezes norms.

    Args:
        model: Its dictionaries stand for the MLPs.
        stacked: The undisturbed prompts; everything is a change against them.
        layer: Which layer.
        regime: `direct`, `frozen_linear` or `gates_recomputed`.
    """

    def __init__(self, model: Model, stacked: BatchedCache, layer: int, regime: Regime) -> None:
        self._dictionary = model.dictionaries[layer]
        self._regime = regime
        if regime is not Regime.DIRECT and self._dictionary.n_writes > 1:
            raise one_layer_only(f"regime {regime}")
        self._input = stacked.inputs[layer]
        self._output = stacked.mlp_outputs[layer]
        if regime is Regime.GATES_RECOMPUTED:
            self._active = stacked.dense_activations(layer)
        if regime is Regime.FROZEN_LINEAR:
            self._linear = self._dictionary.linearised(self._input, stacked.active_in(layer))

    def __call__(
        self, inputs: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """The layer's MLP output at each row's MLP input."""
        change = inputs - self._input
        output = self._output.expand_as(inputs)
        if (skipped := self._dictionary.skipped(change)) is not None:
            output = output + skipped
        if self._regime is Regime.FROZEN_LINEAR:
            output = output + self._linear(change)
        if self._regime is Regime.GATES_RECOMPUTED:
            output = output + self._recomputed(inputs)
        return output

    def _recomputed(self, inputs: Tensor) -> Tensor:
        change = self._dictionary.activations(inputs) - self._active
        ids = change.flatten(0, 1).any(0).nonzero()[:, 0]
        return change[..., ids] @ self._dictionary.decoder(ids)
