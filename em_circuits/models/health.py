"""Health checks of a pair of models, before anything expensive is built on it.

    for check in check_pair(pair, input_ids):
        check.ok, check.found, check.expected, check.advice

A graph explains the replacement model; it says something of the Hugging Face model only if the
two give the same log-probabilities. A difference between base and merged upstream of the
fine-tune means that one of them is not the model it is taken for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from statistics import median
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from em_circuits.models.check import FINITE, TRANSCODER_BASE, Check, SiteSize
from em_circuits.models.family import Decoder
from em_circuits.models.files import ADAPTER_WEIGHTS, tensor_shapes
from em_circuits.models.pair import Model, ModelPair, load_tokenizer
from em_circuits.models.sharing import model_name, sharing_copy, tied_to, unmerged_adapter
from em_circuits.models.source import Source
from em_circuits.models.transcoders import not_finite
from pivotal_tokens.errors import RequestError, WorkFailed

FLOAT32_LIMIT = 1e-4
"""Largest difference of log-probabilities, in nats, over the top 100 tokens in float32."""
COMPARED_TOKENS = 100
OUTLIER = 10
"""Times the median of its layer from which a magnitude is called an outlier."""
MAGNITUDE_LIMIT = 3e4
"""Largest residual activation that is not reported (float16 ends at 65,504)."""


def check_pair(
    pair: ModelPair, input_ids: Int[Tensor, " pos"], *, whole: bool = False
) -> Iterator[Check]:
    """Every check of a loaded pair on one prompt, each when it is done.

    With transcoders, both replacement models are built and run forward, without any, the neurons
    are checked against the MLPs; no attribution is set up.

    Args:
        whole: Read all numbers of transcoders that wait on disk, too, last: it takes minutes.
    """
    faithful = check_neurons if pair.transcoders is None else check_replacement
    yield check_tokenizers(pair)
    yield check_changed(pair)
    if "adapter" in pair.sources:
        yield check_merge(pair, input_ids)
    if pair.transcoders is not None:
        yield check_transcoder_base(pair)
        if pair.settings.transcoders_on != "disk":
            yield check_transcoder_weights(pair)
    for model in pair.models:
        yield check_finite(model, input_ids)
    for model in pair.models:
        yield faithful(model, input_ids)
    yield check_upstream(pair, input_ids)
    if whole and pair.transcoders is not None and pair.settings.transcoders_on == "disk":
        yield check_transcoder_weights(pair)


def require_healthy(checks: Iterable[Check]) -> None:
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
    """Where the fine-tune brings a tokenizer, every id that both know is the same token."""
    source = pair.sources.get("adapter") or pair.sources["merged"]
    name, expected = "tokenizers equal", f"the {len(pair.tokenizer)} tokens of the base"
    advice = "use the tokenizer of the base; token ids of the two models cannot be compared"
    if not source.files.keys() & {"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"}:
        return Check(name, True, "the fine-tune brings none", expected, advice)
    try:
        other = load_tokenizer("fine-tune", source)
    except RequestError as error:
        return Check(name, False, str(error), expected, advice)
    ours, theirs = _by_id(pair.tokenizer), _by_id(other)
    for token_id in sorted(ours.keys() & theirs.keys()):
        if ours[token_id] != theirs[token_id]:
            found = f"id {token_id} is {theirs[token_id]!r}, in the base {ours[token_id]!r}"
            return Check(name, False, found, expected, advice)
    found = f"{len(theirs)} tokens, those of the base"
    for word, more in (
        ("more", theirs.keys() - ours.keys()),
        ("fewer", ours.keys() - theirs.keys()),
    ):
        if more:
            shown = ", ".join(repr((theirs | ours)[i]) for i in sorted(more)[:3])
            found += f" and {len(more)} {word}, never used: {shown}"
    return Check(name, True, found, expected, advice)


def _by_id(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {token_id: token for token, token_id in tokenizer.get_vocab().items()}


def check_changed(pair: ModelPair) -> Check:
    """The merged weights differ from the base's exactly where the adapter has something to add."""
    changed = set(pair.changed)
    name = "weights differ where the fine-tune is"
    if "adapter" not in pair.sources:
        found = f"{len(changed)} of {len(pair.base.hf.state_dict())} tensors differ"
        return Check(
            name, bool(changed), found, "at least one", "--merged is the base itself", fatal=False
        )
    targets = adapter_targets(pair.sources["adapter"], pair.base.hf)
    expected = f"{len(targets)} tensors"
    unexpected = sorted(changed - tied_to(pair.merged.hf, targets))
    if unexpected:
        advice = "the adapter changed weights it has no matrices for; do not trust this pair"
        shown = ", ".join(one.removesuffix(".weight") for one in unexpected[:3])
        return Check(name, False, shown, expected, advice)
    found = f"{len(changed & targets.keys())} of {len(targets)} targeted tensors"
    whole = sorted(name for name, kept in targets.items() if kept)
    if whole:
        shown = ", ".join(one.removesuffix(".weight") for one in whole[:3])
        found += f"; trained whole: {shown}{' ...' if len(whole) > 3 else ''}"
    advice = "the adapter adds nothing there (all zero?); base and merged will agree"
    return Check(name, targets.keys() <= changed, found, expected, advice, fatal=False)


