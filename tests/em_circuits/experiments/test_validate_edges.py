"""Edges beside measured ones: every edge there can be, each beside its own."""

from __future__ import annotations

import pytest
import torch
from subjects import Subject

from em_circuits.bases import transcoder_parts
from em_circuits.experiments.validate_edges import PromptEdges, prompt_edges, summarise_edges
from em_circuits.graphs import AttributionSettings, attribute
from em_circuits.graphs.held import choose_nodes, full_edges, measured_edges
from em_circuits.statistics import agreement


@pytest.fixture(scope="module")
def edges(subject: Subject) -> PromptEdges:
    pair, text = subject.pair, subject.pair.tokenizer.decode(subject.input_ids[1:])
    return prompt_edges(pair.merged, pair.prompt(text), subject.groups, n=40)


def test_every_edge_is_its_own(subject: Subject, edges: PromptEdges) -> None:
    """By name, against the routines that they are compared with."""
    model, ids = subject.pair.merged, subject.input_ids
    weights = subject.groups.weights(model.hf.config.vocab_size)[None]
    nodes = choose_nodes(model, transcoder_parts(model), ids, weights, n=40)
    text = subject.pair.tokenizer.decode(ids[1:])
    settings = AttributionSettings(edges="frozen", max_feature_nodes=None)
    graph = attribute(model, text, subject.groups, settings)
    names = [
        f"{nodes.parts[int(nodes.part[i])].layer}/{nodes.position[i]}/{nodes.id[i]}"
        for i in range(len(nodes))
    ]
    full = full_edges(model, nodes, ids, weights).values
    measured = measured_edges(model, nodes, ids, weights).values
    for i in range(0, len(edges.sources), 37):
        source, target = names.index(edges.sources[i]), edges.targets[i]
        row = len(nodes) if target == "evil-safe" else names.index(target)
        assert edges.full[i] == full[row, source] and edges.measured[i] == measured[row, source]
        start = graph.node_named(edges.sources[i])
        if target == "evil-safe":
            words = subject.groups.over(graph.targets.token_ids)
            expected = float(words @ graph.edges.logit_rows()[:, start].double())
            assert edges.distance[i] == -1
        else:
            expected = float(graph.edges.row(graph.node_named(target))[start])
            assert edges.distance[i] == int(target[0]) - int(edges.sources[i][0])
        assert float(edges.frozen[i]) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_no_edge_that_can_be_is_left_out(subject: Subject, edges: PromptEdges) -> None:
    model, ids = subject.pair.merged, subject.input_ids
    weights = subject.groups.weights(model.hf.config.vocab_size)[None]
    nodes = choose_nodes(model, transcoder_parts(model), ids, weights, n=40)
    values = full_edges(model, nodes, ids, weights).values[:, : len(nodes)]
    assert int((values != 0).sum()) == int((edges.full != 0).sum())
    assert int((edges.distance == -1).sum()) == len(nodes)


def made(full: list[float], measured: list[float], name: str = "p") -> PromptEdges:
    n = len(full)
    return PromptEdges(
        prompt_id=name,
        sources=("0/1/1",) * n,
        targets=("1/1/1",) * n,
        distance=torch.tensor([1, 1, 2, 2, -1, -1][:n]),
        measured=torch.tensor(measured),
        full=torch.tensor(full),
        frozen=torch.tensor(measured).flip(0),
    )


def test_curved_is_off_by_more_than_half_of_the_larger() -> None:
    one = made([1.0, 1.0, -1.0, 0.4, 1e-9, 2.0], [1.9, 2.1, 1.0, 1.0, 1e-8, 2.0])
    assert one.curved.tolist() == [False, True, True, True, False, False]
    found = summarise_edges([one], model="merged", nodes=3).curved
    assert found.share == pytest.approx(3 / 6)
    assert found.share_of_size == pytest.approx((2.1 + 1.0 + 1.0) / 8.0, rel=1e-5)
    assert [edge.measured for edge in found.largest] == pytest.approx([1.0, 2.1, 1.0])


def test_rows_are_means_over_prompts_by_distance() -> None:
    each = [
        made([1.0, 2.0, 3.0, 1.0, 2.0, 1.0], [1.0, 3.0, 2.0, 2.0, 2.0, 1.5], "a"),
        made([1.0, -2.0, 3.0, 1.0, 0.5, 1.0], [0.3, 3.0, 2.0, -2.0, 2.0, 1.5], "b"),
    ]
    rows = {(r.edges, r.kind): r for r in summarise_edges(each, model="base", nodes=3).rows}
    assert {edges for edges, _ in rows} == {"all", "1", "2", "contrast"}
    expected = [agreement(one.full[:4], one.measured[:4]).pearson for one in each]
    row = rows["all", "full"]
    assert row.agreement.pearson == pytest.approx(sum(expected) / 2)
    assert (row.n_edges, row.n_prompts) == (8, 2)
    low, high = row.intervals["pearson"]
    assert min(expected) - 1e-6 <= low <= high <= max(expected) + 1e-6
