"""Packed edges are the dense matrix, bit for bit, whatever its shape."""

import jaxtyping
import pytest
import torch
from circuit_tracer.graph import compute_partial_influences
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import Size, dense_matrix, graph_at, synthetic_graph

from em_circuits.graphs import builder
from em_circuits.graphs.builder import EdgesBuilder
from em_circuits.graphs.edges import Edges
from em_circuits.graphs.layout import NodeLayout
from pivotal_tokens.errors import RequestError, WorkFailed

PLACES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=9)


def columns(features):
    return features[:, 0].contiguous(), features[:, 1].contiguous()


def pack(matrix, graph, **options):
    return Edges.from_dense(matrix, graph.layout, *columns(graph.selected_features), **options)


@settings(deadline=None, max_examples=60)
@given(places=PLACES, seed=st.integers(0, 1000), n_logits=st.integers(0, 3))
def test_packing_loses_nothing(places, seed, n_logits):
    graph = graph_at(places, n_layers=4, n_pos=4, n_logits=n_logits, seed=seed, density=0.8)
    layout = graph.layout
    generator = torch.Generator().manual_seed(seed)
    features, activations = graph.selected_features, graph.selected_activations
    matrix = dense_matrix(layout, features, activations, generator)
    edges = pack(matrix, graph)
    assert torch.equal(edges.to_dense(), matrix)
    assert not edges.extra_values.numel()
    row_matrix = torch.cat([matrix[layout.features], matrix[layout.logits]])[:, layout.sources]
    assert torch.equal(pack(row_matrix, graph).to_dense(), matrix)
    assert torch.equal(edges.logit_rows(), matrix[layout.logits, layout.sources])
    for node in range(layout.n_nodes):
        assert torch.equal(edges.row(node), matrix[node])
    assert torch.allclose(edges.row_mass, row_matrix.double().abs().sum(1), rtol=1e-14)


def test_every_allowed_entry_is_stored_once_and_no_other():
    graph = synthetic_graph(Size())
    edges = graph.edges
    allowed = int((edges.to_dense()[graph.layout.features] != 0).sum())
    assert edges.values.numel() == allowed


def test_a_matrix_far_from_the_structure_survives_in_the_fall_back_list():
    graph = synthetic_graph(Size(n_features=12))
    layout = graph.layout
    matrix = torch.randn(layout.n_nodes, layout.n_nodes)
    edges = pack(matrix, graph)
    assert torch.equal(edges.to_dense(), matrix)
    assert torch.equal(edges.row(0), matrix[0])
    mass = matrix[layout.features].double().abs().sum(1)
    assert torch.allclose(edges.row_mass[: layout.n_features], mass)


def test_values_are_16_bit_only_if_every_one_is_exact():
    graph = synthetic_graph(Size(), bfloat16=True)
    assert graph.edges.values.dtype == graph.edges.logit_values.dtype == torch.bfloat16
    matrix = graph.edges.to_dense()
    matrix[graph.layout.logit_index(1), 0] = 1 + 2**-20
    edges = pack(matrix, graph)
    assert edges.values.dtype == torch.float32
    assert torch.equal(edges.to_dense(), matrix)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_packed_exactly(dtype):
    graph = synthetic_graph(Size(), bfloat16=True)
    matrix = graph.edges.to_dense().clamp(-60000, 60000).half().float().to(dtype)
    assert torch.equal(pack(matrix, graph).to_dense().to(dtype), matrix)


def test_a_float64_value_is_never_rounded_silently():
    graph = synthetic_graph(Size())
    matrix = graph.edges.to_dense().double()
    matrix[graph.layout.logits] *= 1 + 1e-12
    with pytest.raises(RequestError, match="float32-exact"):
        pack(matrix, graph)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_non_finite_edge_is_named(value):
    graph = synthetic_graph(Size(n_features=40))
    target, source = 39, graph.layout.error_index(1, 3)
    matrix = graph.edges.to_dense()
    matrix[target, source] = value
    with pytest.raises(WorkFailed, match=rf"error node {source} .*feature node {target} "):
        pack(matrix, graph)