def adapter_targets(adapter: Source, model: nn.Module) -> dict[str, bool]:
    """Names of the base model's tensors that an adapter's file changes, and whether it holds them
    whole (`modules_to_save`, biases) instead of something that is added or multiplied.

    Every tensor of the file counts, whatever kind of adapter it is of: one that is called like a
    tensor of the model stands for it, any other for the weight of the module it is under.
    """
    tensors = model.state_dict()
    modules = {name for name, _ in model.named_modules()}
    targets: dict[str, bool] = {}
    for key in tensor_shapes("--adapter", adapter.files[ADAPTER_WEIGHTS]):
        name = model_name(key)
        if name in tensors:
            targets[name] = True
            continue
        module = name
        while module and module not in modules:
            module = module.rpartition(".")[0]
        of_bias = f"{module}.bias" if name.endswith("lora_B.bias") else f"{module}.weight"
        direct = [one for one in tensors if one.rpartition(".")[0] == module]
        # Experts are parameters without a module of their own.
        found = [of_bias] if of_bias in tensors else direct if module else []
        targets |= dict.fromkeys(found, False)
    return targets


@torch.no_grad()
def check_merge(pair: ModelPair, input_ids: Int[Tensor, " pos"]) -> Check:
    """The merged model computes what PEFT does with the adapter beside the base's weights.

    They differ where a head is tied to embeddings that the adapter changes: merging changes both,
    PEFT the embeddings alone. Limits as in `check_replacement`.
    """
    adapter = pair.sources["adapter"]
    unmerged = unmerged_adapter(pair.base.hf, adapter.path)
    theirs = _log_p(unmerged(input_ids=input_ids[None].to(pair.device)).logits[0, -1])
    found, limit = _difference(pair.merged, input_ids, theirs)
    targets = adapter_targets(adapter, pair.base.hf)
    tied = sorted(tied_to(pair.merged.hf, targets) - targets.keys())
    advice = (
        "merging this adapter does not give what it was trained to; is it of this peft version?"
    )
    if tied:
        advice = (
            f"the adapter changes embeddings that are tied to {tied[0].removesuffix('.weight')}: "
            "merging changes that too, un-merged it stays the base's; every figure here is of the "
            "merged model"
        )
    name, expected = "merged is the adapter on the base", f"at most {limit:.2g} nats"
    fatal = not tied and pair.dtype == torch.float32
    return Check(name, found <= limit, f"{found:.2g} nats", expected, advice, fatal=fatal)


def check_transcoder_base(pair: ModelPair) -> Check:
    """The transcoders name this base model as theirs."""
    return named_base(pair.transcoder_model_name, pair.sources["base"].name)


def named_base(named: str | None, base: str) -> Check:
    """The base model that a set of transcoders names is the one that is meant."""
    named = named or "unnamed"
    ok = named.rstrip("/").rsplit("/", 1)[-1].lower() == base.lower() or named == "unnamed"
    advice = "edges will miss more of the model; judge by the replacement score"
    return Check(TRANSCODER_BASE, ok, named, base, advice, fatal=False)


@torch.no_grad()
def check_transcoder_weights(pair: ModelPair) -> Check:
    """No number in a transcoder is NaN or infinite; names the layer, the matrix and the file."""
    name, expected = "transcoder weights finite", "every number finite"
    files = pair.sources["transcoders"].transcoders
    assert pair.transcoders is not None and files is not None
    for file in files.layers:
        if found := not_finite(pair.transcoders[file.layer], file):
            return Check(name, False, found, expected, "download or train that layer again")
    return Check(name, True, f"{len(files.layers)} layers", expected)


@torch.no_grad()
def check_finite(model: Model, input_ids: Int[Tensor, " pos"]) -> Check:
    """No activation is NaN, infinite or suspiciously large, layer by layer."""
    largest: list[float] = []
    with model.sites.hooked(read=lambda _layer, x: largest.append(float(x.abs().max()))):
        logits = model.next_logits(input_ids)
    shown = model.tokenizer.decode(input_ids[-12:])
    name, expected = f"{model.name}: {FINITE}", f"at most {MAGNITUDE_LIMIT:g}"
    advice = "try --dtype float32 (or bfloat16 instead of float16)"
    for layer, value in enumerate([*largest, float(logits.abs().max())]):
        where = f"layer {layer}" if layer < len(largest) else "the logits"
        if not value <= MAGNITUDE_LIMIT:  # NaN compares false
            found = f"{value:g} in {where} on the prompt ending {shown!r}"
            return Check(name, False, found, expected, advice)
    return Check(name, True, f"at most {max(largest):.3g}", expected, advice)


