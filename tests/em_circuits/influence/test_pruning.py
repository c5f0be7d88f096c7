"""Pruning keeps circuit-tracer's nodes and edges; the signed variant, what moves a contrast."""

import dataclasses

import pytest
import torch
from circuit_tracer.graph import prune_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import all_paths
from synthetic import Size, graph_at, graph_of, synthetic_graph

from em_circuits.contrast import Contrast
from em_circuits.influence import Method, Targets, influence, prune
from em_circuits.influence.pruning import _threshold
from pivotal_tokens.errors import RequestError


def mask_of(edges, n_nodes):
    mask = torch.zeros(n_nodes, n_nodes, dtype=torch.bool)
    mask[edges.targets, edges.sources] = True
    return mask


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("thresholds", [(0.8, 0.98), (0.5, 0.9), (0.95, 0.6), (0.3, 0.2)])
def test_the_kept_nodes_and_edges_are_circuit_tracers(upstream, seed, thresholds):
    graph = synthetic_graph(Size(n_features=300, n_layers=5, n_pos=7, n_logits=4), seed=seed)
    node_mask, edge_mask, cumulative = prune_graph(upstream(graph), *thresholds)
    found = prune(graph, node_threshold=thresholds[0], edge_threshold=thresholds[1])
    # circuit-tracer sums in float32: at the very threshold it may decide otherwise.
    different = (found.node_mask != node_mask).nonzero()[:, 0].tolist()
    assert set(different) <= set(found.near_threshold.tolist())
    mine = mask_of(found.edges, graph.layout.n_nodes)
    assert int((mine != edge_mask).sum()) <= 1
    assert torch.allclose(found.cumulative.float(), cumulative, atol=1e-3)
    matrix = graph.edges.to_dense()
    assert torch.equal(found.edges.weights, matrix[found.edges.targets, found.edges.sources])


# The same examples every time: at a threshold, circuit-tracer's float32 sums may fall either way.
@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    places=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=10),
    seed=st.integers(0, 1000),
    node_threshold=st.floats(0.05, 0.95),
    edge_threshold=st.floats(0.05, 0.95),
)
def test_small_sparse_graphs_are_pruned_alike(
    upstream, places, seed, node_threshold, edge_threshold
):
    graph = graph_at(places, n_layers=4, n_pos=3, n_logits=2, seed=seed, density=0.6)
    expected = prune_graph(upstream(graph), node_threshold, edge_threshold)
    found = prune(graph, node_threshold=node_threshold, edge_threshold=edge_threshold)
    different = (found.node_mask != expected.node_mask).nonzero()[:, 0].tolist()
    assert set(different) <= set(found.near_threshold.tolist())


def test_edges_outside_the_mask_are_pruned_alike(upstream):
    graph = synthetic_graph(Size(n_features=60))
    matrix = graph.edges.to_dense()
    later = graph.layout.error_index(0, 5)
    matrix[40, later] = 3.0
    graph = graph_of(matrix, graph.layout, graph.active, graph.selected)
    assert len(graph.edges.extra_values)
    expected = prune_graph(upstream(graph))
    found = prune(graph)
    assert torch.equal(found.node_mask, expected.node_mask)
    assert torch.equal(mask_of(found.edges, graph.layout.n_nodes), expected.edge_mask)


def test_thresholds_at_their_ends():
    graph = synthetic_graph(Size(n_features=50))
    everything = prune(graph, node_threshold=1.0, edge_threshold=1.0)
    influential = everything.scores > 0
    influential[graph.layout.tokens.start :] = True
    assert int((everything.node_mask & ~influential).sum()) == 0
    least = prune(graph, node_threshold=0.0, edge_threshold=0.0)
    kept = least.node_mask[: graph.layout.tokens.start]
    assert int(kept.sum()) <= 1
    for wrong in (-0.1, 1.1):
        with pytest.raises(RequestError, match="node_threshold"):
            prune(graph, node_threshold=wrong)
        with pytest.raises(RequestError, match="edge_threshold"):
            prune(graph, edge_threshold=wrong)


def test_a_graph_without_edges_keeps_tokens_and_logits():
    graph = graph_at([(0, 0)], n_layers=1, n_pos=2, n_logits=1, density=0.0)
    found = prune(graph)
    assert found.node_mask.tolist() == [False, False, False, True, True, True]
    assert len(found.edges) == 0


