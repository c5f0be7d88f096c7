"""Files of attribution graphs: safetensors, tensors uncompressed, so that edges are memory-mapped.

Nothing is unpickled. The library's own `save_file` turns every tensor into bytes first, which
doubles a large graph in memory; the format is a header of JSON and the tensors behind it, so here
they are written as they lie.

    write_graph(path, graph)
    graph = read_graph(path)  # WorkFailed, naming the file, if it is corrupt or truncated
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from torch import Tensor

from em_circuits.graphs.edges import Edges
from em_circuits.graphs.graph import AttributionGraph, LogitTargets
from em_circuits.graphs.header import METADATA, Compressed, FileRecord, broken, read_record
from em_circuits.graphs.structure import Structure
from pivotal_tokens.artefacts import atomic_path
from pivotal_tokens.errors import RequestError, WorkFailed
from pivotal_tokens.seal import sealed

_EDGE_PARTS = ["values", "logit_values", "extra_index", "extra_values", "row_mass", "outside_mass"]
_TARGET_PARTS = ("token_ids", "probabilities", "logits", "ranks")
_INTEGERS = (torch.int32, torch.int64)
_TYPES = {
    "input_ids": _INTEGERS,
    "active": _INTEGERS,
    "selected": _INTEGERS,
    "activations": (torch.float32,),
    "gradient": (torch.float32,),
    "targets.token_ids": (torch.int64,),
    "targets.probabilities": (torch.float32,),
    "targets.logits": (torch.float32,),
    "targets.ranks": (torch.int64,),
    **{
        f"{kind}.{name}": types
        for kind in ("edges", "measured")
        for name, types in (
            ("values", (torch.float32, torch.bfloat16)),
            ("logit_values", (torch.float32, torch.bfloat16)),
            ("extra_index", (torch.int64,)),
            ("extra_values", (torch.float32,)),
            ("row_mass", (torch.float64,)),
            ("outside_mass", (torch.float64,)),
        )
    },
}
_AXES = {"input_ids": 1, "active": 2, "selected": 1, "activations": 1}
_DAMAGE = (
    AttributeError,  # a type of a compressed tensor that torch has not
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,  # torch's, of shapes and types
    SafetensorError,
    TypeError,
    ValueError,
)
"""What torch and safetensors raise while they read a damaged file."""
_TYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
}


def write_graph(path: Path, graph: AttributionGraph) -> None:
    """Write a graph, whole or not at all."""
    record = FileRecord(header=graph.header, texts=graph.targets.texts)
    metadata = {METADATA: sealed(record.model_dump_json())}
    with atomic_path(path) as temporary:
        _write_tensors(temporary, _tensors(graph), metadata)


def read_graph(path: Path) -> AttributionGraph:
    """A graph; its edges stay on disk until they are used.

    Raises:
        RequestError: If version 0.1 compressed the file and blosc2 is not installed.
        WorkFailed: If the file is corrupt, truncated, or of another format.
    """
    record = read_record(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {n: _tensor(file, path, record, n) for n in file.keys()}  # noqa: SIM118
        return _graph(record, tensors)
    except NotInstalled:
        raise
    except (*_DAMAGE, RequestError, WorkFailed) as error:
        raise broken(path, error) from error


def check_graph(path: Path) -> AttributionGraph:
    """A graph of which every value was looked at, also what no hash of a forged file can say.

    Beside `read_graph`, each row's mass is summed again, and the target that it was built for is
    read; of a large graph that takes as long as hashing it.

    Raises:
        RequestError: As `read_graph`.
        WorkFailed: If the file is corrupt, or what it says does not fit together.
    """
    graph = read_graph(path)
    try:
        for edges in (graph.edges, graph.measured):
            if edges is not None:
                edges.check_masses()
        _ = graph.target
    except (*_DAMAGE, RequestError, WorkFailed) as error:
        raise broken(path, error) from error
    return graph


def read_logit_rows(path: Path) -> Float32[Tensor, "logit source"]:
    """Direct edges of every source to every target; nothing else of the file is read.

    Raises:
        RequestError: If the file keeps no edges.
        WorkFailed: If the file is corrupt or truncated.
    """
    record = read_record(path)
    try:
        with safe_open(path, framework="pt") as file:
            if "edges.logit_values" not in file.keys():  # noqa: SIM118
                raise RequestError(f"Graph file {path} keeps scores but no edges.")
            return _tensor(file, path, record, "edges.logit_values").float()
    except _DAMAGE as error:
        raise broken(path, error) from error


def tensor_bytes(graph: AttributionGraph) -> int:
    """Bytes that a graph's tensors take in a file."""
    return sum(t.numel() * t.element_size() for t in _tensors(graph).values())