def test_a_non_finite_edge_outside_the_mask_is_named():
    graph = synthetic_graph(Size(n_features=40))
    matrix = graph.edges.to_dense()
    matrix[graph.layout.token_index(2), 4] = torch.nan
    with pytest.raises(WorkFailed, match=r"feature node 4 .* -> token node"):
        pack(matrix, graph)


def test_row_masses_do_not_overflow():
    graph = synthetic_graph(Size())
    matrix = graph.edges.to_dense().clamp(-1, 1) * 3e38
    mass = pack(matrix, graph).row_mass
    assert mass.isfinite().all()
    assert float(mass.max()) > 3.4e38


def test_wrong_sizes_and_orders_are_refused():
    graph = synthetic_graph(Size(n_features=10))
    layers, positions = columns(graph.selected_features)
    matrix = graph.edges.to_dense()
    with pytest.raises(RequestError, match=r"must be \(43, 43\) or \(13, 40\), got \(42, 43\)"):
        pack(matrix[1:], graph)
    with pytest.raises(RequestError, match="sorted"):
        Edges.from_dense(matrix, graph.layout, layers.flip(0), positions)
    with pytest.raises(RequestError, match=r"feature_parts must lie in 0..3"):
        Edges.from_dense(matrix, graph.layout, layers + 1, positions)
    with pytest.raises((RequestError, jaxtyping.TypeCheckError)):
        Edges.from_dense(matrix, graph.layout, layers[1:], positions)


@settings(deadline=None, max_examples=40)
@given(places=PLACES, seed=st.integers(0, 1000), keep=st.integers(0, 9), whole=st.booleans())
def test_rows_in_any_order_give_the_same_edges(places, seed, keep, whole):
    graph = graph_at(places, n_layers=4, n_pos=4, n_logits=2, seed=seed)
    layout, matrix = graph.layout, graph.edges.to_dense()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(layout.n_features, generator=generator)
    selected = order if whole else order[:keep]
    selected = selected.sort().values
    builder = EdgesBuilder(*columns(graph.active), n_layers=4, n_pos=4, n_logits=2)
    builder.add_logits(torch.tensor([1, 0]), matrix[layout.logits].flip(0))
    for batch in order.split(2):
        builder.add_features(batch, matrix[batch][:, layout.sources])
    assert torch.equal(builder.visited, torch.arange(layout.n_features))
    edges = builder.build(selected)

    nodes = torch.cat([selected, torch.arange(layout.n_features, layout.n_nodes)])
    assert torch.equal(edges.to_dense(), matrix[nodes][:, nodes])
    rows = torch.cat([selected, torch.arange(layout.logits.start, layout.n_nodes)])
    dropped = [i for i in range(layout.n_features) if i not in selected.tolist()]
    outside = matrix[rows][:, dropped].double().abs().sum(1)
    assert torch.allclose(edges.outside_mass, outside)
    if len(selected) == layout.n_features:
        assert not edges.outside_mass.any()


@settings(deadline=None, max_examples=40)
@given(places=PLACES, seed=st.integers(0, 1000), share=st.floats(0, 1), stray=st.booleans())
def test_the_builders_influence_is_upstreams_partial_influence(places, seed, share, stray):
    graph = graph_at(places, n_layers=4, n_pos=4, n_logits=2, seed=seed)
    layout, matrix = graph.layout, graph.edges.to_dense()
    if stray and layout.n_features > 1:
        matrix[layout.n_features - 1, 0] = 2.0
    generator = torch.Generator().manual_seed(seed)
    known = (torch.rand(layout.n_features, generator=generator) <= share).nonzero()[:, 0]
    weights = torch.tensor([0.7, 0.2], dtype=torch.float64)
    builder = EdgesBuilder(*columns(graph.active), n_layers=4, n_pos=4, n_logits=2)
    builder.add_logits(torch.arange(2), matrix[layout.logits])
    builder.add_features(known, matrix[known])
    rows = torch.cat([torch.arange(layout.logits.start, layout.n_nodes), known])
    expected = compute_partial_influences(matrix[rows], weights.float(), rows, device="cpu")
    found = builder.influence(weights)
    assert torch.allclose(found.float(), expected[layout.sources], rtol=1e-5, atol=1e-7)


