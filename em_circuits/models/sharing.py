"""Weights shared by two models wherever they are equal.

Parameters are shared as tensors, never as modules: a module carries hooks, and closing one model
would silently unhook the other.

    merged = merge_adapter(sharing_copy(base), adapter_directory)
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from em_circuits.models.files import ADAPTER_WEIGHTS, tensor_shapes
from em_circuits.models.foreign import foreign_errors
from pivotal_tokens.errors import RequestError


def sharing_copy(model: nn.Module) -> nn.Module:
    """A copy with modules of its own whose parameters and buffers use the original's memory.

    Replacing a parameter's `data` in the copy leaves the original as it is; writing into it in
    place would change both, so nobody does.
    """
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.data, requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer
    return copy.deepcopy(model, memo)


def merge_adapter(model: nn.Module, adapter: Path) -> nn.Module:
    """Merge a PEFT LoRA adapter into `model`, giving new memory to the touched weights only.

    Args:
        model: A `sharing_copy` of the base model; it is consumed.
        adapter: PEFT directory.

    Returns:
        The merged model, frozen, in evaluation mode.

    Raises:
        RequestError: If the adapter does not fit the model.
    """
    from peft import PeftModel

    _unshare_loaded(model, adapter)
    # What PEFT warns of (tied embeddings) `health.check_merge` measures.
    with _of_this_model(adapter), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        wrapped = PeftModel.from_pretrained(model, str(adapter))
        for warning in caught:
            if "missing adapter keys" in str(warning.message):
                detail = str(warning.message)[:160]
                raise RequestError(f"--adapter {adapter}: weights are missing: {detail}")
        # safe_merge writes the sum to new memory (and refuses NaN) instead of adding in place.
        return freeze(wrapped.merge_and_unload(safe_merge=True))


def unmerged_adapter(model: nn.Module, adapter: Path) -> nn.Module:
    """The model that PEFT runs with an adapter beside its weights, as `merge_adapter` loads it."""
    from peft import PeftModel

    own = sharing_copy(model)
    _unshare_loaded(own, adapter)
    with _of_this_model(adapter), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return freeze(PeftModel.from_pretrained(own, str(adapter)))


def _unshare_loaded(model: nn.Module, adapter: Path) -> None:
    """Give new memory to the parameters that an adapter's file holds by their own names (``bias:
    all``): PEFT loads those in place, into whatever shares their memory."""
    named = {model_name(key) for key in tensor_shapes("--adapter", adapter / ADAPTER_WEIGHTS)}
    for name, parameter in model.named_parameters():
        if name in named:
            parameter.data = parameter.data.clone()


def model_name(key: str) -> str:
    """The model's own name of what a key of an adapter's file stands for, if it stands for one."""
    return key.removeprefix("base_model.model.").replace(".base_layer.", ".")


def _of_this_model(adapter: Path) -> contextlib.AbstractContextManager[None]:
    advice = "; is it an adapter of another base, or of a newer peft?"
    return foreign_errors(f"--adapter {adapter} does not fit the base model", advice)


def freeze(model: nn.Module) -> nn.Module:
    """Evaluation mode, no parameter asks for a gradient."""
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def changed_modules(base: nn.Module, merged: nn.Module) -> tuple[str, ...]:
    """Names of the tensors in which two models differ, in module order, those of one alone too.

    Names, not tensors: a head that is tied to the embeddings in one model and trained apart in the
    other is a change of the head, and a change of tied embeddings is one of both. Tensors that
    share memory are equal without a look.
    """
    ours, theirs = base.state_dict(), merged.state_dict()

    def differs(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
        if one is None or other is None or one.shape != other.shape:
            return True
        return one.data_ptr() != other.data_ptr() and not torch.equal(one, other)

    return tuple(n for n in ours | theirs if differs(ours.get(n), theirs.get(n)))


def tied_to(model: nn.Module, names: Iterable[str]) -> set[str]:
    """`names` of tensors, and those under which the model holds the same memory (a tied head)."""
    tensors = model.state_dict()
    places = {tensors[name].data_ptr() for name in names if name in tensors}
    return {name for name, tensor in tensors.items() if tensor.data_ptr() in places} | set(names)
