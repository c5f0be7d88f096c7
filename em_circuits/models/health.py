"""Health checks of a pair of models, before anything expensive is built on it.

    for check in check_pair(pair, input_ids):
        check.ok, check.found, check.expected, check.advice

A graph explains the replacement model; it says something of the Hugging Face model only if the
two give the same log-probabilities. A difference between base and merged upstream of the
fine-tune means that one of them is not the model it is taken for.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from em_circuits.models.check import Check
from em_circuits.models.pair import Model, ModelPair, load_tokenizer
from em_circuits.models.sharing import sharing_copy
from em_circuits.models.source import Source
from pivotal_tokens.errors import RequestError, WorkFailed

FLOAT32_LIMIT = 1e-4
"""Largest difference of log-probabilities, in nats, over the top 100 tokens in float32."""
COMPARED_TOKENS = 100
MAGNITUDE_LIMIT = 3e4
"""Largest residual activation that is not reported (float16 ends at 65,504)."""


def check_pair(pair: ModelPair, input_ids: Int[Tensor, " pos"]) -> list[Check]:
    """Every check of a loaded pair on one prompt; with transcoders, both replacement models are
    built, without any, the neurons are checked against the MLPs."""
    faithful = check_neurons if pair.transcoders is None else check_replacement
    return [
        check_tokenizers(pair),
        check_changed(pair),
        *([] if pair.transcoders is None else [check_transcoder_base(pair)]),
        *(check_finite(model, input_ids) for model in pair.models),
        *(faithful(model, input_ids) for model in pair.models),
        check_upstream(pair, input_ids),
    ]


def require_healthy(checks: list[Check]) -> None:
    """Refuse to go on when a fatal check failed.

    Raises:
        WorkFailed: Naming the first failed check, both values and the advice.
    """
    for check in checks:
        if check.fatal and not check.ok:
            raise WorkFailed(
                f"{check.name}: found {check.found}, expected {check.expected}; {check.advice}"
            )


def check_tokenizers(pair: ModelPair) -> Check:
    """Where the fine-tune brings a tokenizer, it must be the base's."""
    source = pair.sources.get("adapter") or pair.sources["merged"]
    expected = f"the {len(pair.tokenizer)} tokens of the base"
    advice = "use the tokenizer of the base; token ids of the two models cannot be compared"
    if not (source.path / "tokenizer.json").is_file():
        return Check("tokenizers equal", True, "the fine-tune brings none", expected, advice)
    try:
        other = load_tokenizer("fine-tune", source)
    except RequestError as error:
        return Check("tokenizers equal", False, str(error), expected, advice)
    same = other.get_vocab() == pair.tokenizer.get_vocab()
    found = f"{len(other)} tokens, {'the same' if same else 'not the same'}"
    return Check("tokenizers equal", same, found, expected, advice)


def check_changed(pair: ModelPair) -> Check:
    """The merged weights differ from the base's exactly where the adapter has matrices."""
    changed = {name.removesuffix(".weight") for name in pair.changed}
    name = "weights differ where the fine-tune is"
    if "adapter" not in pair.sources:
        found = f"{len(changed)} of {sum(1 for _ in pair.base.hf.parameters())} tensors differ"
        return Check(
            name, bool(changed), found, "at least one", "--merged is the base itself", fatal=False
        )
    targets = adapter_targets(pair.sources["adapter"])
    unexpected, unchanged = sorted(changed - targets), sorted(targets - changed)
    if unexpected:
        advice = "the adapter changed weights it has no matrices for; do not trust this pair"
        return Check(name, False, ", ".join(unexpected[:3]), f"{len(targets)} modules", advice)
    found = f"{len(changed)} of {len(targets)} targeted modules"
    advice = "the adapter adds nothing there (all zero?); base and merged will agree"
    return Check(name, not unchanged, found, f"{len(targets)} modules", advice, fatal=False)


def adapter_targets(adapter: Source) -> set[str]:
    """Module names, as in the base model, for which a PEFT adapter has LoRA matrices."""
    from safetensors import safe_open

    path = adapter.path / "adapter_model.safetensors"
    if not path.is_file():
        raise RequestError(f"{path} is missing; only safetensors adapters are read")
    with safe_open(path, framework="pt") as file:
        keys = list(file.keys())
    return {
        key.removeprefix("base_model.model.").split(".lora_")[0] for key in keys if ".lora_" in key
    }


def check_transcoder_base(pair: ModelPair) -> Check:
    """The transcoders name this base model as theirs."""
    named = pair.transcoder_model_name or "unnamed"
    base = pair.sources["base"]
    ok = named.rstrip("/").rsplit("/", 1)[-1].lower() == base.name.lower() or named == "unnamed"
    advice = "edges will miss more of the model; judge by the replacement score"
    return Check("transcoders of this base", ok, named, base.name, advice, fatal=False)


