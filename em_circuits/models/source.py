"""Directories of models, adapters and transcoders named on the command line.

A reference is a local directory or a hub id; either way the result is a directory on this
machine, and everything downstream only ever reads directories.

    source = locate("--base", "meta-llama/Llama-3.2-1B-Instruct", kind="model")
    source.path, source.revision
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from em_circuits.models.settings import PairSettings
from pivotal_tokens.errors import RequestError, WorkFailed

Kind = Literal["model", "adapter", "transcoders"]

_MARKER = {"model": "config.json", "adapter": "adapter_config.json", "transcoders": "config.yaml"}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_PATTERNS = {
    "model": ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"],
    "adapter": ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"],
    "transcoders": ["config.yaml", "*.safetensors"],
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

    @property
    def name(self) -> str:
        """The last part of the reference, without a revision: what people call the model."""
        return self.reference.rstrip("/").split("@")[0].rsplit("/", 1)[-1]


def locate(flag: str, reference: str, *, kind: Kind) -> Source:
    """Find or download the directory that `reference` names.

    Args:
        flag: The option it came from, for messages (``--base``).
        reference: Local directory or hub id, optionally ``@revision``.
        kind: What the directory must hold.

    Raises:
        RequestError: No such directory, or a directory of another kind.
        WorkFailed: The hub could not be reached or does not give the repository.
    """
    path = Path(reference).expanduser()
    if path.is_dir():
        source = Source(reference, path.resolve(), None)
    elif _HUB_ID.fullmatch(reference) and not reference.startswith((".", "/")):
        source = _download(flag, reference, kind)
    else:
        raise RequestError(f"{flag} {reference}: no such directory, and not a hub id (org/name)")
    _check_kind(flag, source, kind)
    return source


def locate_all(settings: PairSettings) -> dict[str, Source]:
    """Directories of ``base``, ``adapter`` or ``merged``, and ``transcoders`` where there are any.

    Raises:
        RequestError: If one is missing or of another kind, or the fine-tune is not given once.
        WorkFailed: The hub could not be reached.
    """
    if (settings.adapter is None) == (settings.merged is None):
        raise RequestError("give the fine-tune as --adapter DIR or --merged DIR, one of them")
    sources = {"base": locate("--base", settings.base, kind="model")}
    if settings.adapter is not None:
        sources["adapter"] = locate("--adapter", settings.adapter, kind="adapter")
    elif settings.merged is not None:
        sources["merged"] = locate("--merged", settings.merged, kind="model")
    if not settings.neurons:
        sources["transcoders"] = locate("--transcoders", settings.transcoders, kind="transcoders")
    return sources


def _check_kind(flag: str, source: Source, kind: Kind) -> None:
    if (source.path / _MARKER[kind]).is_file():
        return
    if kind == "model" and (source.path / _MARKER["adapter"]).is_file():
        raise RequestError(
            f"{flag} {source.reference} is a LoRA adapter, not a full model; "
            "give it as --adapter instead"
        )
    if kind == "adapter" and (source.path / _MARKER["model"]).is_file():
        raise RequestError(
            f"{flag} {source.reference} is a full model, not a LoRA adapter; "
            "give it as --merged instead"
        )
    raise RequestError(f"{flag} {source.reference}: no {_MARKER[kind]} in {source.path}")


def _download(flag: str, reference: str, kind: Kind) -> Source:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repo, _, revision = reference.partition("@")
    try:
        folder = snapshot_download(repo, revision=revision or None, allow_patterns=_PATTERNS[kind])
    except HfHubHTTPError as error:
        if not isinstance(error, LocalEntryNotFoundError):
            raise WorkFailed(
                f"{flag} {reference}: the model hub refused {repo}: {_first_line(error)}; "
                "check the name, the revision and HF_TOKEN"
            ) from error
        raise _unreachable(flag, reference, repo) from error
    except OSError as error:  # every connection error of the hub's client is one
        raise _unreachable(flag, reference, repo) from error
    path = Path(folder).resolve()
    return Source(reference, path, path.name)


def _unreachable(flag: str, reference: str, repo: str) -> WorkFailed:
    return WorkFailed(
        f"{flag} {reference}: could not reach the model hub for {repo} "
        "(no such local directory either); connect to the network or give a local directory"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
