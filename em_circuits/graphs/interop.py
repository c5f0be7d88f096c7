"""circuit-tracer's ``.pt`` files: graphs read from and written to them.

A ``.pt`` is a pickle: reading it runs code, so it needs ``trust_pickle`` and happens in another
process. A graph of circuit-tracer alone has no raw logits, no ranks and no gradient scores: those
are None, and everything that needs edges only works on it. What a ``.pt`` has no field for (which
of the two models, its fingerprint, its adapter) stands in an entry of its own in the archive that
the file is: circuit-tracer does not look at it, and reading it runs no code.

    graph = import_pt(Path("graph.pt"), trust_pickle=True)
    export_pt(graph, Path("copy.pt"))  # circuit_tracer.graph.Graph.from_pt reads it
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import load_file
from torch import Tensor

from em_circuits.graphs import unpickle
from em_circuits.graphs.edges import Edges, computed_in
from em_circuits.graphs.graph import AttributionGraph, LogitTargets
from em_circuits.graphs.header import FORMAT_VERSION, GraphHeader, Selection, require_trusted
from em_circuits.graphs.layout import NodeLayout
from em_circuits.models.foreign import require_circuit_tracer
from pivotal_tokens.artefacts import atomic_path, content_key, sha256_file
from pivotal_tokens.errors import RequestError, WorkFailed
from pivotal_tokens.schema import ModelName, prompt_id

EXTRA = "circuit_tracer"
"""Entry of a header's `extra` that holds `circuit_tracer_record`."""
OWN_ENTRY = "em_circuits_header.json"
"""Entry of the archive with what circuit-tracer's fields have no place for."""
_KEPT = (
    "prompt_id",
    "text",
    "tokens",
    "model",
    "fingerprint",
    "adapter_hash",
    "transcoders",
    "transcoder_fingerprint",
    "dtype",
    "selection",
    "attribution",
    "d_vocab",
    "tokenizer_name",
)
"""Fields of the header in it; not the key, since logits and ranks do not come back."""
_BOS = ("<|begin_of_text|>", "<bos>", "<s>", "<|endoftext|>", "<|bos|>")


def import_pt(path: Path, *, trust_pickle: bool = False) -> AttributionGraph:
    """Read a graph that circuit-tracer wrote.

    Args:
        path: The ``.pt`` file.
        trust_pickle: The caller trusts the file with the user's rights.

    Returns:
        The graph. Its key is made from the file's hash; the model's fingerprint is not known.

    Raises:
        RequestError: If the file is not trusted, is not there, or is not such a graph.
        WorkFailed: If it holds NaN or infinite edges; the message names the edge and the precision
            of the file.
    """
    require_trusted(path, trust_pickle)
    with tempfile.TemporaryDirectory(prefix="em-circuits-import-") as directory:
        _convert(path, Path(directory))
        record = json.loads((Path(directory) / unpickle.RECORD).read_text(encoding="utf-8"))
        tensors = load_file(Path(directory) / unpickle.TENSORS)
        types = record["dtypes"]
        try:
            with computed_in(types["adjacency_matrix"], types["activation_values"]):
                return _graph(path, record, tensors)
        except (RequestError, WorkFailed, ValueError) as error:
            kind = WorkFailed if isinstance(error, WorkFailed) else RequestError
            reason = str(error).splitlines()[0].removeprefix(f"{path} ")
            raise kind(f"{path} is not a usable graph: {reason}") from error


def export_pt(graph: AttributionGraph, path: Path) -> None:
    """Write a graph so that ``circuit_tracer.graph.Graph.from_pt`` reads it.

    Args:
        graph: With its edges, and circuit-tracer's record in its header (graphs that this package
            attributes or imports have one).
        path: The ``.pt`` file.

    Raises:
        RequestError: If either is missing.
    """
    edges = graph.require_edges()
    record: Any = graph.header.extra.get(EXTRA)
    if graph.edge_kind == "full":
        raise RequestError(
            f"graph {graph.header.short_key} has full edges, which a .pt would pass off as "
            "circuit-tracer's; export it as .json, or build one with --edges frozen"
        )
    if record is None:
        raise RequestError(
            f"Graph {graph.header.short_key} lacks circuit-tracer's model configuration; build it "
            "again before exporting it as .pt."
        )
    require_circuit_tracer(".pt files")
    from circuit_tracer.attribution.targets import LogitTarget
    from circuit_tracer.graph import Graph
    from circuit_tracer.utils.tl_nnsight_mapping import UnifiedConfig

    def as_recorded(name: str, tensor: Tensor) -> Tensor:
        return tensor.to(_dtype(record["dtypes"][name]))

    cfg: dict[str, Any] = dict(record["cfg"])
    if isinstance(cfg.get("dtype"), str) and cfg["dtype"].startswith("torch."):
        cfg["dtype"] = _dtype(cfg["dtype"])
    targets = graph.targets
    exported = Graph(
        input_string=record["input_string"],
        input_tokens=as_recorded("input_tokens", graph.input_ids),
        active_features=as_recorded("active_features", graph.active),
        adjacency_matrix=as_recorded("adjacency_matrix", edges.to_dense()),
        cfg=UnifiedConfig.from_dict(cfg),
        selected_features=as_recorded("selected_features", graph.selected),
        activation_values=as_recorded("activation_values", graph.activations),
        logit_targets=[
            LogitTarget(token_str=text, vocab_idx=index)
            for text, index in zip(targets.texts, targets.token_ids.tolist(), strict=True)
        ],
        logit_probabilities=as_recorded("logit_probabilities", targets.probabilities),
        scan=record["scan"],
        vocab_size=record["vocab_size"],
    )
    with atomic_path(path) as temporary:
        exported.to_pt(str(temporary))
        with zipfile.ZipFile(temporary, "a") as archive:
            kept = graph.header.model_dump_json(include=set(_KEPT))
            inside = archive.namelist()[0].split("/")[0]  # torch reads one folder, all of it
            archive.writestr(f"{inside}/{OWN_ENTRY}", kept)


