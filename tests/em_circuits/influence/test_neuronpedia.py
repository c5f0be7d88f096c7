"""The viewers' JSON holds the pruned graph, validates under both schemas, and no two ids are alike.

Neuronpedia's schema is github.com/hijohnnylin/neuronpedia's file
apps/webapp/app/api/graph/graph-schema.json (version 1.0.0), restated below in pydantic.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Literal

import pytest
import torch
from circuit_tracer.frontend.graph_models import Metadata as UpstreamMetadata
from circuit_tracer.frontend.graph_models import Model as UpstreamModel
from circuit_tracer.frontend.graph_models import Node as UpstreamNode
from pydantic import BaseModel, ConfigDict
from synthetic import Size, graph_at, header, synthetic_graph

from em_circuits.influence import prune
from em_circuits.influence.neuronpedia import ViewerOptions, pairing, viewer_json
from pivotal_tokens.errors import RequestError

GRAPH = synthetic_graph(Size(n_features=80, n_unselected=10))
TOKENS = [f"tok{i}" for i in range(len(GRAPH.input_ids))]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class FeatureDetails(_Strict):
    feature_json_base_url: str = ""
    neuronpedia_source_set: str = ""


class Info(_Strict):
    description: str = ""
    creator_name: str = ""
    source_urls: list[str] = []
    generator: dict[str, str] = {}
    create_time_ms: float = 0


class Metadata(_Strict):
    slug: str
    scan: str
    prompt_tokens: list[str]
    prompt: str
    feature_details: FeatureDetails = FeatureDetails()
    node_threshold: float
    info: Info
    generation_settings: dict[str, object]
    pruning_settings: dict[str, float]


class QParams(_Strict):
    pinnedIds: list[str]
    supernodes: list[list[str]]
    linkType: str
    clickedId: str
    sg_pos: str


class Node(_Strict):
    node_id: str
    feature: int | None
    layer: str | int
    ctx_idx: int
    feature_type: Literal[
        "cross layer transcoder", "mlp reconstruction error", "embedding", "logit"
    ]
    jsNodeId: str
    clerp: str
    influence: float | None = None
    activation: float | None = None


class Link(_Strict):
    source: str
    target: str
    weight: float


class NeuronpediaGraph(_Strict):
    metadata: Metadata
    qParams: QParams
    nodes: list[Node]
    links: list[Link]


def written(graph=GRAPH, tokens=TOKENS, **options):
    pruned = prune(graph, node_threshold=0.9, edge_threshold=0.99)
    record = viewer_json(graph, pruned, tokens, ViewerOptions(**options))
    return pruned, json.loads(json.dumps(record, allow_nan=False))


def test_both_schemas_accept_it() -> None:
    _, record = written(source_set="some-transcoders")
    upstream = UpstreamModel.model_validate(record)
    neuronpedia = NeuronpediaGraph.model_validate(record)
    assert upstream.metadata.schema_version == 1
    assert neuronpedia.metadata.feature_details.neuronpedia_source_set == "some-transcoders"
    assert len(upstream.nodes) == len(neuronpedia.nodes) > 20
    assert all(math.isfinite(link.weight) for link in neuronpedia.links)


def test_nodes_and_signed_links_are_those_of_the_pruned_graph() -> None:
    pruned, record = written()
    assert len(record["nodes"]) == int(pruned.node_mask.sum())
    weights = sorted(link["weight"] for link in record["links"])
    assert weights == sorted(pruned.edges.weights.tolist())
    assert weights[0] < 0 < weights[-1]
    ids = {node["node_id"] for node in record["nodes"]}
    assert all({link["source"], link["target"]} <= ids for link in record["links"])


def test_a_node_says_which_feature_it_is_and_how_much_it_carries() -> None:
    pruned, record = written()
    kept = pruned.node_mask.nonzero()[:, 0].tolist()
    for index, node in zip(kept, record["nodes"], strict=True):
        if node["feature_type"] != "cross layer transcoder":
            continue
        layer, pos, feature = GRAPH.selected_features[index].tolist()
        upstream = UpstreamNode.feature_node(layer, pos, feature)
        for name in ("node_id", "feature", "layer", "ctx_idx"):
            assert node[name] == getattr(upstream, name)
        assert node["activation"] == float(GRAPH.selected_activations[index])
        assert node["influence"] == float(pruned.cumulative[index])
    logits = [node for node in record["nodes"] if node["feature_type"] == "logit"]
    assert [node["token_prob"] for node in logits] == GRAPH.targets.probabilities.tolist()
    # as both viewers take the probability out of the label
    shown = [float(node["clerp"].split("(p=")[1].split(")")[0]) for node in logits]
    assert shown == pytest.approx(GRAPH.targets.probabilities.tolist(), abs=5e-4)
    best = int(GRAPH.targets.probabilities.argmax())
    assert [node["is_target_logit"] for node in logits].index(True) == best


def test_ids_are_unique_where_upstreams_collide() -> None:
    """circuit-tracer's error at (layer 1, position 2) and its feature 1 of layer 0 are "0_1_2"."""
    assert UpstreamNode.error_node(1, 2).node_id == UpstreamNode.feature_node(0, 2, 1).node_id
    graph = graph_at(
        [(layer, pos) for layer in (0, 1, 2) for pos in (1, 2) for _ in range(3)],
        n_layers=3,
        n_pos=3,
        n_logits=2,
    )
    # feature ids 0, 1, 2 at every place: each is also a layer's number; and one token twice
    active = graph.active.clone()
    active[:, 2] = torch.arange(len(active)) % 3
    targets = dataclasses.replace(graph.targets, token_ids=torch.tensor([7, 7]))
    graph = dataclasses.replace(graph, active=active, targets=targets)
    pruned = prune(graph, node_threshold=1.0, edge_threshold=1.0)
    record = viewer_json(graph, pruned, ["a", "b", "c"], ViewerOptions())
    for field in ("node_id", "jsNodeId"):
        ids = [node[field] for node in record["nodes"]]
        assert len(set(ids)) == len(ids) == int(pruned.node_mask.sum())
    errors = [n for n in record["nodes"] if n["feature_type"] == "mlp reconstruction error"]
    features = [n for n in record["nodes"] if n["feature_type"] == "cross layer transcoder"]
    upstream = [UpstreamNode.error_node(int(n["layer"]), n["ctx_idx"]).node_id for n in errors]
    assert set(upstream) & {n["node_id"] for n in features}


