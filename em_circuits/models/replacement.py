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
import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from circuit_tracer.replacement_model.replacement_model_transformerlens import (
    TransformerLensReplacementModel,
)
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet
from circuit_tracer.utils import tl_nnsight_mapping
from torch import Tensor, nn
from transformer_lens.utilities.activation_functions import SUPPORTED_ACTIVATIONS
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from em_circuits.models.dictionaries import TranscoderDictionary
from em_circuits.models.family import Decoder, Family
from em_circuits.models.foreign import foreign_errors
from em_circuits.models.settings import Backend
from em_circuits.models.sharing import sharing_copy
from em_circuits.models.transcoders import Transcoders
from pivotal_tokens.errors import RequestError

_CONVERTERS = {
    "Llama": "convert_llama_weights",
    "Mistral": "convert_mistral_weights",
    "Qwen2": "convert_qwen2_weights",
    "GPT-2": "convert_gpt2_weights",
}
"""Families that TransformerLens builds, by its own conversion of their weights. Gemma's makes new
tensors of what it folds, and would share nothing."""
_LIKE_LLAMA = ("Mistral", "Qwen2")
"""Families that circuit-tracer's table lacks, whose modules are named as Llama's."""


def backend_of(
    decoder: Decoder, chosen: Backend, max_context: int
) -> Literal["transformerlens", "nnsight"]:
    """The backend that is meant: TransformerLens, whose rows can be batched, where it can."""
    if chosen != "auto":
        return chosen
    return "nnsight" if _lens_lacks(decoder, max_context) else "transformerlens"


class PreparedContext:
    """Mixin of a replacement model: `setup_attribution` returns a context prepared beforehand."""

    _prepared: Any = None
    _embedding: Callable[[Tensor], Tensor] | None = None
    """What the model embeds tokens with, scale and all."""

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
        if self._prepared is not None:
            return self._prepared
        context = super().setup_attribution(inputs)  # type: ignore[misc]
        if self._embedding is not None:
            # Upstream takes rows of the weight, which Gemma-3 multiplies before they are added.
            context.token_vectors = self._embedding(inputs.squeeze()).detach()
        return context

    def ensure_tokenized(self, prompt: Any) -> Any:
        """Token ids as they are: upstream would put a token in front of some."""
        if isinstance(prompt, Tensor):
            return prompt.squeeze().to(self.unembed_proj.device)  # type: ignore[attr-defined]
        return super().ensure_tokenized(prompt)  # type: ignore[misc]


class SharedTransformerLensModel(PreparedContext, TransformerLensReplacementModel):
    """circuit-tracer's TransformerLens replacement model over shared tensors."""

    @torch.no_grad()
    def next_logits(self, input_ids: Tensor) -> Tensor:
        """Logits after the last position of one prompt: a forward pass, and no transcoder."""
        return self(input_ids[None])[0, -1]

    def close(self) -> None:
        """Take off every hook; call it before the model is dropped."""
        self.reset_hooks(including_permanent=True)

    def __del__(self) -> None:
        # Upstream resets hooks here, which raises at interpreter exit; `close` does it in time.
        return


class _Layer(SingleLayerTranscoder):
    """One layer for circuit-tracer, whose matrices are the dictionary's, wherever they wait."""

    def __init__(self, dictionary: TranscoderDictionary) -> None:
        with torch.device("meta"):
            super().__init__(
                dictionary.d_model,
                dictionary.width,
                dictionary.gate,
                dictionary.layer,
                skip_connection=dictionary.W_skip is not None,
                transcoder_path="",
                lazy_encoder=True,
                lazy_decoder=True,
            )
        self.__dict__["_dictionary"] = dictionary
        small = {"b_enc": dictionary.b_enc, "b_dec": dictionary.b_dec, "W_skip": dictionary.W_skip}
        held = {name: value for name, value in small.items() if value is not None}
        self.load_state_dict(held, assign=True)

    def __getattr__(self, name: str) -> Any:
        if name in ("W_enc", "W_dec"):
            return self.__dict__["_dictionary"].matrices(name, None)
        return super().__getattr__(name)

    def _get_decoder_vectors(self, feat_ids: Any = None) -> Tensor:
        ids = None if feat_ids is None else torch.as_tensor(feat_ids)
        return self.__dict__["_dictionary"].matrices("W_dec", ids)


