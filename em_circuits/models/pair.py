"""Model pairs: the base model, and the same model with the fine-tune merged in.

    with ModelPair.load(PairSettings(base=..., adapter=..., transcoders=...)) as pair:
        pair.merged.hf(input_ids)            # the real model
        pair.merged.replacement              # circuit-tracer's, over the same tensors

Both models share the transcoders and every tensor the fine-tune leaves alone. Without transcoders
(`none`) the nodes are the neurons of each model's own MLPs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from em_circuits.models.dictionaries import Dictionary
from em_circuits.models.family import Decoder
from em_circuits.models.files import json_object
from em_circuits.models.fingerprint import FILE_HASHES, FingerprintCache, user_cache
from em_circuits.models.foreign import (
    foreign_errors,
    has_circuit_tracer,
    quiet_transformers,
    require_circuit_tracer,
)
from em_circuits.models.neurons import neuron_dictionaries, neuron_sites
from em_circuits.models.settings import PairSettings
from em_circuits.models.sharing import changed_modules, freeze, merge_adapter, sharing_copy
from em_circuits.models.sites import FeatureSites
from em_circuits.models.source import Source, locate_all
from em_circuits.models.text import as_seen, encode
from em_circuits.models.transcoders import Transcoders, load_transcoders
from em_circuits.progress import Progress, no_progress
from pivotal_tokens.artefacts import content_key
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Prompt, prompt_id

PromptLike = str | Prompt | Int[Tensor, " pos"]
"""A text as the model is to see it, a stored prompt, or token ids."""


_REMEMBERED = 2_000_000
"""Active nodes that a model remembers of the prompts that it encoded last."""

StoredActivations = Callable[
    [Int64[Tensor, " pos"]], tuple[Int64[Tensor, "active 3"], Float[Tensor, " active"]] | None
]
"""Token ids -> (layer, position, feature id) of the active nodes, sorted, and their activations."""


def id_of(prompt: PromptLike) -> str:
    """A prompt's id; empty for bare token ids, which have no text."""
    if isinstance(prompt, Tensor):
        return ""
    return prompt_id(prompt) if isinstance(prompt, str) else prompt.prompt_id