@torch.no_grad()
def activation_profile(pair: ModelPair, input_ids: Int[Tensor, " pos"]) -> Iterator[SiteSize]:
    """Where activations are not finite, or ten times what is usual in their layer.

    Largest magnitude at the input of every MLP, layer by layer and position by position.
    """
    sizes: list[list[Float[Tensor, " pos"]]] = [[], []]
    for found, model in zip(sizes, pair.models, strict=True):

        def read(_layer: int, x: Tensor, found: list[Tensor] = found) -> None:
            found.append(x[0].abs().amax(-1).float().cpu())

        with model.sites.hooked(read=read):
            model.next_logits(input_ids)
    for layer, rows in enumerate(zip(*sizes, strict=True)):
        sound = [x for row in rows for x in row.tolist() if math.isfinite(x)]
        usual = median(sound) if sound else math.inf
        for position, both in enumerate(zip(*(row.tolist() for row in rows), strict=True)):
            base, merged = (x if math.isfinite(x) else None for x in both)
            outlier = any(x is not None and x > OUTLIER * usual for x in (base, merged))
            if outlier or base is None or merged is None:
                token = pair.tokenizer.decode(input_ids[position : position + 1])
                yield SiteSize(layer, position, token, base, merged, outlier)


@torch.no_grad()
def check_replacement(model: Model, input_ids: Int[Tensor, " pos"]) -> Check:
    """The replacement model, before any feature replaces anything, is the Hugging Face model.

    In float32 log-probabilities of the top 100 tokens may differ by 1e-4; in a shorter precision
    by twice what that precision itself makes of the Hugging Face model on this prompt. A model
    that no backend builds has no frozen edges, and works without.
    """
    name = f"{model.name}: replacement model is the Hugging Face model"
    try:
        built = model.replacement
    except RequestError as error:  # the real model, and full edges, need none
        advice = "there are no frozen edges of this model; full ones need no backend"
        return Check(name, False, str(error), "one that is built", advice, fatal=False)
    replacement = _log_p(built.next_logits(input_ids.to(model.device)))
    found, limit = _difference(model, input_ids, replacement)
    advice = f"the {model.backend} backend does not compute this model; try the other one"
    return Check(name, found <= limit, f"{found:.2g} nats", f"at most {limit:.2g} nats", advice)


def _difference(
    model: Model, input_ids: Int[Tensor, " pos"], others: Float[Tensor, " vocab"]
) -> tuple[float, float]:
    """Largest difference of log-probabilities over a model's top tokens, and what it may be."""
    hf = _log_p(model.next_logits(input_ids))
    top = hf.topk(min(COMPARED_TOKENS, len(hf))).indices
    found = float((hf - others)[top].abs().max())
    if model.dtype == torch.float32:
        return found, FLOAT32_LIMIT
    exact = _log_p(_float32_logits(model, input_ids))
    return found, 2 * float((hf - exact)[top].abs().max())


def _float32_logits(model: Model, input_ids: Int[Tensor, " pos"]) -> Float[Tensor, " vocab"]:
    """Logits computed in float32; a layer's weights are in float32 only while it runs."""
    exact = sharing_copy(model.hf)
    layers = [one.module for one in Decoder.of(exact).layers]
    within = {id(one) for layer in layers for one in layer.modules()}
    alone = [
        one
        for one in exact.modules()
        if id(one) not in within and next(one.parameters(recurse=False), None) is not None
    ]
    for module in (*layers, *alone):
        # New memory: the shared tensors stay as they are.
        weights = [*module.parameters(), *module.buffers()]
        short = [(one, one.data) for one in weights if one.is_floating_point()]

        def widen(_module: Any, args: tuple, kwargs: dict, short: list = short) -> tuple:
            for one, data in short:
                one.data = data.float()
            return _widened(args), _widened(kwargs)

        def narrow(_module: Any, _args: Any, _output: Any, short: list = short) -> None:
            for one, data in short:
                one.data = data

        module.register_forward_pre_hook(widen, with_kwargs=True)
        module.register_forward_hook(narrow)
    return exact(input_ids=input_ids[None].to(model.device)).logits[0, -1]


def _widened(value: Any) -> Any:
    match value:
        case Tensor() if value.is_floating_point():
            return value.float()
        case tuple():
            return tuple(_widened(one) for one in value)
        case dict():
            return {name: _widened(one) for name, one in value.items()}
    return value


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
