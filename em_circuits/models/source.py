"""Directories of models, adapters and transcoders named on the command line.

A reference is a local directory or a hub id; either way the result is a directory on this
machine, and everything downstream only ever reads directories. What a header or a configuration
can tell is checked here, before anything is loaded: kinds, missing and broken files, sizes, bases.

    source = locate("--base", "meta-llama/Llama-3.2-1B-Instruct", kind="model")
    source.path, source.revision, source.files
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from em_circuits.models.base_names import check_adapter_base, snapshot_name
from em_circuits.models.files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    adapter_files,
    check_adapter_files,
    check_weights,
    json_object,
    model_files,
    tensor_shapes,
)
from em_circuits.models.hub import download, download_entry
from em_circuits.models.settings import PairSettings
from em_circuits.models.transcoder_files import (
    CONFIG,
    CROSS_LAYER,
    DIFFERENCES,
    HUB,
    TranscoderFiles,
    foreign_set,
    read_config,
)
from pivotal_tokens.errors import RequestError

Kind = Literal["model", "adapter", "transcoders"]

_MARKER = {"model": "config.json", "adapter": ADAPTER_CONFIG, "transcoders": CONFIG}
_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)((?:/[\w.-]+)*)(?:@([\w./-]+))?")
_OF_VOCABULARY = (".embed_tokens.weight", ".wte.weight", ".lm_head.weight")
_PATTERNS = {
    "model": ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"],
    "adapter": ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"],
}


@dataclass(frozen=True)
class Source:
    """A directory with weights, and the reference that named it."""

    reference: str
    """What the user wrote."""
    path: Path
    """Absolute directory."""
    revision: str | None
    """Commit of the hub repository; None for a local directory."""
    files: Mapping[str, Path] = field(default_factory=dict, repr=False)
    """Name -> path of every file that is loaded."""
    transcoders: TranscoderFiles | None = field(default=None, repr=False)
    """Of a transcoder set."""

    @property
    def name(self) -> str:
        """What people call the model: the last part of a hub id (also of the one whose snapshot a
        directory is), or the directory's name."""
        if self.revision is not None:
            return self.reference.split("@")[0].rsplit("/", 1)[-1]
        return snapshot_name(self.path) or self.path.name


def locate(flag: str, reference: str, *, kind: Kind) -> Source:
    """Find or download the directory that `reference` names.

    Args:
        flag: The option it came from, for messages (``--base``).
        reference: Local directory or hub id, optionally ``@revision``; for transcoders, a folder
            may stand behind the repository (``org/name/folder``).
        kind: What the directory must hold.

    Raises:
        RequestError: No such directory, a directory of another kind, or a file missing or broken.
        WorkFailed: The hub could not be reached or does not give the repository.
    """
    path = Path(reference).expanduser()
    hub = None if reference.startswith((".", "/", "~")) else _HUB_ID.fullmatch(reference)
    if path.is_dir():
        folder, revision = path.resolve(), None
    elif hub is not None and (kind == "transcoders" or not hub[2]):
        folder, revision = _download(flag, reference, kind, hub)
    else:
        raise RequestError(f"{flag} {reference}: no such directory, and not a hub id (org/name)")
    _check_kind(flag, reference, folder, kind)
    if kind == "model":
        check_weights(flag, folder)
        return Source(reference, folder, revision, model_files(folder))
    if kind == "adapter":
        check_adapter_files(flag, folder)
        return Source(reference, folder, revision, adapter_files(folder))
    fetch = functools.partial(download_entry, flag)
    found = TranscoderFiles.read(flag, reference, folder, fetch)
    if found.config["model_kind"] == DIFFERENCES:
        raise RequestError(
            f"{flag} {reference} are of the difference between two models' MLPs and replace "
            "neither; give transcoders of the base"
        )
    return Source(reference, folder, revision, found.files, found)


def locate_all(settings: PairSettings) -> dict[str, Source]:
    """Directories of ``base``, ``adapter`` or ``merged``, and ``transcoders`` where there are any.

    Raises:
        RequestError: If one is missing, broken or of another kind, the fine-tune is not given once,
            the adapter is of another base, or the transcoders are of another width or depth.
        WorkFailed: The hub could not be reached.
    """
    if (settings.adapter is None) == (settings.merged is None):
        raise RequestError("give the fine-tune as --adapter DIR or --merged DIR, one of them")
    sources = {"base": locate("--base", settings.base, kind="model")}
    base = sources["base"]
    if settings.adapter is not None:
        adapter = sources["adapter"] = locate("--adapter", settings.adapter, kind="adapter")
        check_adapter_base(
            (adapter.reference, adapter.path),
            (base.reference, base.path, base.name),
            trust=settings.trust_base,
        )
        _check_vocabulary(adapter, base)
    elif settings.merged is not None:
        sources["merged"] = locate("--merged", settings.merged, kind="model")
    if not settings.neurons:
        found = locate("--transcoders", settings.transcoders, kind="transcoders")
        sources["transcoders"] = found
        assert found.transcoders is not None
        check_transcoder_fit("--transcoders", found.transcoders, base)
    return sources


