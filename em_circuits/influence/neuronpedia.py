"""Pruned graphs in the format of other viewers: circuit-tracer's page and Neuronpedia.

Both read the same JSON: metadata, saved view, nodes, links. Node
ids are circuit-tracer's but for errors: its ``0_LAYER_POS`` is also the id of feature LAYER in
layer 0, so errors are ``error_LAYER_POS`` here. Link weights keep their sign.

    record = viewer_json(graph, prune(graph), tokens, ViewerOptions(scan="llama3.2-1b"))

Schemas: `circuit_tracer.frontend.graph_models` (0.5.0), and Neuronpedia's
github.com/hijohnnylin/neuronpedia, apps/webapp/app/api/graph/graph-schema.json (1.0.0).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from em_circuits.graphs.graph import AttributionGraph
from em_circuits.graphs.layout import NodeKind
from em_circuits.graphs.viewer_json import HEADER, KINDS, GraphNotes, notes_of
from em_circuits.influence.pruning import PrunedGraph
from pivotal_tokens.artefacts import content_key, library_versions
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen

SCHEMA_VERSION = 1
"""circuit-tracer's; with it a node's `feature` is the pairing number of layer and feature id."""

_ELSEWHERE = ("extra", "key", "prompt_id", "text", "tokens", "pruned")
"""Fields of the header that the JSON has a place for, or that are the reader's own."""

NEURONS = "neurons"
"""Name of the features in a graph whose nodes are neurons, unless one is given."""


class ViewerOptions(Frozen):
    """Names that a graph goes by in the viewers."""

    slug: str | None = None
    """Name of the graph there; of prompt, model and key if not given."""
    scan: str | None = None
    """Which features the nodes are: circuit-tracer's name of the transcoders (the default), or
    Neuronpedia's id of the *base* model; a merged model is known to neither."""
    source_set: str | None = None
    """Neuronpedia's name of the transcoders, so that its feature pages are linked."""