def contrasted(graph):
    ids = graph.targets.token_ids.tolist()
    return Contrast(tuple(ids[:1]), tuple(ids[1:]))


@pytest.mark.parametrize("method", [Method.SIGNED, Method.TOTAL_EFFECT])
def test_contrast_pruning_ranks_nodes_by_signed_influence(method):
    graph = synthetic_graph(Size(n_features=200))
    targets = contrasted(graph)
    found = prune(graph, targets, method=method, node_threshold=0.7)
    sources = graph.layout.sources
    values = influence(graph, targets, method).values[0, sources].abs()
    assert torch.allclose(found.scores[sources], values)
    kept = found.node_mask[: graph.layout.tokens.start]
    limit = values.sort(descending=True).values
    least = limit[int((limit.cumsum(0) / limit.sum() >= 0.7).nonzero()[0])]
    assert (values[: graph.layout.tokens.start][kept] >= least).all()


@settings(deadline=None, max_examples=15)
@given(
    places=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=6),
    seed=st.integers(0, 10_000),
    method=st.sampled_from([Method.SIGNED, Method.TOTAL_EFFECT]),
)
def test_contrast_pruning_of_any_graph_ranks_by_sums_over_its_paths(places, seed, method):
    graph = graph_at(places, n_layers=4, n_pos=3, n_logits=3, seed=seed, density=0.6)
    targets, layout = contrasted(graph), graph.layout
    found = prune(graph, targets, method=method)
    expected = torch.zeros(layout.n_nodes, dtype=torch.float64)
    for node in range(layout.n_sources):
        paths = all_paths(graph, found.targets.weights[0], method, node)
        expected[node] = abs(sum(product for _, product in paths))
    assert torch.allclose(found.scores, expected, rtol=1e-9, atol=1e-12)
    # Nothing hangs loose: a kept feature has an edge in and out, a kept error one out.
    into, out = (set(end.tolist()) for end in (found.edges.targets, found.edges.sources))
    for node in found.node_mask[: layout.tokens.start].nonzero()[:, 0].tolist():
        assert node in out and (node >= layout.n_features or node in into)
    kept = found.node_mask
    assert kept[found.edges.targets].all() and kept[found.edges.sources].all()


def test_contrast_pruning_drops_what_moves_both_sides_alike():
    """A feature that raises evil and safe by the same amount is no part of the contrast."""
    graph = graph_at([(0, 0), (0, 0), (1, 0)], n_layers=2, n_pos=1, n_logits=2, density=0.0)
    matrix, layout = graph.edges.to_dense(), graph.layout
    token = layout.token_index(0)
    matrix[0, token] = matrix[1, token] = 1.0
    matrix[layout.logits, 0] = 100.0
    matrix[layout.logit_index(0), 1] = 5.0
    matrix[layout.logit_index(1), 1] = -5.0
    ones = torch.ones(3)
    graph = graph_of(matrix, layout, graph.active, graph.selected, activations=ones)
    found = prune(graph, contrasted(graph), method=Method.TOTAL_EFFECT)
    assert found.node_mask[layout.features].tolist() == [False, True, False]
    assert prune(graph).node_mask[layout.features].tolist()[0] is True


def test_contrast_pruning_takes_one_signed_target():
    graph = synthetic_graph(Size(n_features=20))
    with pytest.raises(RequestError, match="one target, got 3"):
        prune(graph, Targets.each(graph))
    for method in (Method.DIRECT, Method.ABSOLUTE):
        with pytest.raises(RequestError, match="signed_influence or total_effect"):
            prune(graph, contrasted(graph), method=method)


@settings(deadline=None, max_examples=100)
@given(
    scores=st.lists(st.floats(0, 1e6) | st.just(0.0), max_size=40),
    share=st.floats(0, 1),
)
def test_the_threshold_is_found_without_sorting_everything(scores, share):
    values = torch.tensor(scores, dtype=torch.float64)
    found = _threshold(values, share)
    if not values.sum() > 0:
        assert found == torch.inf
        return
    ordered = values.sort(descending=True).values
    goal = share * values.sum()
    held = values[values >= found].sum()
    assert held >= goal * (1 - 1e-12)
    assert values[values > found].sum() <= goal * (1 + 1e-12)
    assert found in ordered


def test_pruning_needs_edges():
    graph = dataclasses.replace(synthetic_graph(Size(n_features=20)), edges=None)
    with pytest.raises(RequestError, match="no edges"):
        prune(graph)
