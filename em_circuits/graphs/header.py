"""Headers of graph files: what a graph is of and how it was made, without its tensors.

read_header(path)  # GraphHeader; takes neither torch nor the file's tensors
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from safetensors import SafetensorError, safe_open

from pivotal_tokens.errors import WorkFailed

FORMAT_VERSION = 1
"""Version of the file format; part of every key."""


class Selection(BaseModel):
    """How the feature nodes were chosen among the active features."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    select_by: Literal["probability", "contrast", "all"]
    """What weighted the targets; "all" if there was nothing to choose."""
    max_feature_nodes: int | None = None
    """The limit asked for; None for no limit."""
    weights: tuple[float, ...] = ()
    """Weight of each target, where it was not the probability."""


class GraphHeader(BaseModel):
    """What a graph is of and how it was made; everything that is not a tensor."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    """Version of the file format."""
    key: str
    """SHA-256 (64 hex digits) of everything that decides the content."""
    prompt_id: str
    """First 12 hex digits of SHA-256 of the text."""
    text: str
    """The prompt as the model sees it, without the BOS the tokenizer adds."""
    tokens: tuple[str, ...] = ()
    """Texts of the prompt's tokens, BOS included; empty where they are not known."""
    model: str
    """One of "base", "merged", or another model's name."""
    fingerprint: str | None = None
    """The model's; None where it is not known (an imported graph)."""
    adapter_hash: str | None = None
    """The adapter's; None without an adapter."""
    transcoders: str | None = None
    """The transcoder set's name or directory."""
    transcoder_fingerprint: str | None = None
    """Its revision or hash."""
    n_layers: int
    """Layers with a transcoder."""
    scan: str | tuple[str, ...] | None = None
    """circuit-tracer's identifier of the transcoders."""
    dtype: str
    """Of the model that was attributed, such as "float32"."""
    selection: Selection
    """How feature nodes were chosen."""
    attribution: dict[str, JsonValue] = {}
    """Parameters of attribution, part of the key."""
    d_vocab: int
    """Width of the model's logits; a target id of this or more is virtual, not a token."""
    tokenizer_name: str | None = None
    """Where the tokenizer is from."""
    extra: dict[str, JsonValue] = {}
    """What other formats need to be written again unchanged."""


class Compressed(BaseModel):
    """What bytes were, before they were compressed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: str
    """Such as "float32"."""
    shape: tuple[int, ...]
    """Of the tensor."""


METADATA = "em_circuits_graph"
"""The one metadata entry: with several, their order in the file would be arbitrary."""


class GraphRecord(BaseModel):
    """Everything in a graph's file that is not a tensor."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    header: GraphHeader
    texts: tuple[str, ...]
    compressed: dict[str, Compressed] = {}
    """Tensors that are compressed, by name."""


def is_archived(path: Path) -> bool:
    """Whether a graph file is compressed; reads nothing but its header.

    Raises:
        WorkFailed: See `read_header`.
    """
    try:
        with safe_open(path, framework="np") as file:
            return bool(record_of(path, file).compressed)
    except (SafetensorError, OSError) as error:
        raise broken(path, error) from error


def read_header(path: Path) -> GraphHeader:
    """A graph's header; reads nothing else of the file.

    Raises:
        WorkFailed: If the file is corrupt, truncated, or of another format.
    """
    try:
        with safe_open(path, framework="np") as file:
            return record_of(path, file).header
    except (SafetensorError, OSError) as error:
        raise broken(path, error) from error


def broken(path: Path, reason: object) -> WorkFailed:
    """The error for a file that cannot be used: which, why, what to do."""
    if isinstance(reason, WorkFailed) and str(path) in str(reason):
        return reason
    detail = f"no tensor {reason}" if isinstance(reason, KeyError) else str(reason)
    return WorkFailed(
        f"Graph file {path} is corrupt or truncated: {detail}\n"
        f"Build it again with 'em-circuits graphs build {path.parent.name}' (and the options it "
        "was built with), which puts this file aside; so does 'graphs verify --quarantine'."
    )


def record_of(path: Path, file: Any) -> GraphRecord:
    """The record of an open file.

    Raises:
        WorkFailed: If it is no graph, of another format, or unreadable.
    """
    text = (file.metadata() or {}).get(METADATA)
    if text is None:
        raise WorkFailed(
            f"{path} is a safetensors file but not a graph: it has no {METADATA} entry."
        )
    try:
        found = json.loads(text)["header"]["format_version"]
        if found != FORMAT_VERSION:
            raise WorkFailed(
                f"Graph file {path} has format version {found}, this version reads "
                f"{FORMAT_VERSION}; build the graph again."
            )
        return GraphRecord.model_validate_json(text)
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise broken(path, f"its header cannot be read ({type(error).__name__})") from error
