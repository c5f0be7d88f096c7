"""Weights shared by two models wherever they are equal.

Parameters are shared as tensors, never as modules: a module carries hooks, and closing one model
would silently unhook the other.

    merged = merge_adapter(sharing_copy(base), adapter_directory)
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import torch
from torch import nn

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

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            wrapped = PeftModel.from_pretrained(model, str(adapter))
        for warning in caught:
            if "missing adapter keys" in str(warning.message):
                detail = str(warning.message)[:160]
                raise RequestError(f"--adapter {adapter}: weights are missing: {detail}")
        # safe_merge writes the sum to new memory (and refuses NaN) instead of adding in place.
        merged = wrapped.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, KeyError) as error:
        detail = " ".join(str(error).split())[:200]
        raise RequestError(
            f"--adapter {adapter} does not fit the base model: {detail}; "
            "is it an adapter of another base?"
        ) from error
    return freeze(merged)


def freeze(model: nn.Module) -> nn.Module:
    """Evaluation mode, no parameter asks for a gradient."""
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def changed_modules(base: nn.Module, merged: nn.Module) -> tuple[str, ...]:
    """Names of the parameters in which two models of one architecture differ, in module order.

    Parameters that share memory are equal without a look.
    """
    other = dict(merged.named_parameters())
    changed = []
    for name, parameter in base.named_parameters():
        twin = other.get(name)
        if (
            twin is None
            or twin.shape != parameter.shape
            or (twin.data_ptr() != parameter.data_ptr() and not torch.equal(twin, parameter))
        ):
            changed.append(name)
    return tuple(changed)
