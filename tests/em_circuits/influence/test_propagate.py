"""One pass equals the sum over all paths and the dense inverse, on any DAG."""

import dataclasses

import pytest
import torch
from circuit_tracer.graph import compute_node_influence
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import all_paths, by_inverse, by_powers
from synthetic import Size, graph_at, synthetic_graph

from em_circuits.graphs.edges import Edges
from em_circuits.influence import Method, Targets, influence
from pivotal_tokens.errors import WorkFailed

PLACES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=7)
METHODS = st.sampled_from(list(Method))


def with_matrix(graph, change):
    """The graph with its adjacency matrix changed in place."""
    matrix = graph.edges.to_dense()
    change(matrix)
    chosen = graph.selected_features
    edges = Edges.from_dense(
        matrix, graph.layout, chosen[:, 0].contiguous(), chosen[:, 1].contiguous()
    )
    return dataclasses.replace(graph, edges=edges)


def seed_of(weights):
    names = tuple(f"target {i}" for i in range(len(weights)))
    return Targets(weights, names, (None,) * len(weights))


def assert_close(found, expected):
    scale = float(expected.abs().max()) or 1.0
    assert float((found - expected).abs().max()) <= 1e-12 * scale


@settings(deadline=None, max_examples=50)
@given(
    places=PLACES,
    seed=st.integers(0, 10_000),
    density=st.sampled_from([0.0, 0.3, 1.0]),
    method=METHODS,
)
def test_values_are_sums_over_paths(places, seed, density, method):
    graph = graph_at(places, n_layers=4, n_pos=3, n_logits=2, seed=seed, density=density)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(1, 2, generator=generator, dtype=torch.float64)
    if method is Method.ABSOLUTE:
        weights = weights.abs()
    values = influence(graph, seed_of(weights), method).values
    for node in range(graph.layout.n_sources):
        paths = all_paths(graph, weights[0], method, node)
        expected = sum(product for _, product in paths)
        size = sum(abs(product) for _, product in paths)
        assert float(values[0, node]) == pytest.approx(expected, rel=1e-12, abs=1e-12 * size)
    assert torch.equal(values[:, graph.layout.logits], weights)


@pytest.mark.parametrize("method", list(Method))
@pytest.mark.parametrize("bfloat16", [False, True])
def test_values_are_those_of_the_dense_inverse(method, bfloat16):
    size = Size(n_features=300, n_layers=5, n_pos=7, n_logits=4)
    graph = synthetic_graph(size, bfloat16=bfloat16)
    targets = Targets.each(graph)
    found = influence(graph, targets, method).values
    assert_close(found, by_powers(graph, targets.weights, method))
    assert_close(found, by_inverse(graph, targets.weights, method))


def test_absolute_influence_is_circuit_tracers(upstream, logit_weights):
    for seed in range(3):
        graph = synthetic_graph(Size(n_features=400, n_layers=6, n_pos=8), seed=seed)
        expected = compute_node_influence(upstream(graph).adjacency_matrix, logit_weights(graph))
        found = influence(graph, Targets.probabilities(graph), Method.ABSOLUTE).values[0]
        sources = graph.layout.sources
        assert torch.allclose(found[sources].float(), expected[sources], rtol=1e-4, atol=1e-7)


def test_a_chain_by_hand():
    """token -> f0 (activation 2) -> f1 (activation 4) -> logit, edges 3, -5, 7."""
    graph = graph_at([(0, 0), (1, 0)], n_layers=2, n_pos=1, n_logits=1, density=0.0)
    token, logit = graph.layout.token_index(0), graph.layout.logit_index(0)

    def chain(matrix):
        matrix[0, token], matrix[1, 0], matrix[logit, 1] = 3.0, -5.0, 7.0

    graph = with_matrix(graph, chain)
    graph = dataclasses.replace(graph, activations=torch.tensor([2.0, 4.0]))
    expected = {
        Method.DIRECT: [0.0, 7.0, 0.0],
        Method.TOTAL_EFFECT: [7 * -5 / 4, 7.0, 7 * -5 / 4 * 3 / 2],
        Method.SIGNED: [-1.0, 1.0, -1.0],
        Method.ABSOLUTE: [1.0, 1.0, 1.0],
    }
    for method, values in expected.items():
        found = influence(graph, Targets.each(graph), method).values[0]
        assert found[[0, 1, token]].tolist() == values