def viewer_json(
    graph: AttributionGraph,
    pruned: PrunedGraph,
    tokens: Sequence[str],
    options: ViewerOptions,
    notes: GraphNotes | None = None,
) -> dict[str, Any]:
    """The JSON of a pruned graph.

    Args:
        graph: The whole graph.
        pruned: What is left of it; `cumulative` becomes the nodes' influence, which the viewers
            compare with their threshold.
        tokens: Texts of the prompt's tokens, BOS included.
        options: Names.
        notes: Labels, pins and groups; those that the graph came with if not given. What they say
            of nodes that are not left is left out.

    Raises:
        RequestError: If the tokens are not those of the graph, or nothing names the transcoders.
    """
    if len(tokens) != len(graph.input_ids):
        raise RequestError(f"The graph has {len(graph.input_ids)} tokens, got {len(tokens)} texts.")
    notes = notes_of(graph.header) if notes is None else notes
    nodes = {int(i): _node(graph, pruned, int(i)) for i in pruned.node_mask.nonzero()[:, 0]}
    _make_unique(nodes)
    by_name = {graph.name_of(i): node for i, node in nodes.items()}
    for name, label in notes.labels.items():
        if name in by_name:
            by_name[name]["clerp"] = label

    def ids(names: Iterable[str]) -> list[str]:
        return [by_name[name]["node_id"] for name in names if name in by_name]

    edges = pruned.edges
    ends = zip(edges.sources.tolist(), edges.targets.tolist(), edges.weights.tolist(), strict=True)
    return {
        "metadata": _metadata(graph, pruned, tokens, options),
        "qParams": {
            "pinnedIds": ids(notes.pinned),
            "supernodes": [[group.name, *ids(group.members)] for group in notes.groups],
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": list(nodes.values()),
        "links": [
            {"source": nodes[s]["node_id"], "target": nodes[t]["node_id"], "weight": weight}
            for s, t, weight in ends
        ],
    }


def pairing(layer: int, feature: int) -> int:
    """Cantor's pairing number, by which the viewers name a feature of a layer."""
    return (layer + feature) * (layer + feature + 1) // 2 + feature


def _node(graph: AttributionGraph, pruned: PrunedGraph, i: int) -> dict[str, Any]:
    layout = graph.layout
    share = {"influence": float(pruned.cumulative[i])}
    match layout.kind(i):
        case NodeKind.FEATURE:
            place = graph.feature_name(i)
            layer, pos, feature = place[1:]
            # Both viewers know features under this type, per-layer ones and neurons too.
            kind, number = KINDS[NodeKind.FEATURE], pairing(layer, feature)
            name = f"{layer}_{feature}_{pos}"
            if place.module:  # a rank of an adapter, which has no feature page
                name, number = f"{place.module}_{name}", -1
            node = _place(name, number, str(layer), pos, kind)
            label = {"clerp": str(place)} if place.module else {}
            return node | share | label | {"activation": float(graph.selected_activations[i])}
        case NodeKind.ERROR:
            layer, pos = layout.error_coordinates(i)
            kind = KINDS[NodeKind.ERROR]
            return _place(f"error_{layer}_{pos}", -1, str(layer), pos, kind) | share
        case NodeKind.TOKEN:
            pos = layout.position_of(i)
            name = f"E_{int(graph.input_ids[pos])}_{pos}"
            return _place(name, pos, "E", pos, KINDS[NodeKind.TOKEN]) | share
        case NodeKind.LOGIT:
            return _logit(graph, layout.target_of(i))


def _logit(graph: AttributionGraph, i: int) -> dict[str, Any]:
    targets, last = graph.targets, len(graph.input_ids) - 1
    token, p = int(targets.token_ids[i]), float(targets.probabilities[i])
    layer = str(graph.header.n_layers + 1)
    own = _place(f"{layer}_{token}_{last}", token, layer, last, KINDS[NodeKind.LOGIT])
    # The viewers read the probability, and for logit differences the token, out of this label.
    label = f'Output "{targets.texts[i]}" (p={p:.3f})'
    first = int(targets.probabilities.argmax()) == i
    return own | {"clerp": label, "token_prob": p, "is_target_logit": first}


def _place(node_id: str, feature: int, layer: str, pos: int, kind: str) -> dict[str, Any]:
    return {
        "node_id": node_id,
        "feature": feature,
        "layer": layer,
        "ctx_idx": pos,
        "feature_type": kind,
        "token_prob": 0.0,
        "is_target_logit": False,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": node_id,
        "clerp": "",
        "influence": None,
        "activation": None,
    }


def _make_unique(nodes: dict[int, dict[str, Any]]) -> None:
    """A token that is a target twice gets a second id; nothing else can repeat."""
    seen: Counter[str] = Counter()
    for node in nodes.values():
        seen[node["node_id"]] += 1
        if seen[node["node_id"]] > 1:
            node["node_id"] = node["jsNodeId"] = f"{node['node_id']}_{seen[node['node_id']]}"


def _metadata(
    graph: AttributionGraph, pruned: PrunedGraph, tokens: Sequence[str], options: ViewerOptions
) -> dict[str, Any]:
    header = graph.header
    named = options.scan or header.scan
    if not named and {part.basis for part in header.node_parts} <= {"neuron", "adapter"}:
        named = NEURONS  # which neither viewer has pages of
    if not named:
        raise RequestError(
            f"Graph {header.short_key} does not say which transcoders it is of; give --scan."
        )
    several = [] if isinstance(named, str) else list(named)
    # circuit-tracer looks layer by layer where the name starts so (its own digits are salted).
    scan = named if isinstance(named, str) else f"custom-{content_key(several)[:12]}"
    record: dict[str, Any] = {
        "slug": options.slug or f"{header.prompt_id}-{header.model}-{header.short_key}",
        "scan": scan,
        "transcoder_list": several,
        "prompt_tokens": list(tokens),
        "prompt": header.text,
        "node_threshold": pruned.node_threshold,
        "schema_version": SCHEMA_VERSION,
        "info": {
            "description": _description(graph),
            "source_urls": [str(header.transcoders)] if header.transcoders else [],
            "generator": {"name": "em-circuits", "version": library_versions()["em-circuits"]},
            "create_time_ms": int(1000 * time.time()),
        },
        "generation_settings": {
            "model": header.model,
            "fingerprint": header.fingerprint,
            "adapter_hash": header.adapter_hash,
            "graph_key": header.key,
            "dtype": header.dtype,
            "select_by": header.selection.select_by,
            "max_feature_nodes": len(graph.selected),
            "max_n_logits": len(graph.targets),
            HEADER: header.model_dump(mode="json", exclude=set(_ELSEWHERE)),
        },
        "pruning_settings": {
            "node_threshold": pruned.node_threshold,
            "edge_threshold": pruned.edge_threshold,
        },
    }
    if options.source_set:
        record["feature_details"] = {"neuronpedia_source_set": options.source_set}
    return record


def _description(graph: AttributionGraph) -> str:
    header = graph.header
    base = header.tokenizer_name or "its base model"
    if header.model == "merged":
        tuned = f" (adapter {header.adapter_hash[:12]})" if header.adapter_hash else ""
        return f"Fine-tuned model{tuned} of {base}, through the base model's transcoders"
    return f"{header.model} model ({base})"
