"""A graph that contradicts itself cannot be made."""

import dataclasses

import jaxtyping
import pytest
import torch
from synthetic import Size, header, synthetic_graph

from em_circuits.graphs.graph import LogitTargets
from em_circuits.graphs.header import GraphHeader
from em_circuits.influence import Method, Targets, influence
from pivotal_tokens.errors import RequestError

GRAPH = synthetic_graph(Size(n_features=20, n_unselected=7))


@pytest.fixture
def without_shape_types():
    """In production nothing but the code itself checks shapes."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def changed(**fields):
    return dataclasses.replace(GRAPH, **fields)


def swapped(active):
    active = active.clone()
    active[[3, 4]] = active[[4, 3]]
    return active


def with_value(tensor, index, value):
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


def test_a_feature_node_is_named_through_the_selection():
    i = 5
    chosen = int(GRAPH.selected[i])
    assert GRAPH.selected_features[i].tolist() == GRAPH.active[chosen].tolist()
    assert GRAPH.selected_activations[i] == GRAPH.activations[chosen]


def test_sizes_come_from_the_parts():
    assert GRAPH.layout.n_features == 20
    assert GRAPH.layout.n_nodes == 20 + 5 * 6 + 3
    assert GRAPH.truncated
    assert not synthetic_graph(Size(n_features=5)).truncated


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activations": GRAPH.activations[:-1]}, r"activations must have shape \(27,\)"),
        ({"activations": with_value(GRAPH.activations, 2, torch.nan)}, r"finite, got nan at \[2\]"),
        ({"active": swapped(GRAPH.active)}, "sorted by"),
        ({"active": with_value(GRAPH.active, (26, 0), 4)}, r"layer 0..4, expected 0..3"),
        ({"active": with_value(GRAPH.active, (26, 1), 6)}, r"position 1..6, expected 0..5"),
        ({"active": with_value(GRAPH.active, (0, 2), -1)}, "feature id -1"),
        ({"selected": GRAPH.selected.flip(0)}, "ascending"),
        ({"selected": with_value(GRAPH.selected, 19, 27)}, r"0..26, got"),
        ({"selected": GRAPH.selected[1:]}, "edges are of other features"),
        ({"gradient": torch.zeros(3, 4)}, r"gradient must have shape \(3, 27\)"),
        ({"gradient": torch.full((3, 27), torch.inf)}, "gradient must be finite"),
    ],
)
def test_a_contradiction_is_refused_with_what_was_expected(without_shape_types, fields, message):
    with pytest.raises(RequestError, match=message):
        changed(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"probabilities": torch.rand(2)}, "probabilities must have shape"),
        ({"probabilities": torch.tensor([0.1, -0.1, 0.2])}, "not negative"),
        ({"probabilities": torch.tensor([0.1, torch.nan, 0.2])}, "finite"),
        ({"token_ids": torch.tensor([1, -2, 3])}, "token_ids"),
        ({"logits": torch.full((3,), torch.inf)}, "logits must be finite"),
        ({"ranks": torch.tensor([0, 1, 2])}, "ranks start at 1"),
    ],
)
def test_targets_are_checked(without_shape_types, fields, message):
    with pytest.raises(RequestError, match=message):
        dataclasses.replace(GRAPH.targets, **fields)


def test_absent_logits_are_none_and_not_zero():
    targets = LogitTargets(torch.tensor([4]), (" a",), torch.tensor([0.5]))
    assert targets.logits is None
    assert targets.ranks is None


def test_a_target_is_found_by_token_id():
    targets = LogitTargets(torch.tensor([9, 4, 9]), ("a", "b", "a"), torch.rand(3))
    assert targets.index_of(9) == 0
    assert targets.index_of(4) == 1
    assert targets.index_of(5) is None


def test_a_graph_without_edges_says_how_to_get_them_back():
    with pytest.raises(RequestError, match="graphs build 0123456789ab"):
        changed(edges=None).require_edges()


def test_a_header_survives_json_and_refuses_unknown_fields():
    made = header(GRAPH.layout)
    assert GraphHeader.model_validate_json(made.model_dump_json()) == made
    with pytest.raises(ValueError, match="extra"):
        header(GRAPH.layout, colour="red")


def test_a_graph_and_its_influence_are_shown_on_one_line():
    key = GRAPH.header.key[:12]
    assert repr(GRAPH) == (f"AttributionGraph(merged, {key}, 20 features, 3 logits, frozen edges)")
    assert "scores only" in repr(changed(edges=None))
    found = influence(GRAPH, Targets.each(GRAPH), Method.TOTAL_EFFECT)
    assert repr(found) == f"Influence(total_effect, {key}, 3 targets, 53 nodes)"
    parts = (GRAPH.targets, GRAPH.edges, GRAPH.structure, found.targets)
    assert max(len(repr(part)) for part in parts) < 140


def test_every_node_is_found_by_the_name_it_prints():
    names = [GRAPH.name_of(i) for i in range(GRAPH.layout.n_nodes)]
    assert [GRAPH.node_named(name) for name in names] == list(range(GRAPH.layout.n_nodes))
    layer, position, feature = GRAPH.selected_features[7].tolist()
    assert GRAPH.node_named(f"{layer}/{position - 6}/{feature}") == 7  # from the end
    with pytest.raises(RequestError, match="no target"):
        GRAPH.node_named("logit:999")


def test_active_rows_are_found_by_place_in_any_order():
    """Beside a dictionary of all of them; a place that is not active has none."""
    of = {place: row for row, place in enumerate(GRAPH.names(GRAPH.active))}
    there = list(of)[::-3]
    elsewhere = [
        there[0]._replace(id=99_999),
        there[1]._replace(layer=77),
        there[2]._replace(module="q_proj"),
    ]
    places = [*there[:2], *elsewhere, *there[2:]]
    assert GRAPH.active_indices(places).tolist() == [of.get(place, -1) for place in places]
    assert GRAPH.active_indices([]).tolist() == []
    assert [GRAPH.active_index(place) for place in places[:3]] == [of[there[0]], of[there[1]], None]