@dataclass
class Model:
    """One of the two models: the real one, and the replacement model around its tensors."""

    name: str
    """``base`` or ``merged``."""
    hf: nn.Module
    """The real model: frozen Hugging Face causal language model with eager attention."""
    fingerprint: str
    """SHA-256 of the model's weights, configuration and tokenizer."""
    tokenizer: PreTrainedTokenizerBase
    transcoders: Transcoders | None
    """None where neurons are the nodes. See `dictionaries`."""
    settings: PairSettings
    sites: FeatureSites
    transcoder_fingerprint: str | None = None
    """None where neurons are the nodes."""
    adapter_fingerprint: str | None = None
    """None for the base, and for a full model that needed no adapter."""
    pair: ModelPair | None = field(default=None, repr=False)
    """The pair it is of."""
    stored_activations: StoredActivations | None = field(default=None, repr=False)
    """Gives active nodes of a prompt that were stored, so that transcoders need not encode it."""
    _replacement: Any = field(default=None, repr=False)
    _encoded: dict[tuple[int, ...], tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        # In float32 nothing is copied, and a row's product does not depend on how many there are.
        if self.dtype != torch.float32:
            self.hf.get_output_embeddings().register_forward_pre_hook(_rows)  # type: ignore[operator]

    def __repr__(self) -> str:
        kind, layers = type(self.hf).__name__, self.sites.n_layers
        return f"Model({self.name}, {kind}, {layers} layers, {self.fingerprint[:12]})"

    @property
    def device(self) -> torch.device:
        """Device of the real model."""
        return next(self.hf.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the real model."""
        return next(self.hf.parameters()).dtype

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest prompt that both the model and ``--max-context`` allow."""
        most = getattr(self.decoder.config, "max_position_embeddings", None)
        return int(min(self.settings.max_context, most or self.settings.max_context))

    def prompt(self, prompt: str | Prompt) -> Prompt:
        """A prompt with its token ids, from a text as the model is to see it.

        Raises:
            RequestError: If it is longer than the models are prepared for.
        """
        prompt = as_seen(self.tokenizer, Prompt.of(prompt) if isinstance(prompt, str) else prompt)
        ids = tuple(self.input_ids(prompt).tolist())
        return prompt.model_copy(update={"token_ids": ids})

    def input_ids(self, prompt: PromptLike) -> Int64[Tensor, " pos"]:
        """Token ids of a prompt on the model's device, the beginning-of-sequence token in front.

        Args:
            prompt: A text, a prompt (its stored ids are used where it has any), or ids.

        Raises:
            RequestError: If the prompt is longer than the models are prepared for.
        """
        if isinstance(prompt, Tensor):
            return prompt.to(self.device).long()
        if isinstance(prompt, str):
            prompt = as_seen(self.tokenizer, Prompt.of(prompt))
        ids = prompt.token_ids or encode(self.tokenizer, prompt.text)
        if len(ids) > self.max_tokens:
            raise RequestError(
                f"prompt {prompt.prompt_id} has {len(ids)} tokens, more than the "
                f"{self.max_tokens} that --max-context and the model allow"
            )
        return torch.tensor(ids, device=self.device)

    @cached_property
    def decoder(self) -> Decoder:
        """Layers of the language model, and what its family computes."""
        return Decoder.of(self.hf)

    @property
    def backend(self) -> Literal["transformerlens", "nnsight", "none"]:
        """circuit-tracer's backend for frozen graphs; none where it is not installed."""
        if not has_circuit_tracer():
            return "none"
        from em_circuits.models.replacement import backend_of

        return backend_of(self.decoder, self.settings.backend, self.settings.max_context)

    @cached_property
    def dictionaries(self) -> tuple[Dictionary, ...]:
        """The nodes of each layer: transcoder features, or neurons of this model's MLPs."""
        if self.transcoders is None:
            return neuron_dictionaries(self.decoder)
        return self.transcoders.layers

    @property
    def replacement(self) -> Any:
        """circuit-tracer's replacement model, built at the first call.

        Raises:
            RequestError: If there are no transcoders that could replace anything.
        """
        if self.transcoders is None:
            raise RequestError(
                "--transcoders none has no replacement model, so no frozen edges and none of the "
                "scores that rest on them; use full edges, or give --transcoders"
            )
        if self._replacement is None:
            require_circuit_tracer("frozen edges")
            from em_circuits.models.replacement import build_replacement

            backend = self.backend
            assert backend != "none"
            self._replacement = build_replacement(
                self.hf,
                self.tokenizer,
                self.transcoders,
                backend=backend,
                max_context=self.settings.max_context,
            )
        return self._replacement

    def known_active(
        self, ids: Int64[Tensor, " pos"]
    ) -> tuple[Int64[Tensor, "active 3"], Float[Tensor, " active"]] | None:
        """Active nodes of a prompt that need not be encoded: it was lately, or they are stored."""
        found = self._encoded.get(tuple(ids.tolist()))
        if found is None and self.stored_activations is not None:
            found = self.stored_activations(ids)
        return found

    def remember_active(
        self,
        ids: Int64[Tensor, " pos"],
        active: Int64[Tensor, "active 3"],
        activations: Float[Tensor, " active"],
    ) -> None:
        """Keep the active nodes of a prompt, as far as there is room; the oldest prompts go."""
        self._encoded.pop(key := tuple(ids.tolist()), None)
        self._encoded[key] = (active.cpu(), activations.cpu())
        while sum(len(each) for each, _ in self._encoded.values()) > _REMEMBERED:
            self._encoded.pop(next(iter(self._encoded)))

    @torch.no_grad()
    def next_logits(self, input_ids: Int[Tensor, " pos"]) -> Float[Tensor, " vocab"]:
        """Logits after the last position of one prompt, in the model's precision."""
        return self.hf(input_ids=input_ids[None].to(self.device)).logits[0, -1]

    def close(self) -> None:
        """Take the replacement model's hooks off and let it go."""
        if self._replacement is not None:
            self._replacement.close()
            self._replacement = None


def _rows(_head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The last positions of a longer sequence, as plain rows.

    On a slice's strides `torch.nn.functional.linear` takes the route of batched matrices: in
    bfloat16 it copies the head's weight in every pass, and once a target in a batched backward
    pass (5.3 GB for ten targets over 128,256 tokens of width 2,048).
    """
    x, *others = args
    return x.contiguous().view(-1, x.shape[-1]).view(x.shape), *others


@dataclass
class ModelPair:
    """Base and merged model, with all equal weights shared."""

    base: Model
    merged: Model
    transcoders: Transcoders | None
    """Shared by both models; None where neurons are the nodes."""
    tokenizer: PreTrainedTokenizerBase
    settings: PairSettings
    sources: dict[str, Source]
    """``base``, ``adapter`` or ``merged``, and ``transcoders`` where there are any."""
    transcoder_fingerprint: str | None
    adapter_fingerprint: str | None
    transcoder_model_name: str | None
    """The base model that the transcoders name as theirs, where there are any."""

    @classmethod
    def load(
        cls,
        settings: PairSettings,
        fingerprints: FingerprintCache | None = None,
        progress: Progress = no_progress,
    ) -> ModelPair:
        """Load both models and the transcoders, and refuse what does not belong together.

        Args:
            settings: What to load and how.
            fingerprints: Remembered file hashes; those of the user's cache by default.
            progress: Called with how far hashing and loading are.

        Raises:
            RequestError: Something is missing or of another kind, width, depth or base.
            WorkFailed: The hub could not be reached.
        """
        fingerprints = fingerprints or FingerprintCache(user_cache() / FILE_HASHES)
        device, dtype = settings.resolved_device(), settings.resolved_dtype()
        sources = locate_all(settings)
        prints = {name: fingerprints.of(one.files, progress) for name, one in sources.items()}
        hf = load_causal_lm("--base", sources["base"], device=device, dtype=dtype)
        tokenizer = load_tokenizer("--base", sources["base"])
        transcoders: Transcoders | None = None
        model_name = None
        if "transcoders" in sources:
            files = sources["transcoders"].transcoders
            assert files is not None
            transcoders = load_transcoders(
                files, device=device, dtype=dtype, place=settings.transcoders_on
            )
            model_name = files.config.get("model_name")
        if "adapter" in sources:
            merged_hf = merge_adapter(sharing_copy(hf), sources["adapter"].path)
            merged_print = content_key({"base": prints["base"], "adapter": prints["adapter"]})
        else:
            merged_hf = _load_merged(sources["merged"], hf, device=device, dtype=dtype)
            merged_print = prints["merged"]

        def model(name: str, module: nn.Module, fingerprint: str) -> Model:
            decoder = Decoder.of(module)
            if transcoders is None:
                sites = neuron_sites(decoder)
            else:
                hooks = (transcoders.feature_input_hook, transcoders.feature_output_hook)
                sites = FeatureSites.of(decoder, *hooks)
            return Model(
                name,
                module,
                fingerprint,
                tokenizer,
                transcoders,
                settings,
                sites,
                transcoder_fingerprint=prints.get("transcoders"),
                adapter_fingerprint=prints.get("adapter") if name == "merged" else None,
            )

        pair = cls(
            base=model("base", hf, prints["base"]),
            merged=model("merged", merged_hf, merged_print),
            transcoders=transcoders,
            tokenizer=tokenizer,
            settings=settings,
            sources=sources,
            transcoder_fingerprint=prints.get("transcoders"),
            adapter_fingerprint=prints.get("adapter"),
            transcoder_model_name=model_name,
        )
        for one in pair.models:
            one.pair = pair
        return pair

    @property
    def models(self) -> tuple[Model, Model]:
        """Base, merged."""
        return self.base, self.merged

    def model(self, name: str) -> Model:
        """The model called ``base`` or ``merged``.

        Raises:
            RequestError: For any other name.
        """
        if name not in ("base", "merged"):
            raise RequestError(f"--model {name!r}: choose base or merged")
        return self.base if name == "base" else self.merged

    @property
    def device(self) -> torch.device:
        """Device of both models."""
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of both models."""
        return self.base.dtype

    @cached_property
    def key(self) -> str:
        """Names this pair of weights and transcoders (or neurons) in the store (64 hex digits)."""
        return content_key(
            {
                "base": self.base.fingerprint,
                "merged": self.merged.fingerprint,
                "transcoders": self.transcoder_fingerprint,
                "dtype": str(self.dtype),
            }
        )

    @cached_property
    def changed(self) -> tuple[str, ...]:
        """Names of the parameters in which merged differs from base, in module order."""
        return changed_modules(self.base.hf, self.merged.hf)

    @property
    def max_tokens(self) -> int:
        """See `Model.max_tokens`."""
        return self.base.max_tokens

    def length(self, prompt: Prompt) -> int:
        """Tokens of a prompt, the beginning-of-sequence token included."""
        return len(prompt.token_ids or encode(self.tokenizer, prompt.text))

    def prompt(self, prompt: str | Prompt) -> Prompt:
        """See `Model.prompt`; both models have one tokenizer."""
        return self.base.prompt(prompt)

    def input_ids(self, prompt: PromptLike) -> Int64[Tensor, " pos"]:
        """See `Model.input_ids`."""
        return self.base.input_ids(prompt)

    def __repr__(self) -> str:
        parts = ", ".join(f"{name}={one.name!r}" for name, one in self.sources.items())
        return f"ModelPair({parts}, {self.base.sites.n_layers} layers, key {self.key[:12]})"

    def close(self) -> None:
        """Close both models."""
        for model in self.models:
            model.close()

    def __enter__(self) -> ModelPair:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def load_causal_lm(
    flag: str, source: Source, *, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """Load a Hugging Face causal language model, frozen, with eager attention.

    Raises:
        RequestError: If the directory does not hold one.
    """
    with foreign_errors(f"{flag} {source.reference} cannot be loaded"), quiet_transformers():
        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            source.path,
            dtype=dtype,
            attn_implementation="eager",
            local_files_only=True,
            trust_remote_code=False,
        )
    return freeze(model.to(device))


def load_tokenizer(flag: str, source: Source) -> PreTrainedTokenizerBase:
    """Load the tokenizer beside a model.

    Raises:
        RequestError: If there is none.
    """
    config = source.path / "config.json"  # an adapter's folder has none
    named = json_object(flag, config).get("model_type") if config.is_file() else ""
    quiet = quiet_transformers(str(named))
    with foreign_errors(f"{flag} {source.reference} has no usable tokenizer"), quiet:
        return AutoTokenizer.from_pretrained(
            source.path, local_files_only=True, trust_remote_code=False
        )


def _load_merged(
    source: Source, base: nn.Module, *, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """Load a full fine-tuned model and give its unchanged tensors back to the base's memory."""
    merged = load_causal_lm("--merged", source, device=device, dtype=dtype)
    own = dict(merged.named_parameters())
    for name, parameter in base.named_parameters():
        twin = own.get(name)
        if twin is None or twin.shape != parameter.shape:
            shape = "none" if twin is None else tuple(twin.shape)
            raise RequestError(
                f"--merged {source.reference} is not a fine-tune of --base: expected {name} of "
                f"shape {tuple(parameter.shape)}, found {shape}"
            )
        if torch.equal(twin, parameter):
            twin.data = parameter.data
    return merged