class _CrossLayer(CrossLayerTranscoder):
    """A cross-layer transcoder for circuit-tracer, whose matrices are the dictionaries'."""

    def __init__(self, transcoders: Transcoders) -> None:
        first, layers = transcoders[0], transcoders.layers
        skips = [one.W_skip.T for one in layers if one.W_skip is not None]
        with torch.device("meta"):
            super().__init__(
                len(layers),
                first.width,
                first.d_model,
                skip_connection=bool(skips),
                lazy_decoder=True,
                lazy_encoder=True,
                feature_input_hook=transcoders.feature_input_hook,
                feature_output_hook=transcoders.feature_output_hook,
                scan=transcoders.scan,
            )
        self._layers = layers
        small = {name: torch.stack([getattr(one, name) for one in layers]) for name in _BIASES}
        held = small | ({"W_skip": torch.stack(skips)} if skips else {})
        self.load_state_dict(held, assign=True)

    def _get_encoder_weights(self, layer_id: int | None = None) -> Tensor:
        if layer_id is None:
            return torch.stack([one.W_enc for one in self._layers])
        return self._layers[layer_id].W_enc

    def _get_decoder_vectors(self, layer_id: int, feat_ids: Any = None) -> Tensor:
        ids = None if feat_ids is None else torch.as_tensor(feat_ids)
        rows = self._layers[layer_id].matrices("W_dec", ids)
        return rows if rows.ndim == 3 else rows[:, None]

    def apply_activation_function(self, layer_id: int, features: Tensor) -> Tensor:
        return self._layers[layer_id].gate(features)

    def encode(self, x: Tensor) -> Tensor:
        return torch.stack([one.encode(x[i]) for i, one in enumerate(self._layers)])


_BIASES = ("b_enc", "b_dec")


def for_circuit_tracer(transcoders: Transcoders) -> TranscoderSet | CrossLayerTranscoder:
    """circuit-tracer's classes around a set's own tensors."""
    if transcoders.cross_layer:
        return _CrossLayer(transcoders)
    return TranscoderSet(
        {one.layer: _Layer(one) for one in transcoders.layers},
        transcoders.feature_input_hook,
        transcoders.feature_output_hook,
        transcoders.scan,
    )


def build_replacement(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    transcoders: Transcoders,
    *,
    backend: Literal["transformerlens", "nnsight"],
    max_context: int,
) -> Any:
    """A replacement model that computes with the tensors of `model`.

    Args:
        model: Frozen Hugging Face causal language model with eager attention.
        tokenizer: Its tokenizer.
        transcoders: On the model's device, in its precision.
        backend: circuit-tracer's.
        max_context: Longest prompt in tokens (TransformerLens keeps a mask of this size squared).

    Returns:
        An object with circuit-tracer's attribution interface, `prepared`, `next_logits`, `close`.

    Raises:
        RequestError: If the backend cannot express the architecture.
    """
    # A copy: TransformerLens gives its tokenizer tokens that it lacks, and takes a prompt's first
    # token for padding where that is on the left.
    with foreign_errors("the tokenizer cannot be copied"):
        tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = "right"
    theirs = for_circuit_tracer(transcoders)
    if backend == "nnsight":
        made = _build_nnsight(model, tokenizer, theirs)
    else:
        made = _build_transformerlens(model, tokenizer, theirs, max_context)
    # Features begin at position 1, whatever a directory is called: upstream has an exception by
    # name (gemma-3-*-it), which the rest of the house would not follow.
    made.zero_positions = slice(0, 1)
    return made


def _build_transformerlens(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, transcoders: Any, max_context: int
) -> SharedTransformerLensModel:
    from transformer_lens.pretrained import weight_conversions

    config = transformerlens_config(model, tokenizer, max_context)
    replacement = SharedTransformerLensModel(config, tokenizer)
    convert = getattr(weight_conversions, _CONVERTERS[Decoder.of(model).family.name])
    # Detached and assigned: parameters of its own that are views of the other model's memory.
    weights = {n: w.detach().to(config.device) for n, w in convert(model, config).items()}
    weights.setdefault("unembed.b_U", replacement.unembed.b_U.detach().zero_())
    absent, _ = replacement.load_state_dict(weights, strict=False, assign=True)
    parameters = {name for name, _ in replacement.named_parameters()}
    if lost := sorted(parameters.intersection(absent)):
        raise RequestError(f"transformerlens backend: no weights for {', '.join(lost[:4])}")
    blocks: Any = replacement.blocks
    for block in blocks:  # all the same, max_context squared bytes each
        block.attn.mask = blocks[0].attn.mask
    replacement._configure_replacement_model(transcoders)
    return replacement


