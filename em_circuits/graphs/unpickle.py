"""Conversion of circuit-tracer ``.pt`` files in a separate process: reading one runs its code.

The process is started only when the caller trusts the file: it writes the graph's tensors
to a safetensors file and the rest to JSON, which the caller then reads. This file imports nothing
of the package, so that it runs as a bare script.

    python -P unpickle.py graph.pt OUTPUT_DIRECTORY
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

TENSORS = "tensors.safetensors"
RECORD = "record.json"
_FIELDS = (
    "adjacency_matrix",
    "active_features",
    "input_tokens",
    "selected_features",
    "activation_values",
    "logit_probabilities",
)


def circuit_tracer_record(graph: Any) -> dict[str, Any]:
    """What a `circuit_tracer.graph.Graph` holds beside tensors, as JSON values.

    A graph's header keeps it, so that the graph can be written for circuit-tracer again.
    """
    scan = graph.scan
    return {
        "input_string": graph.input_string,
        "logit_targets": [[str(text), int(index)] for text, index in graph.logit_targets],
        "vocab_size": int(graph.vocab_size),
        "scan": list(scan) if isinstance(scan, (list, tuple)) else scan,
        "cfg": {name: _plain(value) for name, value in graph.cfg.to_dict().items()},
        "dtypes": {name: str(getattr(graph, name).dtype) for name in _FIELDS},
    }


def convert(path: Path, directory: Path) -> None:
    """Read a ``.pt``, running its code, and write it without pickle."""
    from circuit_tracer.graph import Graph
    from safetensors.torch import save_file

    fields = torch.load(path, weights_only=False, map_location="cpu")
    graph = Graph(**graph_fields(fields))
    tensors = {name: getattr(graph, name).detach().cpu().contiguous() for name in _FIELDS}
    save_file(tensors, directory / TENSORS)
    record = json.dumps(circuit_tracer_record(graph), ensure_ascii=False)
    (directory / RECORD).write_text(record, encoding="utf-8")


def graph_fields(fields: Any) -> dict[str, Any]:
    """What a ``.pt`` of any version holds, as arguments of the installed `Graph`.

    Versions 0.1 to 0.3 have a tensor ``logit_tokens`` and no ``vocab_size``; later ones
    ``logit_targets``, which were a tensor at first; those after 0.5 ``scan_name`` for ``scan``.

    Raises:
        ValueError: If it is no such record, or lacks what every version has.
    """
    from circuit_tracer.attribution.targets import LogitTarget

    if not isinstance(fields, dict):
        raise ValueError(f"it holds a {type(fields).__name__}, not the fields of a graph")
    targets = fields.get("logit_targets", fields.get("logit_tokens"))
    if isinstance(targets, torch.Tensor):
        # The text of a target was not kept: its id stands for it.
        targets = [LogitTarget(f"[{i}]", int(i)) for i in targets.reshape(-1).tolist()]
    found = {name: fields.get(name) for name in (*_FIELDS, "input_string", "cfg")}
    found["logit_targets"] = targets
    if absent := [name for name, value in found.items() if value is None]:
        raise ValueError(f"it has no {', '.join(absent)}")
    found["scan"] = fields.get("scan", fields.get("scan_name"))
    found["vocab_size"] = fields.get("vocab_size")
    return found


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)  # torch.float32 becomes "torch.float32"


if __name__ == "__main__":
    torch.set_num_threads(1)
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