@pytest.mark.parametrize("method", list(Method))
def test_small_and_empty_graphs(method):
    for places in ([], [(0, 0)], [(1, 0), (1, 0)]):
        for density in (0.0, 1.0):
            graph = graph_at(places, n_layers=2, n_pos=1, n_logits=1, density=density)
            targets = Targets.each(graph)
            found = influence(graph, targets, method).values
            assert_close(found, by_inverse(graph, targets.weights, method))
    graph = graph_at([(0, 0)], n_layers=1, n_pos=1, n_logits=0)
    assert influence(graph, Targets.each(graph), method).values.shape == (0, 3)


@pytest.mark.parametrize("method", list(Method))
def test_a_zero_row_passes_nothing_on(method):
    graph = synthetic_graph(Size(n_features=50))

    def clear(matrix):
        matrix[30:40] = 0
        matrix[graph.layout.logit_index(1)] = 0

    cleared = with_matrix(graph, clear)
    targets = Targets.each(cleared)
    found = influence(cleared, targets, method).values
    assert_close(found, by_inverse(cleared, targets.weights, method))
    assert not found[1, cleared.layout.sources].any()


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 1000), method=METHODS)
def test_edges_outside_the_mask_are_carried_too(seed, method):
    """From a later position, or, in an order of its own, within a layer."""
    graph = graph_at([(0, 1), (0, 2), (1, 0), (2, 1)], n_layers=3, n_pos=3, n_logits=2, seed=seed)

    def add(matrix):
        matrix[2, 1] = 2.0  # layer 1, position 0 reads layer 0, position 2
        if seed % 2:
            matrix[0, 1] = -3.0  # within layer 0
            matrix[1, 3] = 0.5 if seed % 4 == 3 else 0.0  # a circle: 3 reads 1

    if seed % 4 == 3:
        with pytest.raises(WorkFailed, match="circle"):
            changed = with_matrix(graph, add)
            influence(changed, Targets.each(changed), method)
        return
    changed = with_matrix(graph, add)
    targets = Targets.each(changed)
    found = influence(changed, targets, method).values
    assert_close(found, by_inverse(changed, targets.weights, method))


def test_inputs_of_tokens_and_logits_as_inputs_are_refused():
    graph = synthetic_graph(Size(n_features=10))
    token, logit = graph.layout.token_index(1), graph.layout.logit_index(0)
    for target, source in ((token, 0), (5, logit), (logit, logit)):

        def add(matrix, target=target, source=source):
            matrix[target, source] = 1.0

        changed = with_matrix(graph, add)
        with pytest.raises(WorkFailed, match="not an attribution graph"):
            influence(changed, Targets.each(changed), Method.DIRECT)


@pytest.mark.parametrize("method", list(Method))
def test_a_nan_that_appears_later_is_named_and_does_not_hang(method):
    """The file's masses are sound, its values are not: a flipped bit, say."""
    graph = synthetic_graph(Size(n_features=50))
    graph.edges.values[-3] = torch.nan
    graph.edges.logit_values[0, 7] = torch.nan
    with pytest.raises(WorkFailed, match=r"influence of .* nan"):
        influence(graph, Targets.each(graph), method)


@pytest.mark.parametrize("method", list(Method))
def test_row_sums_beyond_float32_are_right_and_not_zero(method):
    """circuit-tracer's float32 row sum is infinite here, and its row silently zero."""
    graph = synthetic_graph(Size(n_features=50, n_layers=3))

    def blow_up(matrix):
        matrix.clamp_(-1, 1).mul_(3e38)

    large = with_matrix(graph, blow_up)
    targets = Targets.each(large)
    found = influence(large, targets, method).values
    assert found.isfinite().all()
    assert_close(found, by_powers(large, targets.weights, method))
    if method is Method.ABSOLUTE:
        small = with_matrix(graph, lambda matrix: matrix.clamp_(-1, 1))
        assert torch.allclose(influence(small, targets, method).values, found, rtol=1e-5)


def test_an_overflow_of_float64_is_named():
    graph = synthetic_graph(Size(n_features=400, n_layers=40, n_pos=2))
    large = with_matrix(graph, lambda matrix: matrix.clamp_(-1, 1).mul_(3e38))
    tiny = dataclasses.replace(large, activations=torch.full((400,), 1e-38))
    with pytest.raises(WorkFailed, match="too large for float64"):
        influence(tiny, Targets.each(tiny), Method.TOTAL_EFFECT)


def test_many_targets_are_the_same_as_one_by_one():
    graph = synthetic_graph(Size(n_features=200, n_logits=5))
    together = influence(graph, Targets.each(graph), Method.SIGNED).values
    for i in range(5):
        alone = influence(
            graph, seed_of(torch.eye(5, dtype=torch.float64)[i : i + 1]), Method.SIGNED
        )
        assert_close(alone.values[0], together[i])