def transformerlens_config(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, max_context: int
) -> Any:
    """TransformerLens's configuration of a model, read from the model and from no name.

    TransformerLens guesses a local directory's configuration from its path, wrongly; every field
    that changes a number is given here, RoPE base and llama3 scaling included.

    Raises:
        RequestError: If the model has a part that TransformerLens's model of its family has not.
    """
    from transformer_lens import HookedTransformerConfig

    decoder = Decoder.of(model)
    if lacks := _lens_lacks(decoder, max_context):
        raise RequestError(f"transformerlens backend: {lacks}; use --backend nnsight")
    hf, weight = decoder.config, next(model.parameters())
    special = _gpt2_fields(hf) if decoder.family.name == "GPT-2" else _rotary_fields(decoder)
    config = HookedTransformerConfig(
        n_layers=len(decoder.layers),
        d_model=decoder.d_model,
        d_head=decoder.d_head,
        n_heads=decoder.n_heads,
        d_mlp=decoder.d_mlp,
        d_vocab=decoder.d_vocab,
        n_ctx=min(hf.max_position_embeddings, max_context),
        original_architecture=type(model).__name__,
        model_name=hf.name_or_path.rstrip("/").rsplit("/", 1)[-1] or "model",
        default_prepend_bos=False,
        device=str(weight.device),
        dtype=weight.dtype,
        init_weights=False,
        **special,
    )
    config.tokenizer_name = tokenizer.name_or_path
    return config


def _gpt2_fields(hf: Any) -> dict[str, Any]:
    return {
        "eps": hf.layer_norm_epsilon,
        "act_fn": hf.activation_function,
        "normalization_type": "LN",
        "scale_attn_by_inverse_layer_idx": hf.scale_attn_by_inverse_layer_idx,
    }


def _rotary_fields(decoder: Decoder) -> dict[str, Any]:
    hf = decoder.config
    heads, kv_heads = hf.num_attention_heads, hf.num_key_value_heads
    # Of these conversions Llama's alone names the keys of full attention without an underscore.
    grouped = kv_heads != heads or decoder.family.name != "Llama"
    fields = {
        "n_key_value_heads": kv_heads if grouped else None,
        "eps": hf.rms_norm_eps,
        "act_fn": hf.hidden_act,
        "gated_mlp": True,
        "normalization_type": "RMS",
        "final_rms": True,
        "positional_embedding_type": "rotary",
        "rotary_dim": decoder.d_head,
        "rotary_base": hf.rope_theta,
        "rotary_adjacent_pairs": False,
    }
    scaling = getattr(hf, "rope_scaling", None) or {}
    if _rope_kind(hf) == "llama3":
        fields |= {
            "use_NTK_by_parts_rope": True,
            "NTK_by_parts_factor": scaling["factor"],
            "NTK_by_parts_low_freq_factor": scaling["low_freq_factor"],
            "NTK_by_parts_high_freq_factor": scaling["high_freq_factor"],
            "NTK_original_ctx_len": scaling["original_max_position_embeddings"],
        }
    return fields


def _rope_kind(hf: Any) -> str:
    scaling = getattr(hf, "rope_scaling", None) or {}
    return scaling.get("rope_type") or scaling.get("type") or "default"


def _lens_lacks(decoder: Decoder, max_context: int) -> str:
    """What TransformerLens cannot express of a model; empty where it can build it."""
    family, hf = decoder.family.name, decoder.config
    if family not in _CONVERTERS:
        return f"it builds {', '.join(_CONVERTERS)}, not {decoder.name}"
    if decoder.windowed_within(max_context):
        narrow = min(window for window in decoder.windows if window is not None)
        return f"attention reaches {narrow} tokens back, less than --max-context {max_context}"
    act = hf.activation_function if family == "GPT-2" else hf.hidden_act
    if act not in SUPPORTED_ACTIVATIONS:
        return f"the activation function {act!r} is not supported"
    if family == "GPT-2":
        plain = hf.scale_attn_weights and not hf.reorder_and_upcast_attn
        return "" if plain else "it knows no GPT-2 with unscaled or upcast attention"
    if _rope_kind(hf) not in ("default", "llama3"):
        return f"RoPE scaling {_rope_kind(hf)!r} is not supported"
    attention = decoder.layers[0].attention
    biased = [name for name in ("q_proj", "o_proj") if _has_bias(getattr(attention, name))]
    expected = ["q_proj"] if family == "Qwen2" else []
    if biased != expected or _has_bias(decoder.layers[0].mlp.down_proj):
        return f"{family} models with other biases than usual are not supported"
    return ""