def _own_entry(path: Path) -> dict[str, Any]:
    """What `export_pt` kept of a graph's header; empty in a file of circuit-tracer's."""
    if not zipfile.is_zipfile(path):
        return {}
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(f"/{OWN_ENTRY}")]
        found = json.loads(archive.read(names[0])) if names else {}
    return {name: found[name] for name in _KEPT if name in found}


def _convert(path: Path, directory: Path) -> None:
    require_circuit_tracer(".pt files")
    # -P: the script's own directory must not shadow anything.
    command = [sys.executable, "-P", unpickle.__file__, str(path), str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        reason = lines[-1][:200] if lines else f"exit status {done.returncode}"
        raise RequestError(
            f"{path} cannot be read as a circuit-tracer graph: {reason}; give a file of "
            "circuit_tracer.graph.Graph.to_pt"
        )


def _graph(path: Path, record: dict[str, Any], tensors: dict[str, Tensor]) -> AttributionGraph:
    active = tensors["active_features"].long()
    selected = tensors["selected_features"].long()
    input_ids = tensors["input_tokens"].long().reshape(-1)
    header = _header(path, record, n_active=len(active), n_selected=len(selected))
    ids = torch.tensor([index for _, index in record["logit_targets"]], dtype=torch.int64)
    targets = LogitTargets(
        token_ids=ids,
        texts=tuple(text for text, _ in record["logit_targets"]),
        probabilities=tensors["logit_probabilities"].float(),
    )
    if selected.numel() and not 0 <= int(selected.min()) <= int(selected.max()) < len(active):
        raise RequestError(f"{path} selects features that are not active.")
    layout = NodeLayout(len(selected), header.n_layers, len(input_ids), len(ids))
    chosen = active[selected]
    return AttributionGraph(
        header=header,
        input_ids=input_ids,
        active=active,
        activations=tensors["activation_values"].float(),
        selected=selected,
        targets=targets,
        edges=Edges.from_dense(
            tensors["adjacency_matrix"],
            layout,
            chosen[:, 0].contiguous(),
            chosen[:, 1].contiguous(),
        ),
    )


def _header(path: Path, record: dict[str, Any], *, n_active: int, n_selected: int) -> GraphHeader:
    cfg, text = record["cfg"], without_bos(record["input_string"])
    scan = record["scan"]
    chosen = n_selected < n_active
    found = GraphHeader(
        key=content_key({"imported": sha256_file(path), "format_version": FORMAT_VERSION}),
        prompt_id=prompt_id(text),
        text=text,
        model=foreign_model(cfg.get("model_name")),
        transcoders=scan if isinstance(scan, str) else None,
        n_layers=int(cfg["n_layers"]),
        scan=tuple(scan) if isinstance(scan, list) else scan,
        dtype=record["dtypes"]["activation_values"].removeprefix("torch."),
        selection=Selection(
            select_by="probability" if chosen else "all",
            max_feature_nodes=n_selected if chosen else None,
        ),
        d_vocab=int(cfg["d_vocab"]),
        tokenizer_name=cfg.get("tokenizer_name"),
        extra={EXTRA: record, "imported_from": path.name},
    )
    return GraphHeader.model_validate(found.model_dump() | _own_entry(path))


def without_bos(text: str) -> str:
    """The prompt without the beginning-of-sequence token that a tokenizer put in front."""
    for bos in _BOS:
        text = text.removeprefix(bos)
    return text


def foreign_model(name: str | None) -> str:
    """What the model of a graph from elsewhere is called: never like one of a pair, which a
    directory called ``base`` would be."""
    if not name:
        return "imported"
    return f"imported {name}" if name in get_args(ModelName) else str(name)


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise RequestError(f"Unknown tensor type {name!r} in the graph's header.")
    return dtype
