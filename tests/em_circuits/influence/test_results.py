"""The JSON of ``em-circuits influence``, key by key."""

import dataclasses
import json

import pytest
from synthetic import Size, contrast_of, header, synthetic_graph

from em_circuits.influence import Method, Targets, influence
from em_circuits.influence.results import InfluenceResult
from pivotal_tokens.errors import RequestError

GRAPH = synthetic_graph(Size(n_features=10, n_layers=2, n_pos=3, n_logits=2))
IDS = GRAPH.targets.token_ids.tolist()


def shown(graph, result, top=None):
    return InfluenceResult.of(graph, result, top).model_dump(mode="json")


def test_every_node_is_there_in_node_order_with_one_value_per_target():
    result = influence(GRAPH, Targets.each(GRAPH), Method.TOTAL_EFFECT)
    shape = shown(GRAPH, result)
    names = ["method", "graph", "coverage", "unit", "targets", "unmatched", "nodes"]
    assert list(shape) == names and shape["unit"] == "logits"
    assert (shape["method"], shape["graph"]) == ("total_effect", GRAPH.header.key)
    assert shape["coverage"] == 1.0
    assert [n["index"] for n in shape["nodes"]] == list(range(GRAPH.layout.n_nodes))
    for node in shape["nodes"]:
        assert list(node) == [
            "index",
            "kind",
            "layer",
            "position",
            "feature",
            "module",
            "values",
        ]
        assert node["values"] == result.values[:, node["index"]].tolist()
    json.dumps(shape, allow_nan=False)


def test_coordinates_that_do_not_apply_are_null():
    nodes = shown(GRAPH, influence(GRAPH, Targets.each(GRAPH), Method.DIRECT))["nodes"]
    layout = GRAPH.layout

    def coordinates(i):
        return tuple(nodes[i][k] for k in ("kind", "layer", "position", "feature"))

    assert coordinates(4) == ("feature", *GRAPH.selected_features[4].tolist())
    assert coordinates(layout.error_index(1, 2)) == ("error", 1, 2, None)
    assert coordinates(layout.token_index(2)) == ("token", None, 2, None)
    assert coordinates(layout.logit_index(1)) == ("logit", None, None, None)
    assert nodes[layout.logit_index(1)]["values"] == [0.0, 1.0]


def test_a_logit_target_names_its_token():
    targets = shown(GRAPH, influence(GRAPH, Targets.each(GRAPH), Method.DIRECT))["targets"]
    assert targets[1] == {
        "index": 1,
        "token_id": IDS[1],
        "text": " token1",
        "probability": float(GRAPH.targets.probabilities[1]),
        "weights": None,
    }


def test_a_contrast_target_lists_its_weights():
    result = influence(GRAPH, contrast_of(GRAPH, IDS[:1], IDS[1:]), Method.SIGNED)
    (target,) = shown(GRAPH, result)["targets"]
    assert target["token_id"] is None
    assert target["probability"] is None
    assert target["weights"] == {str(IDS[0]): 1.0, str(IDS[1]): -1.0}
    assert target["text"] == "evil - safe (uniform)"


def test_top_keeps_the_largest_over_targets_first():
    result = influence(GRAPH, Targets.each(GRAPH), Method.TOTAL_EFFECT)
    nodes = shown(GRAPH, result, top=4)["nodes"]
    sizes = [max(abs(v) for v in n["values"]) for n in nodes]
    everything = sorted(result.values.abs().amax(0).tolist(), reverse=True)
    assert sizes == everything[:4]
    assert len(shown(GRAPH, result, top=10_000)["nodes"]) == GRAPH.layout.n_nodes
    assert shown(GRAPH, result, top=0)["nodes"] == []
    with pytest.raises(RequestError, match="--top"):
        shown(GRAPH, result, top=-1)


def test_an_influence_of_another_graph_is_refused():
    result = influence(GRAPH, Targets.each(GRAPH), Method.DIRECT)
    other = dataclasses.replace(GRAPH, header=header(GRAPH.layout, key="cd" * 32))
    with pytest.raises(RequestError, match="not cdcdcdcdcdcd"):
        shown(other, result)
