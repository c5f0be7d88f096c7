"""Headers of graph files: identity and parameters of a graph, readable without its tensors.

A graph file is in safetensors' format, eight bytes of length, a header of JSON, then the tensors;
one metadata entry of it holds everything that is not a tensor.

    read_header(path).prompt_id
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, JsonValue, ValidationError

from em_circuits.models.files import safetensors_header
from pivotal_tokens.artefacts import content_key
from pivotal_tokens.errors import RequestError, WorkFailed
from pivotal_tokens.schema import Frozen, first_problem
from pivotal_tokens.seal import DamagedText, unsealed

if TYPE_CHECKING:
    from em_circuits.contrast import Contrast
    from em_circuits.graphs.layout import NodeLayout

FORMAT_VERSION = 1
"""Version of the file format; part of every key."""
MAX_LAYERS = 10_000
"""Far beyond every model; a header with more is forged, and would fill the memory."""
METADATA = "em_circuits_graph"
"""The one metadata entry: with several, their order in the file would be arbitrary."""


class Selection(Frozen):
    """How the feature nodes were chosen among the active features."""

    select_by: Literal["probability", "contrast", "all"]
    """What weighted the targets; "all" if there was nothing to choose."""
    max_feature_nodes: int | None = None
    """The requested limit; None for no limit."""
    weights: tuple[float, ...] = ()
    """Weight of each target, where it was not the probability."""


class NodePart(Frozen):
    """One part of the basis that a graph's nodes belong to: a layer's features, or a LoRA module.

    The first coordinate of a node is the index of its part; parts stand in the order in which
    edges run.
    """

    basis: str
    """``transcoder``, ``neuron``, ``adapter``, ..."""
    layer: int
    module: str = ""
    """Of an adapter's ranks, such as ``down_proj``; empty for features of a layer."""


class GraphTarget(Frozen):
    """What a graph was built for, where that is not next tokens: its logit nodes are the terms."""

    name: str
    """As outputs call it."""
    unit: str
    """Of its value: ``nats``, ``logits`` or ``activation``."""


class GraphHeader(Frozen):
    """Identity and parameters of a graph; everything that is not a tensor."""

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
    n_layers: int = Field(ge=0, le=MAX_LAYERS)
    """Layers of the model."""
    parts: tuple[NodePart, ...] = ()
    """What nodes are of; empty where they are features of a transcoder in every layer."""
    n_active: int | None = Field(default=None, ge=0)
    """Active nodes of the prompt, where the file holds only the largest of them beside the graph's
    own; None where it holds all."""
    with_errors: bool = True
    """Whether each layer has error nodes; full edges leave none, errors respond in the edges."""
    scan: str | tuple[str, ...] | None = None
    """circuit-tracer's identifier of the transcoders."""
    dtype: str
    """Of the model that was attributed, such as "float32"."""
    selection: Selection
    """How feature nodes were chosen."""
    attribution: dict[str, JsonValue] = Field(default_factory=dict)
    """Parameters of attribution, part of the key."""
    target: GraphTarget | None = None
    """What it was built for; None for next tokens."""
    measured: bool = False
    """Every edge was measured by really removing its source, when it was built or since."""
    pruned: bool = False
    """Only what pruning left: the graph was read from a viewer's JSON."""
    d_vocab: int = Field(ge=1)
    """Width of the model's logits; a target id of this or more is virtual, not a token."""
    tokenizer_name: str | None = None
    """Where the tokenizer is from."""
    extra: dict[str, JsonValue] = Field(default_factory=dict)
    """What other formats need to be written again unchanged."""

    def layout(self, *, n_features: int, n_pos: int, n_logits: int) -> NodeLayout:
        """The node order of a graph of these sizes."""
        from em_circuits.graphs.layout import NodeLayout  # torch, which a header does without

        return NodeLayout(
            n_features=n_features,
            n_layers=self.n_layers if self.with_errors else 0,
            n_pos=n_pos,
            n_logits=n_logits,
            parts=None if self.with_errors else len(self.node_parts),
        )

    @property
    def edge_kind(self) -> str:
        """``frozen`` (circuit-tracer's) or ``full`` (`em_circuits.graphs.held`)."""
        return str(self.attribution.get("edges", "frozen"))

    @property
    def is_measured(self) -> bool:
        """`measured`, also of a graph that was built before files said so."""
        return self.measured or bool(self.attribution.get("measure"))

    @property
    def named(self) -> bool:
        """Its nodes were named, not chosen by their size."""
        return bool(self.attribution.get("named"))

    @property
    def terms(self) -> list[dict[str, Any]]:
        """Records of its own target's terms (`em_circuits.target`); none for next tokens."""
        return self.attribution.get("target", [])  # type: ignore[return-value]

    @property
    def contrast(self) -> Contrast | None:
        """Evil and safe tokens that it was built for, where the caller named them."""
        from em_circuits.contrast import Contrast  # torch, too

        own: Any = self.attribution.get("contrast")
        return None if own is None else Contrast(tuple(own["evil"]), tuple(own["safe"]))

    @property
    def imported(self) -> bool:
        """It was read from another tool's file."""
        return "imported_from" in self.extra

    @property
    def edges_shown(self) -> str:
        """The kind of edges, whether they were measured, and whether pruning took some away."""
        more = {"measured": self.is_measured, "pruned": self.pruned}
        return ", ".join([self.edge_kind, *(word for word, holds in more.items() if holds)])

    @property
    def node_parts(self) -> tuple[NodePart, ...]:
        """`parts`, written out."""
        return self.parts or tuple(
            NodePart(basis="transcoder", layer=layer) for layer in range(self.n_layers)
        )

    @property
    def basis(self) -> str:
        """What nodes are, as ``transcoder+adapter``."""
        return "+".join(dict.fromkeys(part.basis for part in self.node_parts))

    @property
    def measures(self) -> str:
        """The name of its own target, or ``next tokens``."""
        return "next tokens" if self.target is None else self.target.name

    @property
    def short_key(self) -> str:
        """The digits of the key that file names and messages show."""
        return self.key[:12]


