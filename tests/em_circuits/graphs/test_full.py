"""A graph with full edges says what the real model does, to first order, however few its nodes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from subjects import EVERY_SUBJECT, Subject

from em_circuits.graphs import AttributionGraph, GraphStore, attribute
from em_circuits.influence import Targets, graph_scores, influence, prune, top_paths
from em_circuits.influence.drawing import picture
from em_circuits.influence.scores import error_direct_score, error_influence_share
from pivotal_tokens.errors import RequestError

pytestmark = EVERY_SUBJECT


@pytest.fixture(scope="module")
def graphs(subject: Subject) -> dict[int, AttributionGraph]:
    pair, text = subject.pair, subject.pair.tokenizer.decode(subject.input_ids[1:])
    prompt = pair.prompt(text)
    assert prompt.token_ids == tuple(subject.input_ids.tolist())
    return {
        n: attribute(pair.merged, prompt, subject.groups, edges="full", nodes=n) for n in (25, 120)
    }


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


def test_errors_are_no_sources(graphs) -> None:
    graph = graphs[25]
    dense = graph.require_edges().to_dense()
    assert not dense[:, graph.layout.errors].any() and dense[:, graph.layout.tokens].any()


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


def test_the_kind_of_edges_and_their_number_are_in_the_key(subject: Subject, graphs) -> None:
    text = subject.pair.tokenizer.decode(subject.input_ids[1:])
    frozen = attribute(subject.pair.merged, text, subject.groups)
    keys = {frozen.header.key, *(graph.header.key for graph in graphs.values())}
    assert len(keys) == 3 and frozen.edge_kind == "frozen"