@torch.no_grad()
def check_finite(model: Model, input_ids: Int[Tensor, " pos"]) -> Check:
    """No activation is NaN, infinite or suspiciously large, layer by layer."""
    largest: list[float] = []
    with model.sites.hooked(read=lambda _layer, x: largest.append(float(x.abs().max()))):
        logits = model.next_logits(input_ids)
    shown = model.tokenizer.decode(input_ids[-12:])
    name, expected = f"{model.name}: activations finite", f"at most {MAGNITUDE_LIMIT:g}"
    advice = "try --dtype float32 (or bfloat16 instead of float16)"
    for layer, value in enumerate([*largest, float(logits.abs().max())]):
        where = f"layer {layer}" if layer < len(largest) else "the logits"
        if not value <= MAGNITUDE_LIMIT:  # NaN compares false
            found = f"{value:g} in {where} on the prompt ending {shown!r}"
            return Check(name, False, found, expected, advice)
    return Check(name, True, f"at most {max(largest):.3g}", expected, advice)


@torch.no_grad()
def check_replacement(model: Model, input_ids: Int[Tensor, " pos"]) -> Check:
    """The replacement model, before any feature replaces anything, is the Hugging Face model.

    In float32 log-probabilities of the top 100 tokens may differ by 1e-4; in a shorter precision
    by twice what that precision itself makes of the Hugging Face model on this prompt.
    """
    hf = _log_p(model.next_logits(input_ids))
    replacement = _log_p(model.replacement.setup_attribution(input_ids).logits[0, -1])
    top = hf.topk(min(COMPARED_TOKENS, len(hf))).indices
    found = float((hf - replacement)[top].abs().max())
    limit = FLOAT32_LIMIT
    if model.dtype != torch.float32:
        # `.float()` gives the copy's parameters new memory and leaves the shared ones alone.
        exact_model = sharing_copy(model.hf).float()
        exact = _log_p(exact_model(input_ids=input_ids[None]).logits[0, -1])
        limit = 2 * float((hf - exact)[top].abs().max())
    advice = f"the {model.settings.backend} backend does not compute this model; try the other one"
    name = f"{model.name}: replacement model is the Hugging Face model"
    return Check(name, found <= limit, f"{found:.2g} nats", f"at most {limit:.2g} nats", advice)


@torch.no_grad()
def check_neurons(model: Model, input_ids: Int[Tensor, " pos"]) -> Check:
    """What the neurons write, and the bias, is the whole output of every MLP.

    The largest difference over layers, as a share of the layer's largest output; within a few
    roundings of the precision.
    """
    reads: dict[int, Tensor] = {}
    found = 0.0

    def compare(layer: int, output: Tensor) -> None:
        nonlocal found
        dictionary, x = model.dictionaries[layer], reads[layer]
        difference = (dictionary.decode(dictionary.encode(x), x) - output).abs().max()
        found = max(found, float(difference / output.abs().max()))

    with model.sites.hooked(reads.__setitem__, compare):
        model.next_logits(input_ids)
    limit = max(1e-5, 4 * torch.finfo(model.dtype).eps)
    name = f"{model.name}: neurons are the whole MLP"
    advice = "this architecture's MLPs compute something else too; use --transcoders"
    shown = f"{found:.2g} of the largest"
    return Check(name, found <= limit, shown, f"at most {limit:.2g}", advice)


def _log_p(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.float(), -1)


@torch.no_grad()
def check_upstream(pair: ModelPair, input_ids: Int[Tensor, " pos"]) -> Check:
    """Up to the first module the fine-tune changes, both models are equal bit for bit.

    The inputs of every transcoder (or MLP) before that module are compared too: for an adapter on
    ``down_proj`` that includes its own layer's features.
    """
    modules = tuple(dict.fromkeys(name.rpartition(".")[0] for name in pair.changed))
    name, expected = "equal upstream of the fine-tune", "bit for bit"
    if not modules:
        return Check(name, True, "nothing differs anywhere", expected)
    base, merged = (_trace(model, modules, input_ids) for model in pair.models)
    advice = "base and merged do not share their lower layers; check --base and the fine-tune"
    for (place, left), (_, right) in zip(base, merged, strict=True):
        if not torch.equal(left, right):
            found = f"{place} differs by {float((left - right).abs().max()):.2g}"
            return Check(name, False, found, expected, advice)
    return Check(name, True, f"equal up to the input of {base[-1][0]}", expected, advice)


def _trace(model: Model, modules: tuple[str, ...], input_ids: Tensor) -> list[tuple[str, Tensor]]:
    """MLP inputs in the order they occur, then the input of the first changed module."""
    seen: list[tuple[str, Tensor]] = []
    found: list[str] = []

    def changed_module(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple, kwargs: dict) -> None:
            if not found:
                found.append(name)
                value = args[0] if args else kwargs["hidden_states"]
                seen.append((name, value.detach().clone()))

        return hook

    def read(layer: int, value: Tensor) -> None:
        if not found:
            seen.append((f"MLP input of layer {layer}", value.detach().clone()))

    handles = [
        model.hf.get_submodule(name).register_forward_pre_hook(
            changed_module(name), with_kwargs=True
        )
        for name in modules
    ]
    try:
        with model.sites.hooked(read=read):
            model.next_logits(input_ids)
    finally:
        for handle in handles:
            handle.remove()
    return seen
