"""Which node is meant by ``2/11/431``, ``error:2/11`` or ``token:11``?

A feature is LAYER/POSITION/ID, never its index: node i is another feature in every graph.

    node_named(graph, "2/11/431")
    place(graph, 17)  # {"index": 17, "kind": "feature", "layer": 2, "position": 11, ...}
"""

from __future__ import annotations

import re
from typing import Any

import torch

from em_circuits.graphs.graph import AttributionGraph
from em_circuits.graphs.layout import NodeKind
from pivotal_tokens.errors import RequestError

_FEATURE = re.compile(r"(\d+)/(\d+)/(\d+)")
_ERROR = re.compile(r"error:(\d+)/(\d+)")
_TOKEN = re.compile(r"token:(\d+)")


def node_named(graph: AttributionGraph, name: str) -> int:
    """Index of the feature, error or token node of that name.

    Raises:
        RequestError: If the name has none of the three forms, or the graph has no such layer,
            position or node; a feature that fires without being a node is told from one that does
            not fire.
    """
    text = name.strip()
    if found := _FEATURE.fullmatch(text):
        return _feature(graph, [int(part) for part in found.groups()], text)
    if found := _ERROR.fullmatch(text):
        return graph.layout.error_index(int(found[1]), int(found[2]))
    if found := _TOKEN.fullmatch(text):
        return graph.layout.token_index(int(found[1]))
    raise RequestError(
        f"{name!r} names no node: give LAYER/POSITION/ID, error:LAYER/POSITION or token:POSITION"
    )


def place(graph: AttributionGraph, i: int) -> dict[str, Any]:
    """What and where a node is; what does not apply is null."""
    layout = graph.layout
    kind = layout.kind(i)
    layer = position = feature = None
    if kind is NodeKind.FEATURE:
        layer, position, feature = graph.selected_features[i].tolist()
    elif kind is NodeKind.ERROR:
        layer, position = layout.error_coordinates(i)
    elif kind is NodeKind.TOKEN:
        position = layout.position_of(i)
    return {
        "index": i,
        "kind": str(kind),
        "layer": layer,
        "position": position,
        "feature": feature,
    }


def place_and_token(graph: AttributionGraph, i: int) -> dict[str, Any]:
    """`place`, with the id and text of the token that a token or logit node is of.

    The text of an input token is null: a graph keeps the ids of its prompt, not a tokenizer.
    """
    where = place(graph, i)
    token_id = text = None
    if where["kind"] == NodeKind.TOKEN:
        token_id = int(graph.input_ids[where["position"]])
    elif where["kind"] == NodeKind.LOGIT:
        target = graph.layout.target_of(i)
        token_id, text = int(graph.targets.token_ids[target]), graph.targets.texts[target]
    return {**where, "token_id": token_id, "text": text}


def _feature(graph: AttributionGraph, coordinates: list[int], text: str) -> int:
    graph.layout.error_index(*coordinates[:2])  # there are such a layer and such a position
    wanted = torch.tensor(coordinates)
    found = (graph.selected_features == wanted).all(1).nonzero()[:, 0]
    if len(found):
        return int(found[0])
    active = bool((graph.active == wanted).all(1).any())
    reason = (
        "fires there but is no node, so its edges are unknown; build with a higher --max-features"
        if active
        else "does not fire there, so it has no effect"
    )
    raise RequestError(f"feature {text} of graph {graph.header.key[:12]} {reason}")
