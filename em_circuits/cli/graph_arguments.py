"""Arguments of commands that read a graph: the graph, and the targets of influence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import click
from pydantic import Field

from em_circuits.cli.options import Options
from em_circuits.cli.session import Session
from em_circuits.graphs.header import GraphHeader, require_trusted
from em_circuits.graphs.store import GraphStore
from pivotal_tokens.errors import RequestError, WorkFailed
from pivotal_tokens.schema import ModelName

if TYPE_CHECKING:
    from em_circuits.graphs import AttributionGraph
    from em_circuits.influence import Targets

graph_argument = click.argument("graph", metavar="KEY|PROMPT|FILE")
FOREIGN = (".pt", ".json")
"""Endings of graph files of other tools."""
OWN = "own"
"""The target that a graph was built for (``graphs build --continuation``)."""
Share = Annotated[float, Field(ge=0, le=1)]
Weighting = Literal["uniform", "probability"]


class FileOptions(Options):
    """Options of every command that reads a graph file."""

    trust_pickle: bool = False
    """The author of a .pt may run code here."""


class GraphOptions(FileOptions):
    """Options of every command that reads a graph."""

    model: ModelName = "merged"
    """Of PROMPT's graphs, this model's."""
    edges: Literal["frozen", "full", "measured"] | None = None
    """Of PROMPT's graphs, the one with these edges. [default: full, where there is such a graph]"""


class TargetOptions(GraphOptions):
    """Options of every command that weighs targets."""

    weighting: Weighting = "uniform"
    """Within each side of a contrast."""


def graph_store(session: Session) -> GraphStore:
    """The graphs under the session's root."""
    return GraphStore(session.root / "graph_storage")


def load_graph(session: Session, reference: str, options: GraphOptions) -> AttributionGraph:
    """A graph by its key, its prompt's id (or a unique prefix of either), or its file.

    Raises:
        RequestError: If there is no such graph, or a ``.pt`` is not trusted.
    """
    path = Path(reference)
    if path.suffix in FOREIGN:
        return read_foreign(path, trust_pickle=options.trust_pickle)
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise RequestError(f"no graph file {path}")
        from em_circuits.graphs.files import read_graph

        try:
            return read_graph(path)
        except WorkFailed as error:
            reason = str(error).splitlines()[0].split(";")[0]
            raise RequestError(f"{reason}; give a graph file of this package") from error
    if path.is_dir():
        raise RequestError(
            f"{path} is a directory: give a graph's key, a .safetensors, .pt or .json"
        )
    store = graph_store(session)
    return store.load(store.key_of(reference, model=options.model, edges=options.edges))


def read_foreign(path: Path, *, trust_pickle: bool) -> AttributionGraph:
    """circuit-tracer's graph (``.pt``), or a pruned one of the graph viewers (``.json``).

    Raises:
        RequestError: If the file is not trusted, is not there, or is not such a graph.
    """
    if path.suffix == ".json":
        from em_circuits.graphs.viewer_json import import_json

        return import_json(path)
    require_trusted(path, trust_pickle)
    from em_circuits.graphs.interop import import_pt

    return import_pt(path, trust_pickle=trust_pickle)


def targets_of(
    session: Session,
    graph: AttributionGraph,
    text: str,
    weighting: Literal["uniform", "probability"],
) -> Targets:
    """What ``--targets`` means for a graph.

    Args:
        text: ``own``, ``all``, ``evil-safe``, ``probabilities``, ``ID,ID`` or
            ``EVIL,EVIL:SAFE,SAFE``.

    Raises:
        RequestError: If it is none of these, names tokens that are no targets, or has no contrast.
    """
    from em_circuits.contrast import Contrast
    from em_circuits.influence import Targets

    if text == OWN:
        return Targets.own(graph)
    if text == "all":
        return Targets.each(graph)
    require_next_tokens(graph.header, text)
    if text == "probabilities":
        return Targets.probabilities(graph)
    if text == "evil-safe":
        with session.open_store() as store:
            words = Contrast.from_labels(store.labels.of(graph.header.prompt_id).by_token)
    elif ":" in text:
        evil, _, safe = text.partition(":")
        words = Contrast(tuple(token_ids(evil)), tuple(token_ids(safe)))
    else:
        return Targets.tokens(graph, token_ids(text))
    return Targets.contrast(graph, words, weighting=weighting)


def asked_targets(graph: AttributionGraph, text: str) -> str:
    """What ``--targets`` is: as typed, or else the graph's own target where it has one."""
    source = click.get_current_context().get_parameter_source("targets")
    typed = source is not click.core.ParameterSource.DEFAULT
    return text if typed or graph.target is None else OWN


def require_next_tokens(header: GraphHeader, asked: str) -> None:
    """Refuse to ask a graph of another target for next tokens.

    Raises:
        RequestError: If it was built for a target of its own.
    """
    if header.target is not None:
        raise RequestError(
            f"{asked}: graph {header.short_key} is of {header.target.name}, not of next tokens; "
            "give own, or all for each of its terms"
        )


def token_ids(text: str) -> list[int]:
    """Token ids of a comma-separated list.

    Raises:
        RequestError: If it is none.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise RequestError(
            f"{text!r}: give token ids (12,34), EVIL:SAFE ids (12,34:56), evil-safe, "
            "all, probabilities, or own (what the graph was built for)"
        )
    return [int(part) for part in parts]
