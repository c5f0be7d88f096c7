"""Which graph does a command mean: a key of the store, or a file?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from em_circuits.cli.session import Session
from pivotal_tokens.errors import RequestError, WorkFailed

if TYPE_CHECKING:
    from em_circuits.graphs import AttributionGraph, GraphStore


def graph_store(session: Session) -> GraphStore:
    """The graphs under the session's root."""
    from em_circuits.graphs import GraphStore

    return GraphStore(session.root / "graph_storage")


def load_graph(session: Session, reference: str, *, trust_pickle: bool = False) -> AttributionGraph:
    """A graph by key (or unique prefix) or by file.

    Args:
        session: Whose root is looked under.
        reference: A key, a ``.safetensors`` file or circuit-tracer's ``.pt``.
        trust_pickle: Needed for ``.pt``.

    Raises:
        RequestError: If there is no such graph, or a ``.pt`` is not trusted.
    """
    path = Path(reference)
    if path.suffix == ".pt":
        return read_pt(path, trust_pickle=trust_pickle)
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
        raise RequestError(f"{path} is a directory: give a graph's key, a .safetensors or a .pt")
    return graph_store(session).load(reference)


def read_pt(path: Path, *, trust_pickle: bool) -> AttributionGraph:
    """circuit-tracer's graph.

    Raises:
        RequestError: If the file is not trusted, is not there, or is not such a graph.
    """
    if not path.is_file():
        raise RequestError(f"No file {path}.")
    if not trust_pickle:
        raise RequestError(
            f"{path} is a pickle, and reading it runs the code in it. If you trust its author, "
            "add --trust-pickle."
        )
    from em_circuits.graphs.interop import import_pt

    return import_pt(path, trust_pickle=True)
