"""Names by which one base model goes: on the hub, in its cache, quantised, mirrored.

An adapter names the model it was trained on. It fits a base of the same last name; of the same name
but for the marks of 4-bit copies (``-bnb-4bit``); of a name that a known mirror gives it. Those two
are said, since a copy need not be the very same weights.

    check_adapter_base(("run/adapter", path), ("meta-llama/Llama-3.1-8B", path, name), trust=False)
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from em_circuits.models.files import ADAPTER_CONFIG, json_object, weight_files
from pivotal_tokens.errors import RequestError

logger = logging.getLogger(__name__)

_SNAPSHOT = re.compile(r"models--[\w.-]+?--([\w.-]+)/snapshots/[^/]+/?$")
_QUANTISED = ("-unsloth-bnb-4bit", "-bnb-4bit")
_MIRRORS = {
    "meta-llama-3.1-8b": "llama-3.1-8b",
    "meta-llama-3.1-8b-instruct": "llama-3.1-8b-instruct",
    "meta-llama-3.1-70b": "llama-3.1-70b",
    "meta-llama-3.1-70b-instruct": "llama-3.1-70b-instruct",
    "llama-3-8b": "meta-llama-3-8b",
    "llama-3-8b-instruct": "meta-llama-3-8b-instruct",
    "llama-3-70b": "meta-llama-3-70b",
    "llama-3-70b-instruct": "meta-llama-3-70b-instruct",
    "llama-2-7b": "llama-2-7b-hf",
    "llama-2-7b-chat": "llama-2-7b-chat-hf",
    "llama-2-13b": "llama-2-13b-hf",
    "llama-2-13b-chat": "llama-2-13b-chat-hf",
}
"""Last names that differ between Unsloth's mirrors (or Meta's earlier names) and Meta's own, in
small letters; where only the organisation or the case differs none is needed."""


def snapshot_name(path: Path) -> str | None:
    """The model's name, where a directory is a snapshot in the hub's cache."""
    found = _SNAPSHOT.search(path.as_posix())
    return None if found is None else found[1]


def check_adapter_base(
    adapter: tuple[str, Path], base: tuple[str, Path, str], *, trust: bool
) -> None:
    """Refuse an adapter that was trained on another base model.

    The adapter's ``base_model_name_or_path`` must be a name of the base; where it names a
    directory that exists, equal tensors will do as well.

    Args:
        adapter: Reference and directory.
        base: Reference, directory and name.
        trust: Take the user's word.

    Raises:
        RequestError: If it names another base and `trust` is not given.
    """
    path = adapter[1] / ADAPTER_CONFIG
    named = str(json_object("--adapter", path).get("base_model_name_or_path") or "")
    if not named:
        logger.warning("%s names no base model; it is taken to be of %s", path, base[0])
    asked, names = _last_name(named), {base[2].lower(), *_names_in_config(base[1])}
    if trust or not named or asked in names or _same_weights(Path(named), base[1]):
        return
    if names & _copies_of(asked) or any(asked in _copies_of(name) for name in names):
        logger.warning(
            "the adapter names %s, a copy of %s; it is taken to be of it", named, base[0]
        )
        return
    hint = ""
    if any(_uninstruct(asked) == _uninstruct(name) for name in names):
        hint = " (one is instruction-tuned, the other is not)"
    raise RequestError(
        f"--adapter {adapter[0]} was trained on {named!r}, not on {base[0]!r}{hint}; "
        "give that base, or add --trust-base if they are the same weights"
    )


def _last_name(reference: str) -> str:
    """In small letters; a revision stands behind hub ids alone, so what exists is a path."""
    stem = reference.rstrip("/")
    found = snapshot_name(Path(stem))
    if found is None and not Path(stem).exists() and re.fullmatch(r"[\w.-]+/[\w.-]+@\S+", stem):
        stem = stem.split("@")[0]
    return (found or stem.rsplit("/", 1)[-1]).lower()


def _copies_of(name: str) -> set[str]:
    """The names of the models that one of this name is a copy of."""
    for ending in _QUANTISED:
        name = name.removesuffix(ending)
    return {name, _MIRRORS.get(name, name)}


def _names_in_config(path: Path) -> set[str]:
    named = json_object("--base", path / "config.json").get("_name_or_path") or ""
    return {_last_name(named)} - {""}


def _uninstruct(name: str) -> str:
    return name.lower().removesuffix("-instruct").removesuffix("-it").removesuffix("-chat")


def _same_weights(one: Path, other: Path) -> bool:
    """Whether two model directories hold equal tensors under equal names, however split."""
    left, right = _tensor_files(one), _tensor_files(other)
    if not right or left.keys() != right.keys():
        return False

    from safetensors import safe_open
    from torch import equal

    for name in right:
        with (
            safe_open(left[name], framework="pt") as mine,
            safe_open(right[name], framework="pt") as theirs,
        ):
            if not equal(mine.get_tensor(name), theirs.get_tensor(name)):
                return False
    return True


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> file."""
    from em_circuits.models.files import tensor_shapes

    names = weight_files(folder) if folder.is_dir() else []
    paths = [folder / name for name in names if name.endswith(".safetensors")]
    return {name: path for path in paths for name in tensor_shapes("weights", path)}