def _has_bias(linear: Any) -> bool:
    return getattr(linear, "bias", None) is not None


def _build_nnsight(model: nn.Module, tokenizer: PreTrainedTokenizerBase, transcoders: Any) -> Any:
    from circuit_tracer.replacement_model.replacement_model_nnsight import (
        NNSightReplacementModel,
    )
    from nnsight import save

    class SharedNNSightModel(PreparedContext, NNSightReplacementModel):
        @torch.no_grad()
        def next_logits(self, input_ids: Tensor) -> Tensor:
            """Logits after the last position of one prompt: a forward pass, and no transcoder."""
            with self.trace(input_ids):
                logits = save(self.output.logits)
            return logits[0, -1]

        def close(self) -> None:
            """Nothing to take off: nnsight's hooks live in its trace contexts."""

    # Modules of its own: nnsight rewrites the forward methods of the modules it traces.
    own = text_model(sharing_copy(model))
    decoder = Decoder.of(own)
    own.config.architectures = [type(own).__name__]
    own.config.head_dim = decoder.d_head  # which circuit-tracer reads, and Qwen2 lacks
    with _mapped(type(own).__name__, decoder.family, transcoders):
        replacement = SharedNNSightModel(own, tokenizer=tokenizer, dispatch=True)
        replacement._hf_config = own.config
        replacement._configure_replacement_model(transcoders)
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    # No module: nnsight rewrites the forward of every one that it is given, and copies of the real
    # model would embed with the weights of this one.
    replacement._embedding = lambda ids: embedding(ids)
    return replacement


def text_model(hf: Any) -> Any:
    """The causal language model in a multimodal one, around the same modules; others as they are.

    Args:
        hf: A copy: its modules are used.
    """
    config = hf.config.get_text_config()
    if config is hf.config:
        return hf
    with torch.device("meta"):
        text = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    text.set_submodule(Decoder.of(text).path, Decoder.of(hf).model)
    text.lm_head = hf.lm_head
    return text.eval()


@contextlib.contextmanager
def _mapped(architecture: str, family: Family, transcoders: Any) -> Iterator[None]:
    """circuit-tracer's table with a family's hook points in it, for as long as a model is made.

    Raises:
        RequestError: If it has nothing like this family, or lacks the transcoders' hook points.
    """
    registry = tl_nnsight_mapping._REGISTRY
    before = registry.get(architecture)
    known = before or (registry["LlamaForCausalLM"] if family.name in _LIKE_LLAMA else None)
    if known is None:
        raise RequestError(
            f"nnsight backend: circuit-tracer has no map of {architecture}; use --edges full, "
            "which needs none"
        )
    norm = f"model.layers[{{layer}}].{family.mlp_norm}"
    inside = {"rms": "hidden_states_to_1", "rms_plus_one": "self__norm_0"}
    mlp = f"model.layers[{{layer}}].{family.mlp}"
    behind = mlp if family.behind_mlp is None else f"model.layers[{{layer}}].{family.behind_mlp}"
    places: dict[str, tuple[str, Literal["input", "output"]]] = {
        "hook_resid_mid": (norm, "input"),
        "mlp.hook_in": (norm, "output"),
        "mlp.hook_out": (mlp, "output"),
        "hook_mlp_out": (behind, "output"),
    }
    if family.norm in inside and not family.experts:
        places["ln2.hook_normalized"] = (f"{norm}.source.{inside[family.norm]}", "output")
    places |= known.feature_hook_mapping
    for hook in (transcoders.feature_input_hook, transcoders.feature_output_hook):
        if hook not in places:
            raise RequestError(
                f"nnsight backend: {hook!r} cannot be traced in {architecture}; use --edges full"
            )
    registry[architecture] = dataclasses.replace(
        known, model_architecture=architecture, feature_hook_mapping=places
    )
    try:
        yield
    finally:
        registry.pop(architecture)
        if before is not None:
            registry[architecture] = before