def check_transcoder_fit(flag: str, files: TranscoderFiles, base: Source) -> None:
    """Refuse transcoders of another width or depth than a base says in its configuration.

    Raises:
        RequestError: Naming both values.
    """
    width, layers = base_shape(base)
    if width is not None and layers is not None:
        files.check_fit(flag, d_model=width, n_layers=layers)


def base_shape(base: Source) -> tuple[int | None, int | None]:
    """Width and number of layers that a base's configuration gives, None where it does not."""
    text = _text_config(base)
    return (
        text.get("hidden_size", text.get("n_embd")),
        text.get("num_hidden_layers", text.get("n_layer")),
    )


def _text_config(base: Source) -> dict[str, Any]:
    config = json_object("--base", base.path / "config.json")
    return {**config, **(config.get("text_config") or {})}


def _check_vocabulary(adapter: Source, base: Source) -> None:
    """Refuse an adapter whose file has whole embeddings or a head of another vocabulary.

    Raises:
        RequestError: Naming both sizes.
    """
    n_tokens = _text_config(base).get("vocab_size")
    for name, shape in tensor_shapes("--adapter", adapter.path / ADAPTER_WEIGHTS).items():
        if n_tokens and name.endswith(_OF_VOCABULARY) and shape[0] != n_tokens:
            raise RequestError(
                f"--adapter {adapter.reference} was trained on a vocabulary of {shape[0]} tokens, "
                f"--base has {n_tokens}: resize the base as it was then "
                f"(model.resize_token_embeddings({shape[0]})), save it with the adapter's "
                "tokenizer, and give it as --base, with --trust-base"
            )


def foreign_folder(flag: str, reference: str) -> Path:
    """The directory of a set of another library: one here, or a hub id with a folder in it.

    Raises:
        RequestError: If there is no such directory, and it is no hub id.
        WorkFailed: The hub could not be reached or does not give the repository.
    """
    path = Path(reference).expanduser()
    if path.is_dir():
        return path
    hub = None if reference.startswith((".", "/", "~")) else _HUB_ID.fullmatch(reference)
    if hub is None:
        raise RequestError(f"{flag} {reference}: no such directory, and not a hub id (org/name)")
    inside = hub[2].lstrip("/")
    front = f"{inside}/" if inside else ""
    patterns = [f"{front}*{end}" for end in (".json", ".yaml", ".safetensors", ".npz")]
    return download(flag, hub[1], hub[3], patterns) / inside


def _check_kind(flag: str, reference: str, folder: Path, kind: Kind) -> None:
    holds = {one for one, marker in _MARKER.items() if (folder / marker).is_file()}
    if kind == "model" and {"model", "adapter"} <= holds:
        raise RequestError(
            f"{flag} {reference} holds an adapter beside the model, which transformers would load "
            f"instead; move {ADAPTER_CONFIG} and its weights to a directory of their own"
        )
    if kind in holds:
        return
    if kind == "model" and "adapter" in holds:
        raise RequestError(
            f"{flag} {reference} is a LoRA adapter, not a full model; give it as --adapter instead"
        )
    if kind == "adapter" and "model" in holds:
        raise RequestError(
            f"{flag} {reference} is a full model, not a LoRA adapter; give it as --merged instead"
        )
    hint = ""
    inside = sorted(
        (path.parent.name for path in folder.glob(f"*/{_MARKER[kind]}")),
        key=lambda name: [int(part) for part in re.findall(r"\d+", name)],
    )
    if inside:
        hint = f"; it is in {', '.join(inside[-4:])}: give {folder / inside[-1]}"
    elif kind == "transcoders" and (library := foreign_set(folder)):
        hint = (
            f"; this is a set of {library}'s: em-circuits transcoders convert {reference} "
            "--out DIR writes it in circuit-tracer's layout"
        )
    raise RequestError(f"{flag} {reference}: no {_MARKER[kind]} in {folder}{hint}")


def _download(flag: str, reference: str, kind: Kind, hub: re.Match[str]) -> tuple[Path, str]:
    repo, inside, revision = hub[1], hub[2].lstrip("/"), hub[3]
    if kind != "transcoders":
        patterns = _PATTERNS[kind]
        # A repository with pytorch_model.bin alone.
        snapshot = download(flag, repo, revision, patterns)
        if kind == "model" and not any(snapshot.glob("*.safetensors")):
            snapshot = download(flag, repo, revision, [*patterns, "pytorch_model*.bin"])
        return snapshot.resolve(), snapshot.name
    front = f"{inside}/" if inside else ""
    snapshot = download(flag, repo, revision, [f"{front}{CONFIG}"])
    folder = snapshot / inside
    if not (folder / CONFIG).is_file():
        raise RequestError(
            f"{flag} {reference}: no {front}{CONFIG} in {repo}; a set in a folder is named "
            "org/name/folder"
        )
    config = read_config(flag, reference, folder)
    listed = [one for one in config.get("transcoders") or () if not one.startswith(HUB)]
    if config["model_kind"] == CROSS_LAYER and config.get("transcoders") is None:
        listed = ["W_enc_*.safetensors", "W_dec_*.safetensors"]
    elif config.get("transcoders") is None:
        listed = ["layer_*.safetensors", "layer_*.npz"]
    if listed:
        download(flag, repo, snapshot.name, [f"{front}{one}" for one in listed])
    return folder.resolve(), snapshot.name
