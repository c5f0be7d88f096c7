"""The best paths are those found by walking all of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import all_paths
from synthetic import Size, contrast_of, graph_at, graph_of, synthetic_graph

from em_circuits.influence import Method, Targets, influence, top_paths
from pivotal_tokens.errors import RequestError


@settings(deadline=None, max_examples=50)
@given(
    places=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=8),
    seed=st.integers(0, 10_000),
    method=st.sampled_from(list(Method)),
    k=st.integers(1, 12),
    data=st.data(),
)
def test_the_k_best_paths_are_those_of_all_paths(places, seed, method, k, data):
    graph = graph_at(places, n_layers=4, n_pos=3, n_logits=3, seed=seed, density=0.7)
    source = data.draw(st.integers(0, graph.layout.n_sources - 1))
    ids = graph.targets.token_ids.tolist()
    seeds = (
        contrast_of(graph, ids[:1], ids[1:])
        if method is not Method.ABSOLUTE
        else Targets.tokens(graph, ids[:1])
    )
    found = top_paths(graph, source=source, targets=seeds, k=k, method=method)
    walked = dict(all_paths(graph, seeds.weights[0], method, source))
    sizes = sorted((abs(p) for p in walked.values()), reverse=True)
    assert [abs(p.product) for p in found.paths] == pytest.approx(sizes[:k], rel=1e-9)
    for path in found.paths:
        assert path.product == pytest.approx(walked[path.nodes], rel=1e-9)
        assert path.share == pytest.approx(abs(path.product) / sum(sizes), rel=1e-9)
        assert path.nodes[0] == source
    assert found.total == pytest.approx(sum(walked.values()), rel=1e-9, abs=1e-12 * sum(sizes))
    assert found.absolute_total == pytest.approx(sum(sizes), rel=1e-9)


def test_the_sum_of_all_paths_is_the_influence():
    graph = synthetic_graph(Size(n_features=40))
    targets = Targets.tokens(graph, graph.targets.token_ids.tolist()[:1])
    value = float(influence(graph, targets, Method.SIGNED).values[0, 3])
    found = top_paths(graph, source=3, targets=targets, k=100_000, method=Method.SIGNED)
    assert found.total == pytest.approx(value)
    assert sum(p.product for p in found.paths) == pytest.approx(value)
    assert sum(p.share for p in found.paths) == pytest.approx(1)


def test_an_edge_outside_the_mask_is_walked():
    graph = graph_at([(0, 1), (1, 0)], n_layers=2, n_pos=2, n_logits=1, density=0.0)
    matrix = graph.edges.to_dense()
    logit = graph.layout.logit_index(0)
    matrix[1, 0], matrix[logit, 1] = -2.0, 3.0
    graph = graph_of(
        matrix, graph.layout, graph.active, graph.selected, activations=torch.tensor([1.0, 4.0])
    )
    (path,) = top_paths(graph, source=0, targets=Targets.each(graph)).paths
    assert path.nodes == (0, 1, logit)
    assert path.product == -1.5
    assert path.share == 1


def test_a_source_without_a_path_has_none():
    graph = graph_at([(0, 0)], n_layers=1, n_pos=1, n_logits=1, density=0.0)
    found = top_paths(graph, source=0, targets=Targets.each(graph))
    assert (found.paths, found.total, found.absolute_total) == ((), 0.0, 0.0)


def test_what_cannot_be_asked_is_refused():
    graph = synthetic_graph(Size(n_features=10))
    every, one = Targets.each(graph), Targets.tokens(graph, graph.targets.token_ids.tolist()[:1])
    with pytest.raises(RequestError, match="3 targets"):
        top_paths(graph, source=0, targets=every)
    with pytest.raises(RequestError, match="source"):
        top_paths(graph, source=graph.layout.logit_index(0), targets=one)
    with pytest.raises(RequestError, match="k=0"):
        top_paths(graph, source=0, targets=one, k=0)
