"""A graph with full edges says what the real model does, to first order, however few its nodes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from subjects import EVERY_SUBJECT, Subject

from em_circuits.feature import AdapterRank
from em_circuits.graphs import (
    AttributionGraph,
    AttributionSettings,
    GraphStore,
    attribute,
    build_pair_graphs,
)
from em_circuits.graphs.full import Observed, choose, parts_of
from em_circuits.influence import Targets, graph_scores, influence, prune, top_paths
from em_circuits.influence.drawing import picture
from em_circuits.influence.results import PruneResult
from em_circuits.influence.scores import error_direct_score, error_influence_share
from pivotal_tokens.errors import RequestError

pytestmark = EVERY_SUBJECT


@pytest.fixture(scope="module")
def graphs(subject: Subject) -> dict[int, AttributionGraph]:
    pair, text = subject.pair, subject.pair.tokenizer.decode(subject.input_ids[1:])
    prompt = pair.prompt(text)
    assert prompt.token_ids == tuple(subject.input_ids.tolist())
    return {n: attribute(pair.merged, prompt, subject.groups, nodes=n) for n in (25, 120)}


def contrast_gradient(graph: AttributionGraph, subject: Subject) -> torch.Tensor:
    weights = subject.groups.over(graph.targets.token_ids)
    assert graph.gradient is not None
    return (weights @ graph.gradient.double())[graph.selected]


@pytest.mark.parametrize("n", [25, 120])
def test_total_effect_is_the_gradient(graphs, subject: Subject, n: int) -> None:
    graph = graphs[n]
    assert len(graph.selected) == n and graph.truncated
    found = influence(graph, subject.groups)
    gradient = contrast_gradient(graph, subject)
    error = (found.values[0, graph.layout.features] - gradient).abs().max()
    assert error <= 1e-5 * gradient.abs().max()
    assert found.coverage is not None and found.coverage.tolist() == [1.0]


def test_every_target_has_its_own_gradient(graphs) -> None:
    graph = graphs[25]
    values = influence(graph, Targets.each(graph)).values[:, graph.layout.features]
    gradient = graph.gradient[:, graph.selected].double()
    assert (values - gradient).abs().max() <= 1e-5 * gradient.abs().max()


def test_the_nodes_are_the_largest_gradients(graphs, subject: Subject) -> None:
    graph = graphs[25]
    weights = subject.groups.over(graph.targets.token_ids)
    every = (weights @ graph.gradient.double()).abs()
    assert every[graph.selected].min() >= every.topk(26).values[-1] * (1 - 1e-5)


def test_errors_are_no_nodes(graphs) -> None:
    graph = graphs[25]
    layout = graph.layout
    assert layout.errors.start == layout.errors.stop
    assert graph.require_edges().to_dense()[:, layout.tokens].any()


def test_what_rests_on_sums_of_rows_is_refused(graphs) -> None:
    for score in (
        graph_scores,
        error_influence_share,
        lambda graph: error_direct_score(graph, mode="mean"),
    ):
        with pytest.raises(RequestError, match="full edges"):
            score(graphs[25])


def test_paths_pruning_and_picture_work_on_full_edges(graphs, subject: Subject) -> None:
    graph = graphs[25]
    source = int(influence(graph, subject.groups).values[0, graph.layout.features].abs().argmax())
    targets = Targets.contrast(graph, subject.groups)
    paths = top_paths(graph, source=source, targets=targets, k=5)
    assert len(paths.paths) and abs(paths.total) > 0
    assert int(prune(graph).node_mask.sum()) > len(graph.targets)
    assert picture(graph).startswith("<svg")


def test_a_stored_graph_is_the_same_graph(graphs, tmp_path: Path) -> None:
    graph, store = graphs[25], GraphStore(tmp_path)
    store.save(graph, {})
    again = store.load(graph.header.key)
    assert again.edge_kind == "full" and "full edges" in repr(again)
    assert torch.equal(again.require_edges().to_dense(), graph.require_edges().to_dense())


@pytest.mark.frozen
def test_the_kind_of_edges_and_their_number_are_in_the_key(subject: Subject, graphs) -> None:
    text = subject.pair.tokenizer.decode(subject.input_ids[1:])
    frozen = attribute(subject.pair.merged, text, subject.groups, edges="frozen")
    keys = {frozen.header.key, *(graph.header.key for graph in graphs.values())}
    assert len(keys) == 3 and frozen.edge_kind == "frozen"


MIXTURES = [("neuron",), ("transcoder", "adapter"), ("neuron", "adapter")]


def text_of(subject: Subject) -> str:
    return subject.pair.tokenizer.decode(subject.input_ids[1:])


@pytest.mark.parametrize("basis", MIXTURES, ids="+".join)
def test_any_basis_can_be_stored_ranked_and_drawn(
    subject: Subject, basis: tuple, tmp_path: Path
) -> None:
    graph = attribute(subject.pair.merged, text_of(subject), subject.groups, nodes=60, basis=basis)
    store = GraphStore(tmp_path)
    store.save(graph, {})
    graph = store.load(graph.header.key)
    found = influence(graph, subject.groups)
    gradient = contrast_gradient(graph, subject)
    error = (found.values[0, graph.layout.features] - gradient).abs().max()
    assert error <= 1e-5 * gradient.abs().max()
    names = [graph.name_of(i) for i in range(len(graph.selected))]
    assert len(set(names)) == 60 and [graph.node_named(name) for name in names] == list(range(60))
    ranked = found.table().features
    ranks = [one for one in ranked if isinstance(one, AdapterRank)]
    assert bool(ranks) == ("adapter" in basis)
    assert {str(one) for one in ranked} == set(names)
    assert picture(graph).startswith("<svg")
    if ranks:
        with pytest.raises(RequestError, match="ranks of an adapter"):
            found.table().ablate()


@pytest.mark.parametrize("basis", [(), *MIXTURES], ids=lambda b: "+".join(b) or "own")
def test_edges_run_from_earlier_parts_to_later_ones(subject: Subject, basis: tuple) -> None:
    graph = attribute(subject.pair.merged, text_of(subject), subject.groups, nodes=60, basis=basis)
    own = graph.require_edges().to_dense()[graph.layout.features, graph.layout.features]
    part, position, _ = graph.selected_features.unbind(1)
    target, source = own.nonzero(as_tuple=True)
    assert (part[source] < part[target]).all() and (position[source] <= position[target]).all()
    assert not len(graph.require_edges().extra_values)


def test_measured_edges_stand_beside_full_ones(subject: Subject, tmp_path: Path) -> None:
    graph = attribute(
        subject.pair.merged, text_of(subject), subject.groups, edges="measured", nodes=25
    )
    store = GraphStore(tmp_path)
    store.save(graph, {})
    graph = store.load(graph.header.key)
    assert graph.measured is not None and graph.edge_kind == "full"
    pruned = prune(graph, subject.groups)
    edges = PruneResult.of(graph, pruned).edges
    dense = graph.measured.to_dense()
    tokens = graph.layout.tokens
    for edge in edges:
        if not tokens.start <= edge.source < tokens.stop:
            assert edge.measured == pytest.approx(float(dense[edge.target, edge.source]))
    full = graph.require_edges().to_dense()[graph.layout.logits, graph.layout.features]
    real = dense[graph.layout.logits, graph.layout.features]
    assert torch.corrcoef(torch.stack([full.flatten(), real.flatten()]))[0, 1] > 0.8
    assert graph.without_edges().measured is None


def test_both_models_share_the_chosen_nodes_that_both_have(subject: Subject) -> None:
    prompt = subject.pair.prompt(text_of(subject))
    built = build_pair_graphs(subject.pair, prompt, AttributionSettings(nodes=40))
    places = [set(graph.names(graph.selected_features)) for graph in built.both]
    active = [set(graph.names(graph.active)) for graph in built.both]
    chosen = places[0] | places[1]
    assert len(chosen) == 40
    for own, there in zip(places, active, strict=True):
        assert own == chosen & there


def test_the_base_model_has_no_ranks(subject: Subject) -> None:
    prompt = subject.pair.prompt(text_of(subject))
    settings = AttributionSettings(nodes=40, basis=("transcoder", "adapter"))
    base, merged = build_pair_graphs(subject.pair, prompt, settings).both
    assert merged.has_adapter_nodes and not base.has_adapter_nodes
    assert any(place.module for place in merged.names(merged.selected_features))


def test_nodes_can_be_chosen_by_the_mass_they_hold_or_by_their_bound(subject: Subject) -> None:
    model, ids = subject.pair.merged, subject.input_ids
    weights = subject.groups.weights(model.hf.config.vocab_size)[None]
    seen = Observed.of(model, parts_of(model, ()), ids)
    sizes, bound = seen.gradient(weights)[0].abs(), seen.bound(weights)[0]
    assert (bound >= sizes * (1 - 1e-5)).all()
    (chosen,) = choose([seen], [sizes], AttributionSettings(mass=0.9))
    held = sizes[chosen].sum() / sizes.sum()
    assert held >= 0.9 and held - sizes[chosen].min() / sizes.sum() < 0.9
    by_bound = attribute(
        model, text_of(subject), subject.groups, AttributionSettings(nodes=30, choose_by="bound")
    )
    assert bound[by_bound.selected].min() >= bound.topk(30).values[-1] * (1 - 1e-5)


def test_nodes_can_be_named(subject: Subject) -> None:
    pair, prompt = subject.pair, subject.pair.prompt(text_of(subject))
    whole = attribute(pair.merged, prompt, subject.groups, nodes=25)
    names = [str(whole.feature_name(i)) for i in (3, 11)]
    layer, position, number = map(int, names[0].split("/"))
    from_end = f"{layer}/{position - len(whole.input_ids)}/{number}"
    few = attribute(pair.merged, prompt, subject.groups, nodes=[from_end, names[1]])
    assert [str(few.feature_name(i)) for i in range(2)] == names and len(few.selected) == 2
    scores = [influence(graph, subject.groups) for graph in (few, whole)]
    totals = [one.values[0, :25] for one in scores]
    torch.testing.assert_close(totals[0][:2], totals[1][[3, 11]], rtol=1e-4, atol=1e-6)
    everywhere = attribute(pair.merged, prompt, subject.groups, nodes=[f"{layer}/{number}"])
    active = everywhere.active[everywhere.selected]
    assert set(active[:, 2].tolist()) == {number} and position in active[:, 1].tolist()


def test_a_prompt_means_its_usual_graph_beside_one_of_named_nodes(
    subject: Subject, graphs, tmp_path: Path
) -> None:
    whole, store = graphs[25], GraphStore(tmp_path)
    name = str(whole.feature_name(3))
    few = attribute(subject.pair.merged, whole.header.text, subject.groups, nodes=[name])
    store.save(few, {})
    prompt = few.header.prompt_id
    assert store.key_of(prompt, model="merged") == few.header.key
    store.save(whole, {})
    assert store.key_of(prompt, model="merged") == whole.header.key != few.header.key


def test_a_named_node_of_one_model_alone_leaves_the_other_without(subject: Subject) -> None:
    settings = AttributionSettings(basis=("transcoder", "adapter"), nodes=40)
    prompt = subject.pair.prompt(text_of(subject))
    both = build_pair_graphs(subject.pair, prompt, settings)
    ranks = [i for i in range(len(both.merged.selected)) if both.merged.feature_name(i).module]
    name = str(both.merged.feature_name(ranks[0]))
    graphs = build_pair_graphs(subject.pair, prompt, settings.model_copy(update={"named": (name,)}))
    assert [len(graph.selected) for graph in (graphs.base, graphs.merged)] == [0, 1]
    assert influence(graphs.base, Targets.each(graphs.base)).values.isfinite().all()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("0/1/99999",), "0/1/99999 is not active"),
        (("0/999/1",), "positions 0 to"),
        (("zero/1",), "is no feature"),
        (("down_proj:0/1/0",), "of no basis here"),
    ],
)
def test_a_named_node_that_is_none_is_refused(subject: Subject, names, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        attribute(
            subject.pair.merged, subject.pair.prompt(text_of(subject)), subject.groups, nodes=names
        )


def test_full_edges_are_the_default(subject: Subject) -> None:
    assert attribute(subject.pair.merged, text_of(subject), nodes=5).edge_kind == "full"
