"""Nodes by name: what is meant, and what is not there."""

import pytest
from synthetic import Size, synthetic_graph

from em_circuits.influence.results import NamedNode
from pivotal_tokens.errors import RequestError

GRAPH = synthetic_graph(Size(n_features=20, n_unselected=10))


def test_every_source_is_found_by_its_name():
    for i in range(GRAPH.layout.n_sources):
        assert GRAPH.node_named(GRAPH.name_of(i)) == i


def test_tokens_and_logits_carry_their_token():
    layout, targets = GRAPH.layout, GRAPH.targets
    token = NamedNode.of(GRAPH, layout.token_index(2))
    assert (token.token_id, token.text) == (int(GRAPH.input_ids[2]), None)
    logit = NamedNode.of(GRAPH, layout.logit_index(1))
    assert (logit.token_id, logit.text) == (int(targets.token_ids[1]), targets.texts[1])
    assert NamedNode.of(GRAPH, 0).token_id is None


def test_a_feature_that_fires_unselected_is_distinguished_from_a_silent_one():
    chosen = set(GRAPH.selected.tolist())
    left_out = next(i for i in range(len(GRAPH.active)) if i not in chosen)
    name = "/".join(str(x) for x in GRAPH.active[left_out].tolist())
    with pytest.raises(RequestError, match="is no node"):
        GRAPH.node_named(name)
    with pytest.raises(RequestError, match="does not fire"):
        GRAPH.node_named("0/0/999999")


@pytest.mark.parametrize("name", ["", "17", "1/2", "error:1", "token:x", "1/2/3/4", "-1/2/3"])
def test_other_names_are_refused(name):
    with pytest.raises(RequestError, match="names no node"):
        GRAPH.node_named(name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("99/0/1", "no features of layer 99"),
        ("0/99/1", "has positions 0 to"),
        ("down_proj:0/1/0", "no module down_proj in layer 0"),
        ("error:99/0", "The graph has"),
        ("error:0/99", "The graph has"),
        ("token:99", "The graph has"),
    ],
)
def test_places_outside_the_graph_are_refused(name, reason):
    with pytest.raises(RequestError, match=reason):
        GRAPH.node_named(name)
