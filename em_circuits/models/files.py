"""Files that the loaders read from a directory, and no other: what a fingerprint hashes.

A log or a README rewritten beside the weights changes nothing; weights of whatever format, split
or not, change everything. Headers of safetensors files are read here too, so that what is no such
file (a pointer of git-lfs, half a download) is named before anything is loaded. Needs no torch.

    model_files(Path("models/base"))["model.safetensors"]
    tensor_shapes("--adapter", Path("my-adapter/adapter_model.safetensors"))

Source of the order of weights: transformers 4.57, `modeling_utils._get_resolved_checkpoint_files`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pivotal_tokens.errors import RequestError

SAFETENSORS, BIN = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"
"""Ending of the file that says which shard holds which tensor."""
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TOKENIZER = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
"""Files from which a tokenizer and its chat templates are made."""
_TEMPLATES = "additional_chat_templates/*.jinja"
_LFS = b"version https://git-lfs"
_ADAPTER_BIN = "adapter_model.bin"
_NOTHING_TO_MERGE = (
    "PROMPT_TUNING",
    "MULTITASK_PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "ADAPTION_PROMPT",
    "CPT",
)
"""PEFT's kinds that put something into the prompt or beside the layers, not into weights."""


def model_files(folder: Path) -> dict[str, Path]:
    """Name -> path of what a causal language model and its tokenizer are loaded from."""
    names = ["config.json", "generation_config.json", *TOKENIZER]
    return _there(folder, [*names, *weight_files(folder)])


def adapter_files(folder: Path) -> dict[str, Path]:
    """Name -> path of what a PEFT adapter is loaded from, and the tokenizer it is compared by."""
    return _there(folder, [ADAPTER_CONFIG, ADAPTER_WEIGHTS, *TOKENIZER])


def check_adapter_files(flag: str, folder: Path) -> None:
    """Refuse an adapter that cannot be merged, or whose weights are not there.

    Raises:
        RequestError: Naming the file, and what it is.
    """
    kind = json_object(flag, folder / ADAPTER_CONFIG).get("peft_type")
    if kind in _NOTHING_TO_MERGE:
        raise RequestError(
            f"{flag} {folder} is a {kind} adapter, which changes no weights and so cannot be "
            "merged; give one that does (LoRA, IA3, LoHa, ...), or --merged"
        )
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file() and (folder / _ADAPTER_BIN).is_file():
        raise RequestError(
            f"{flag} {folder} has {_ADAPTER_BIN}, a pickle, and no {ADAPTER_WEIGHTS}; if you trust "
            "it, load it with peft.PeftModel.from_pretrained and save it again with "
            "save_pretrained(DIR, safe_serialization=True)"
        )
    if not path.is_file():
        raise RequestError(
            f"{flag}: no {path.name} in {folder}; save the adapter with safe_serialization=True"
        )
    tensor_shapes(flag, path)


def weight_files(folder: Path) -> list[str]:
    """Names of the files that transformers takes a model's weights from; empty if there are none.

    Raises:
        RequestError: If an index is unreadable, or a shard that it names is not there.
    """
    for whole in (SAFETENSORS, BIN):
        if (folder / whole).is_file():
            return [whole]
        index = folder / f"{whole}{INDEX}"
        if index.is_file():
            return [index.name, *_shards(index)]
    return []


def check_weights(flag: str, folder: Path) -> None:
    """Refuse a model directory without weights, or with files that are not what they are called.

    Raises:
        RequestError: Naming the file, and what it is.
    """
    names = weight_files(folder)
    if not names:
        raise RequestError(
            f"{flag} {folder}: no weights ({SAFETENSORS} or {BIN}, whole or with {INDEX}); "
            "download or save the model again"
        )
    for name in names:
        if name.endswith(".safetensors"):
            tensor_shapes(flag, folder / name)
        else:
            refuse_pointer(flag, folder / name)


def tensor_shapes(flag: str, path: Path) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, from a safetensors file whose tensors are all there.

    Raises:
        RequestError: If the file is missing, a pointer of git-lfs, cut short, or something else.
    """
    refuse_pointer(flag, path)
    try:
        entries = safetensors_header(path)
        return {
            name: tuple(entry["shape"]) for name, entry in entries.items() if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"{flag} {path} is not a whole safetensors file: {error}; download or save it again"
        ) from error


def refuse_pointer(flag: str, path: Path) -> None:
    """Refuse a file that is missing, or only points at what git-lfs did not fetch.

    Raises:
        RequestError: Naming the file.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS))
    except OSError as error:
        raise RequestError(f"{flag} {path}: {error.strerror or error}; is it all there?") from error
    if start == _LFS:
        raise RequestError(
            f"{flag} {path} is a git-lfs pointer, not the file itself: run git lfs pull in "
            f"{path.parent}, or download it again"
        )


def safetensors_header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file whose tensors are all there.

    Raises:
        ValueError: If it is cut short or in another format.
        OSError: If it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= size - 8:
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        try:
            entries: Any = json.loads(file.read(length))
        except RecursionError as error:
            raise ValueError("its header is nested too deeply") from error
    if not isinstance(entries, dict):
        raise ValueError("its header is no JSON object")
    tensors = [entry for name, entry in entries.items() if name != "__metadata__"]
    end = 8 + length + max((entry["data_offsets"][1] for entry in tensors), default=0)
    if end != size:
        raise ValueError(f"{size} bytes, expected {end}")
    return entries


def json_object(flag: str, path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        RequestError: If the file is something else.
    """
    refuse_pointer(flag, path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{flag} {path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise RequestError(f"{flag} {path} is not a JSON object")
    return found


def _there(folder: Path, names: list[str]) -> dict[str, Path]:
    paths = [folder / name for name in names if (folder / name).is_file()]
    paths += folder.glob(_TEMPLATES)
    return {path.relative_to(folder).as_posix(): path for path in paths}


def _shards(index: Path) -> list[str]:
    record = json_object("weights", index)
    shards = record.get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise RequestError(f"{index} has no weight_map; download or save the model again")
    names = sorted(set(shards.values()))
    for name in names:
        if not (index.parent / name).is_file():
            raise RequestError(f"{index} names {name}, which is not there; download it again")
    return names