def test_a_merged_model_goes_under_a_base_models_id_and_says_so() -> None:
    _, record = written(scan="llama3.2-1b")
    metadata = record["metadata"]
    assert metadata["scan"] == "llama3.2-1b"
    assert "merged" in metadata["slug"] and "Fine-tuned" in metadata["info"]["description"]
    assert metadata["generation_settings"]["model"] == "merged"
    base = dataclasses.replace(GRAPH, header=header(GRAPH.layout, truncated=True, model="base"))
    assert "base" in written(base)[1]["metadata"]["info"]["description"]


def test_transcoders_that_are_named_layer_by_layer_are_listed() -> None:
    several = header(GRAPH.layout, truncated=True, scan=("layer-a", "layer-b"))
    _, record = written(dataclasses.replace(GRAPH, header=several))
    assert record["metadata"]["scan"].startswith("custom-")
    assert UpstreamMetadata(**record["metadata"]).transcoder_list == ["layer-a", "layer-b"]


def test_what_is_missing_is_named() -> None:
    with pytest.raises(RequestError, match="6 tokens, got 2 texts"):
        written(tokens=["a", "b"])
    nameless = header(GRAPH.layout, truncated=True, scan=None)
    with pytest.raises(RequestError, match="--scan"):
        written(dataclasses.replace(GRAPH, header=nameless))


def test_the_pairing_number_is_circuit_tracers() -> None:
    for layer, feature in ((0, 0), (3, 131071), (15, 7)):
        assert pairing(layer, feature) == UpstreamNode.feature_node(layer, 0, feature).feature