class Compressed(Frozen):
    """A tensor that version 0.1 compressed (blosc2), as it was before."""

    dtype: Literal["float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8"]
    shape: tuple[int, ...]


class FileRecord(Frozen):
    """The metadata entry of a graph file."""

    header: GraphHeader
    texts: tuple[str, ...]
    """Of the targets."""
    compressed: dict[str, Compressed] = Field(default_factory=dict)
    """Compressed tensors of an archive that version 0.1 wrote, by name."""


def graph_key(
    prompt_id: str,
    *,
    model_fingerprint: str,
    adapter_hash: str | None,
    transcoders: str,
    transcoder_fingerprint: str | None,
    attribution: Mapping[str, Any],
) -> str:
    """SHA-256 (64 hex digits) of everything that decides a graph's content; `attribution` holds
    every parameter of attribution: targets, selection, limits, dtype."""
    return content_key(
        {
            "format_version": FORMAT_VERSION,
            "prompt_id": prompt_id,
            "model": model_fingerprint,
            "adapter": adapter_hash,
            "transcoders": transcoders,
            "transcoder_fingerprint": transcoder_fingerprint,
            "attribution": dict(attribution),
        }
    )


def read_header(path: Path) -> GraphHeader:
    """A graph's header; reads nothing else of the file.

    Raises:
        WorkFailed: If the file is corrupt, truncated, or of another format.
    """
    return read_record(path).header


def read_record(path: Path) -> FileRecord:
    """The metadata entry of a graph file; see `read_header`."""
    try:
        entries = safetensors_header(path)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise broken(path, error) from error
    metadata = entries.get("__metadata__")
    text = metadata.get(METADATA) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise WorkFailed(
            f"{path} is a safetensors file but not a graph: it has no {METADATA} entry."
        )
    try:
        text = unsealed(text)
    except DamagedText as error:
        raise broken(path, "its header is not what was written") from error
    try:
        version = json.loads(text)["header"]["format_version"]
        if version != FORMAT_VERSION:
            raise WorkFailed(
                f"Graph file {path} has format version {version}, this version reads "
                f"{FORMAT_VERSION}; build the graph again."
            )
        return FileRecord.model_validate_json(text)
    except ValidationError as error:
        raise broken(path, f"its header: {first_problem(error)}") from error
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise broken(path, f"its header cannot be read ({type(error).__name__})") from error


def require_trusted(path: Path, trust_pickle: bool) -> None:
    """Refuse a ``.pt`` file whose author is not trusted.

    Raises:
        RequestError: If it is not trusted, or not there.
    """
    if not path.is_file():
        raise RequestError(f"No file {path}.")
    if not trust_pickle:
        raise RequestError(
            f"{path} is a pickle, and reading it runs the code in it. If you trust its author, "
            "add --trust-pickle."
        )


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