class NotInstalled(RequestError):
    """A file of version 0.1 needs a library that is not installed."""


def _tensor(file: Any, path: Path, record: FileRecord, name: str) -> Tensor:
    """One tensor: mapped, or decompressed from an archive of version 0.1."""
    stored: Tensor = file.get_tensor(name)
    how = record.compressed.get(name)
    return stored if how is None else _decompressed(stored, how, path)


def _decompressed(packed: Tensor, how: Compressed, path: Path) -> Tensor:
    try:
        import blosc2
    except ImportError as error:
        raise NotInstalled(
            f"{path} is an archive of version 0.1: pip install blosc2 to read it, and write it "
            "uncompressed with 'em-circuits graphs archive --undo'"
        ) from error
    dtype: torch.dtype = getattr(torch, how.dtype)
    try:
        chunks = blosc2.schunk_from_cframe(packed.numpy().tobytes())
        expected = math.prod(how.shape) * dtype.itemsize
        if chunks.nbytes != expected:
            raise ValueError(f"{chunks.nbytes} bytes, expected {expected}")
        values = torch.empty(math.prod(how.shape), dtype=dtype)
        into = values.view(torch.uint8)
        if len(into):
            chunks.get_slice(0, len(chunks), out=into.numpy())
    except RuntimeError as error:
        raise ValueError(f"blosc2: {error}") from error
    return values.reshape(how.shape)


def _tensors(graph: AttributionGraph) -> dict[str, Tensor]:
    tensors: dict[str, Tensor | None] = {
        "input_ids": graph.input_ids,
        "active": graph.active.int(),
        "activations": graph.activations,
        "selected": graph.selected.int(),
        "gradient": graph.gradient,
    }
    tensors |= {f"targets.{name}": getattr(graph.targets, name) for name in _TARGET_PARTS}
    for kind, edges in (("edges", graph.edges), ("measured", graph.measured)):
        if edges is not None:
            tensors |= {f"{kind}.{name}": getattr(edges, name) for name in _EDGE_PARTS}
    return {name: t.detach().cpu().contiguous() for name, t in tensors.items() if t is not None}


def _graph(record: FileRecord, tensors: dict[str, Tensor]) -> AttributionGraph:
    header, texts = record.header, record.texts
    for name, expected in _TYPES.items():
        if name in tensors and tensors[name].dtype not in expected:
            raise RequestError(f"{name} is of type {tensors[name].dtype}")
    for name, n_axes in _AXES.items():
        if tensors[name].ndim != n_axes:
            raise RequestError(f"{name} has {tensors[name].ndim} axes, expected {n_axes}")
    active, selected = tensors["active"].long(), tensors["selected"].long()
    layout = header.layout(
        n_features=len(selected), n_pos=len(tensors["input_ids"]), n_logits=len(texts)
    )
    edges, measured = (
        Edges(
            Structure.of(layout, active[selected]),
            values=tensors[f"{kind}.values"],
            logit_values=tensors[f"{kind}.logit_values"],
            extra_index=tensors[f"{kind}.extra_index"],
            extra_values=tensors[f"{kind}.extra_values"],
            row_mass=tensors[f"{kind}.row_mass"],
            outside_mass=tensors.get(f"{kind}.outside_mass"),
        )
        if f"{kind}.values" in tensors
        else None
        for kind in ("edges", "measured")
    )
    return AttributionGraph(
        header=header,
        input_ids=tensors["input_ids"],
        active=active,
        activations=tensors["activations"],
        selected=selected,
        targets=LogitTargets(
            token_ids=tensors["targets.token_ids"],
            texts=texts,
            probabilities=tensors["targets.probabilities"],
            logits=tensors.get("targets.logits"),
            ranks=tensors.get("targets.ranks"),
        ),
        edges=edges,
        gradient=tensors.get("gradient"),
        measured=measured,
    )


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    # Wide types first, so that each lies aligned.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name in order:
        tensor = tensors[name]
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _TYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in order:
            values = tensors[name].contiguous().reshape(-1)
            file.write(values.view(torch.uint8).numpy().data)