def test_the_builder_keeps_entries_outside_the_mask():
    graph = synthetic_graph(Size(n_features=12))
    layout, matrix = graph.layout, graph.edges.to_dense()
    matrix[2, 9] = 5.0
    builder = EdgesBuilder(*columns(graph.active), n_layers=4, n_pos=6, n_logits=3)
    builder.add_features(torch.arange(12), matrix[layout.features])
    builder.add_logits(torch.arange(3), matrix[layout.logits])
    assert torch.equal(builder.build(torch.arange(12)).to_dense(), matrix)


@pytest.mark.parametrize("room", [0, builder.ROW_BYTES])
def test_rows_cut_into_many_segments_are_the_same_rows(monkeypatch, room):
    graph = synthetic_graph(Size(n_features=40))
    layout, matrix = graph.layout, graph.edges.to_dense()
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    found = []
    for most in (1, 3, builder.CHUNK):
        monkeypatch.setattr(builder, "CHUNK", most)
        monkeypatch.setattr(builder, "ROW_BYTES", room)
        made = EdgesBuilder(*columns(graph.active), n_layers=4, n_pos=6, n_logits=3)
        made.add_features(torch.arange(40), matrix[layout.features], causal=True)
        made.add_logits(torch.arange(3), matrix[layout.logits])
        found.append(made.influence(weights))
        assert torch.equal(made.build(torch.arange(40)).to_dense(), matrix)
    assert torch.allclose(found[0], found[2], rtol=1e-12, atol=0)
    assert torch.allclose(found[1], found[2], rtol=1e-12, atol=0)
    assert list(builder._cuts([2, 2, 5], 4)) == [(0, 1, 0), (1, 2, 0), (2, 5, 2)]


def test_the_builder_names_what_is_missing():
    graph = synthetic_graph(Size(n_features=12))
    builder = EdgesBuilder(*columns(graph.active), n_layers=4, n_pos=6, n_logits=3)
    with pytest.raises(RequestError, match=r"2 selected features \(first \[3\]\) and 3 targets"):
        builder.build(torch.tensor([3, 4]))
    with pytest.raises(RequestError, match="columns or more"):
        builder.add_features(torch.tensor([0]), torch.zeros(1, 5))
    with pytest.raises(RequestError, match="No active feature 12"):
        builder.add_features(torch.tensor([12]), torch.zeros(1, 42))


@settings(deadline=None, max_examples=40)
@given(places=PLACES, seed=st.integers(0, 1000), stray=st.booleans())
def test_edges_among_some_nodes_are_the_sub_matrix(places, seed, stray):
    graph = graph_at(places, n_layers=4, n_pos=4, n_logits=2, seed=seed)
    layout, matrix = graph.layout, graph.edges.to_dense()
    if stray and layout.n_features > 1:
        matrix[0, layout.n_features - 1] = 2.0
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(layout.n_nodes, generator=generator) < 0.6
    keep[layout.logits] = True
    inner = pack(matrix, graph).restricted(keep)
    matrix[~keep] = 0
    matrix[:, ~keep] = 0
    stays = keep.clone()
    stays[layout.n_features :] = True
    assert torch.equal(inner.to_dense(), matrix[stays][:, stays])
    rows = torch.cat([keep[layout.features].nonzero()[:, 0], torch.arange(layout.n_nodes)[-2:]])
    assert torch.allclose(inner.row_mass, matrix[rows].double().abs().sum(1))


def test_a_graph_without_features_positions_or_logits_can_be_packed():
    for sizes in ((0, 2, 3, 1), (0, 0, 0, 0), (0, 1, 1, 0)):
        layout = NodeLayout(*sizes)
        matrix = torch.zeros(layout.n_nodes, layout.n_nodes)
        empty = torch.empty(0, dtype=torch.int64)
        assert torch.equal(Edges.from_dense(matrix, layout, empty, empty).to_dense(), matrix)
