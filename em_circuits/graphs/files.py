"""How does an attribution graph become one file, and come back?

A safetensors file: tensors uncompressed, so that edges can be memory-mapped, and one metadata
entry with everything else as JSON. Reading maps the file; nothing is unpickled. An archived graph
is the same with its large tensors compressed, and is read the same way, into memory.

    write_graph(path, graph)  # archive=True: compressed
    graph = read_graph(path)  # WorkFailed, naming the file, if it is corrupt or truncated
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from torch import Tensor

from em_circuits.graphs.archive import LEAST_BYTES, compress, restore
from em_circuits.graphs.edges import Edges
from em_circuits.graphs.graph import AttributionGraph, LogitTargets
from em_circuits.graphs.header import METADATA, GraphRecord, broken, record_of
from em_circuits.graphs.layout import NodeLayout
from em_circuits.graphs.structure import Structure
from em_circuits.graphs.tensor_file import write_tensors
from pivotal_tokens.artefacts import atomic_path
from pivotal_tokens.errors import RequestError, WorkFailed


def write_graph(path: Path, graph: AttributionGraph, *, archive: bool = False) -> None:
    """Write a graph, whole or not at all.

    Args:
        path: Where.
        graph: The graph.
        archive: Compress what is large; nothing is rounded.
    """
    tensors, compressed = _tensors(graph), {}
    if archive:
        for name, tensor in tensors.items():
            if tensor.numel() * tensor.element_size() >= LEAST_BYTES:
                tensors[name], compressed[name] = compress(tensor)
    record = GraphRecord(header=graph.header, texts=graph.targets.texts, compressed=compressed)
    with atomic_path(path) as temporary:
        write_tensors(temporary, tensors, {METADATA: record.model_dump_json()})


def read_graph(path: Path) -> AttributionGraph:
    """A graph; its edges stay on disk until they are used.

    Raises:
        WorkFailed: If the file is corrupt, truncated, or of another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            record = record_of(path, file)
            tensors = {name: _tensor(file, record, name) for name in file.keys()}  # noqa: SIM118
        return _graph(record, tensors)
    except (SafetensorError, OSError, KeyError, ValueError, RequestError, WorkFailed) as error:
        raise broken(path, error) from error


def read_logit_rows(path: Path) -> Float32[Tensor, "logit source"]:
    """Direct edges of every source to every target; reads nothing else of the file.

    Raises:
        RequestError: If the file keeps no edges.
        WorkFailed: If the file is corrupt or truncated.
    """
    try:
        with safe_open(path, framework="pt") as file:
            if "edges.logit_values" not in file.keys():  # noqa: SIM118
                raise RequestError(f"Graph file {path} keeps scores but no edges.")
            return _tensor(file, record_of(path, file), "edges.logit_values").float()
    except (SafetensorError, OSError, ValueError) as error:
        raise broken(path, error) from error


def tensor_bytes(graph: AttributionGraph) -> int:
    """Bytes that a graph's tensors take in a file."""
    return sum(t.numel() * t.element_size() for t in _tensors(graph).values())


def _tensor(file: Any, record: GraphRecord, name: str) -> Tensor:
    """One tensor: mapped, or decompressed."""
    stored: Tensor = file.get_tensor(name)
    how = record.compressed.get(name)
    return stored if how is None else restore(stored, how)


def _tensors(graph: AttributionGraph) -> dict[str, Tensor]:
    targets, edges = graph.targets, graph.edges
    tensors: dict[str, Tensor | None] = {
        "input_ids": graph.input_ids,
        "active": graph.active.int(),
        "activations": graph.activations,
        "selected": graph.selected.int(),
        "targets.token_ids": targets.token_ids,
        "targets.probabilities": targets.probabilities,
        "targets.logits": targets.logits,
        "targets.ranks": targets.ranks,
        "gradient": graph.gradient,
    }
    if edges is not None:
        tensors |= {
            "edges.values": edges.values,
            "edges.logit_values": edges.logit_values,
            "edges.extra_index": edges.extra_index,
            "edges.extra_values": edges.extra_values,
            "edges.row_mass": edges.row_mass,
            "edges.outside_mass": edges.outside_mass,
        }
    return {name: t.detach().cpu().contiguous() for name, t in tensors.items() if t is not None}


def _graph(record: GraphRecord, tensors: dict[str, Tensor]) -> AttributionGraph:
    header = record.header
    active, selected = tensors["active"].long(), tensors["selected"].long()
    targets = LogitTargets(
        token_ids=tensors["targets.token_ids"],
        texts=record.texts,
        probabilities=tensors["targets.probabilities"],
        logits=tensors.get("targets.logits"),
        ranks=tensors.get("targets.ranks"),
    )
    edges = None
    if "edges.values" in tensors:
        layout = NodeLayout(
            len(selected), header.n_layers, len(tensors["input_ids"]), len(record.texts)
        )
        chosen = active[selected]
        edges = Edges(
            Structure(layout, chosen[:, 0].contiguous(), chosen[:, 1].contiguous()),
            tensors["edges.values"],
            tensors["edges.logit_values"],
            tensors["edges.extra_index"],
            tensors["edges.extra_values"],
            tensors["edges.row_mass"],
            tensors.get("edges.outside_mass"),
        )
    return AttributionGraph(
        header=header,
        input_ids=tensors["input_ids"],
        active=active,
        activations=tensors["activations"],
        selected=selected,
        targets=targets,
        edges=edges,
        gradient=tensors.get("gradient"),
    )
