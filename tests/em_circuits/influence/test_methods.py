"""Requirements of each method, and the coverage of a truncated graph."""

import dataclasses

import pytest
import torch
from synthetic import Size, contrast_of, graph_at, graph_of, synthetic_graph

from em_circuits.graphs.builder import EdgesBuilder
from em_circuits.influence import Method, Targets, influence
from pivotal_tokens.errors import RequestError

GRAPH = synthetic_graph(Size())


def test_total_effect_names_a_feature_without_activation():
    activations = GRAPH.activations.clone()
    activations[7] = 0.0
    graph = dataclasses.replace(GRAPH, activations=activations)
    where = f"node {graph.name_of(7)} has 0.0"
    with pytest.raises(RequestError, match=where):
        influence(graph, Targets.each(graph), Method.TOTAL_EFFECT)
    for method in (Method.DIRECT, Method.SIGNED, Method.ABSOLUTE):
        influence(graph, Targets.each(graph), method)


def test_activations_may_be_negative_as_those_of_neurons_are():
    """``S = w A (I - A[nodes] / a)^-1`` by dense algebra."""
    activations = GRAPH.activations.clone()
    activations[::2] *= -1
    graph = dataclasses.replace(GRAPH, activations=activations)
    own, layout = graph.layout.features, graph.layout
    dense = graph.require_edges().to_dense().double()
    scaled = dense[own, own] / activations[graph.selected].double()[:, None]
    inverse = torch.linalg.inv(torch.eye(len(scaled), dtype=torch.float64) - scaled)
    found = influence(graph, Targets.each(graph), Method.TOTAL_EFFECT).values[:, own]
    assert torch.allclose(found, dense[layout.logits, own] @ inverse, atol=1e-9)


def test_absolute_influence_refuses_a_contrast():
    ids = GRAPH.targets.token_ids.tolist()
    with pytest.raises(RequestError, match="no negative weights"):
        influence(GRAPH, contrast_of(GRAPH, ids[:1], ids[1:2]), Method.ABSOLUTE)


def test_methods_can_be_named():
    assert influence(GRAPH, Targets.each(GRAPH), Method("direct")).method is Method.DIRECT
    assert [str(m) for m in Method] == [
        "direct",
        "total_effect",
        "signed_influence",
        "absolute_influence",
    ]


def test_weights_of_another_graph_are_refused():
    targets = Targets(torch.ones(1, 5, dtype=torch.float64), ("x",), (None,))
    with pytest.raises(RequestError, match="5 logits, the graph has 3"):
        influence(GRAPH, targets, Method.DIRECT)


def test_a_contrast_is_the_difference_of_its_sides():
    ids = GRAPH.targets.token_ids.tolist()
    whole = influence(GRAPH, contrast_of(GRAPH, [ids[0]], ids[1:]), Method.TOTAL_EFFECT).values[0]
    each = influence(GRAPH, Targets.each(GRAPH), Method.TOTAL_EFFECT).values
    expected = each[0] - each[1:].mean(0)
    assert torch.allclose(whole[GRAPH.layout.sources], expected[GRAPH.layout.sources])


def test_direct_effects_are_the_logit_rows():
    values = influence(GRAPH, Targets.each(GRAPH), Method.DIRECT).values
    expected = GRAPH.edges.logit_rows().double()
    assert torch.equal(values[:, GRAPH.layout.sources], expected)


def test_shares_of_absolute_influence_add_up():
    """Each row is a distribution over its sources, so tokens and errors get all there is."""
    graph = synthetic_graph(Size(n_features=200))
    values = influence(graph, Targets.each(graph), Method.ABSOLUTE).values
    ends = values[:, graph.layout.errors].sum(1) + values[:, graph.layout.tokens].sum(1)
    assert torch.allclose(ends, torch.ones(3, dtype=torch.float64))


def truncated(keep):
    """A graph of some of the active features, built as attribution builds it."""
    whole = graph_at(
        [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2)], n_layers=3, n_pos=3, n_logits=2, seed=4
    )
    matrix, layout = whole.edges.to_dense(), whole.layout
    active = whole.active
    builder = EdgesBuilder(
        active[:, 0].contiguous(), active[:, 1].contiguous(), n_layers=3, n_pos=3, n_logits=2
    )
    builder.add_features(torch.arange(5), matrix[layout.features])
    builder.add_logits(torch.arange(2), matrix[layout.logits])
    edges = builder.build(torch.tensor(keep))
    graph = graph_of(edges.to_dense(), edges.layout, active, torch.tensor(keep))
    return whole, dataclasses.replace(graph, edges=edges)


def test_coverage_is_one_where_every_active_feature_is_a_node():
    _, graph = truncated([0, 1, 2, 3, 4])
    assert influence(graph, Targets.each(graph), Method.TOTAL_EFFECT).coverage.tolist() == [1, 1]


def test_coverage_is_the_share_of_row_mass_that_has_a_node():
    whole, graph = truncated([1, 4])
    rows = whole.edges.logit_rows().double().abs()
    expected = 1 - rows[:, [0, 2, 3]].sum(1) / rows.sum(1)
    found = influence(graph, Targets.each(graph), Method.DIRECT).coverage
    assert torch.allclose(found, expected)


def test_coverage_weighs_a_row_by_what_it_carries():
    whole, graph = truncated([1, 4])
    matrix = whole.edges.to_dense().double().abs()
    found = influence(graph, Targets.each(graph), Method.TOTAL_EFFECT)
    for i, logit in enumerate(range(whole.layout.n_nodes - 2, whole.layout.n_nodes)):
        carried = {logit: 1.0}
        for node, row in enumerate((1, 4)):
            activation = float(graph.selected_activations[node])
            carried[row] = abs(float(found.values[i, node])) / activation
        inside = sum(c * (matrix[r].sum() - matrix[r, [0, 2, 3]].sum()) for r, c in carried.items())
        everything = sum(c * matrix[r].sum() for r, c in carried.items())
        assert float(found.coverage[i]) == pytest.approx(float(inside / everything))


def test_unknown_coverage_is_none():
    graph = synthetic_graph(Size(n_unselected=5))
    assert graph.edges.outside_mass is None
    assert influence(graph, Targets.each(graph), Method.SIGNED).coverage is None
