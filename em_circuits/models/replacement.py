"""circuit-tracer's replacement models around the tensors of a loaded Hugging Face model.

circuit-tracer loads models by name; here the model is already in memory (an adapter may just have
been merged into it), so the replacement model is put around those very tensors. Both backends get
one addition: an attribution context prepared beforehand is used instead of a new one, so that
the logits a person labels and the graph come from the same forward pass.

    model = build_replacement(hf, tokenizer, transcoders, backend="transformerlens")
    with model.prepared(context):
        graph = circuit_tracer.attribute(input_ids, model)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from circuit_tracer.replacement_model.replacement_model_transformerlens import (
    TransformerLensReplacementModel,
)
from torch import nn
from transformers import PreTrainedTokenizerBase

from em_circuits.models.settings import Backend
from pivotal_tokens.errors import RequestError

_SUPPORTED = ("LlamaForCausalLM",)


class PreparedContext:
    """Mixin of a replacement model: `setup_attribution` returns a context prepared beforehand."""

    _prepared: Any = None

    @contextlib.contextmanager
    def prepared(self, context: Any) -> Iterator[None]:
        """Make `setup_attribution` return `context` inside the block."""
        self._prepared = context
        try:
            yield
        finally:
            self._prepared = None

    def setup_attribution(self, inputs: Any) -> Any:
        """circuit-tracer's first step of an attribution, or the prepared result of it."""
        return self._prepared or super().setup_attribution(inputs)  # type: ignore[misc]


class SharedTransformerLensModel(PreparedContext, TransformerLensReplacementModel):
    """circuit-tracer's TransformerLens replacement model over shared tensors."""

    def close(self) -> None:
        """Take off every hook; call it before the model is dropped."""
        self.reset_hooks(including_permanent=True)

    def __del__(self) -> None:
        # Upstream resets hooks here, which raises at interpreter exit; `close` does it in time.
        return


def build_replacement(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    transcoders: Any,
    *,
    backend: Backend,
    max_context: int,
) -> Any:
    """A replacement model that computes with the tensors of `model`.

    Args:
        model: Frozen Hugging Face causal language model with eager attention.
        tokenizer: Its tokenizer.
        transcoders: circuit-tracer `TranscoderSet` on the model's device, in its precision.
        backend: ``transformerlens`` or ``nnsight``.
        max_context: Longest prompt in tokens (TransformerLens keeps a mask of this size squared).

    Returns:
        An object with circuit-tracer's attribution interface, `prepared` and `close`.

    Raises:
        RequestError: If the backend cannot express the architecture.
    """
    if backend == "nnsight":
        return _build_nnsight(model, tokenizer, transcoders)
    return _build_transformerlens(model, tokenizer, transcoders, max_context)


def _build_transformerlens(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, transcoders: Any, max_context: int
) -> SharedTransformerLensModel:
    from transformer_lens.pretrained.weight_conversions import convert_llama_weights

    config = transformerlens_config(model, tokenizer, max_context)
    replacement = SharedTransformerLensModel(config, tokenizer)
    # Detached and assigned: parameters of its own that are views of the other model's memory.
    weights = {name: w.detach() for name, w in convert_llama_weights(model, config).items()}
    absent, _ = replacement.load_state_dict(weights, strict=False, assign=True)
    parameters = {name for name, _ in replacement.named_parameters()}
    if lost := sorted(parameters.intersection(absent)):
        raise RequestError(f"transformerlens backend: no weights for {', '.join(lost[:4])}")
    replacement._configure_replacement_model(transcoders)
    return replacement


def transformerlens_config(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, max_context: int
) -> Any:
    """TransformerLens's configuration of a Llama model, read from the model and from no name.

    TransformerLens guesses a local directory's configuration from its path, wrongly; every field
    that changes a number is given here, RoPE base and llama3 scaling included.

    Raises:
        RequestError: If the model has a part that TransformerLens's Llama has not.
    """
    from transformer_lens import HookedTransformerConfig

    hf: Any = model.config
    _check_llama(type(model).__name__, hf)
    scaling = hf.rope_scaling or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    rope: dict[str, Any] = {}
    if kind == "llama3":
        rope = {
            "use_NTK_by_parts_rope": True,
            "NTK_by_parts_factor": scaling["factor"],
            "NTK_by_parts_low_freq_factor": scaling["low_freq_factor"],
            "NTK_by_parts_high_freq_factor": scaling["high_freq_factor"],
            "NTK_original_ctx_len": scaling["original_max_position_embeddings"],
        }
    elif kind != "default":
        raise RequestError(f"transformerlens backend: RoPE scaling {kind!r} is not supported")
    heads, kv_heads = hf.num_attention_heads, hf.num_key_value_heads
    d_head = getattr(hf, "head_dim", None) or hf.hidden_size // heads
    weight = next(model.parameters())
    config = HookedTransformerConfig(
        n_layers=hf.num_hidden_layers,
        d_model=hf.hidden_size,
        d_head=d_head,
        n_heads=heads,
        n_key_value_heads=None if kv_heads == heads else kv_heads,
        d_mlp=hf.intermediate_size,
        d_vocab=hf.vocab_size,
        n_ctx=min(hf.max_position_embeddings, max_context),
        eps=hf.rms_norm_eps,
        act_fn=hf.hidden_act,
        gated_mlp=True,
        normalization_type="RMS",
        final_rms=True,
        positional_embedding_type="rotary",
        rotary_dim=d_head,
        rotary_base=hf.rope_theta,
        rotary_adjacent_pairs=False,
        original_architecture="LlamaForCausalLM",
        model_name=hf.name_or_path.rstrip("/").rsplit("/", 1)[-1] or "model",
        default_prepend_bos=False,
        device=str(weight.device),
        dtype=weight.dtype,
        init_weights=False,
        **rope,
    )
    config.tokenizer_name = tokenizer.name_or_path
    return config


def _check_llama(architecture: str, hf: Any) -> None:
    if architecture not in _SUPPORTED:
        raise RequestError(
            f"transformerlens backend builds {', '.join(_SUPPORTED)}, not {architecture}; "
            "use --backend nnsight"
        )
    if hf.attention_bias or getattr(hf, "mlp_bias", False):
        raise RequestError(
            "transformerlens backend: Llama models with biases are not supported; "
            "use --backend nnsight"
        )


def _build_nnsight(model: nn.Module, tokenizer: PreTrainedTokenizerBase, transcoders: Any) -> Any:
    from circuit_tracer.replacement_model.replacement_model_nnsight import (
        NNSightReplacementModel,
    )

    from em_circuits.models.sharing import sharing_copy

    class SharedNNSightModel(PreparedContext, NNSightReplacementModel):
        def close(self) -> None:
            """Nothing to take off: nnsight's hooks live in its trace contexts."""

    # Modules of its own: nnsight rewrites the forward methods of the modules it traces.
    own = sharing_copy(model)
    replacement = SharedNNSightModel(own, tokenizer=tokenizer, dispatch=True)
    replacement._hf_config = own.config
    replacement._configure_replacement_model(transcoders)
    return replacement
