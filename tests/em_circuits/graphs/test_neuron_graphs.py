"""Graphs of neurons: the identity holds on both models, nothing is error, frozen is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from subjects import Subject

from em_circuits.graphs import (
    AttributionGraph,
    AttributionSettings,
    GraphStore,
    attribute,
    full,
)
from em_circuits.influence import Targets, graph_scores, influence
from em_circuits.models.settings import PairSettings
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import RequestError


@pytest.fixture(scope="module", params=["base", "merged"])
def graph(request: pytest.FixtureRequest, neurons: Subject) -> AttributionGraph:
    pair = neurons.pair
    text = pair.tokenizer.decode(neurons.input_ids[1:])
    return attribute(pair.model(request.param), text, neurons.groups, nodes=50)


def test_total_effect_is_the_gradient(graph: AttributionGraph) -> None:
    values = influence(graph, Targets.each(graph)).values[:, graph.layout.features]
    assert graph.gradient is not None
    gradient = graph.gradient[:, graph.selected].double()
    assert (values - gradient).abs().max() <= 1e-5 * gradient.abs().max()


def test_nodes_are_neurons_and_nothing_is_error(
    graph: AttributionGraph, neurons: Subject, tmp_path: Path
) -> None:
    header = graph.header
    assert {part.basis for part in header.node_parts} == {"neuron"} and not header.with_errors
    assert header.transcoders == "none" and header.transcoder_fingerprint is None
    width = neurons.pair.base.dictionaries[0].width
    n_pos, n_layers = len(graph.input_ids), neurons.pair.base.sites.n_layers
    assert len(graph.active) >= 0.99 * width * n_pos * n_layers
    assert (graph.active[:, 1] == 0).any()
    store = GraphStore(tmp_path)
    store.save(graph, {})
    loaded = store.load(header.key)
    assert torch.equal(loaded.selected, graph.selected)
    assert loaded.name_of(3) == graph.name_of(3)


def test_what_rests_on_errors_is_refused(graph: AttributionGraph) -> None:
    with pytest.raises(RequestError, match="full edges"):
        graph_scores(graph)


def test_frozen_edges_are_refused_before_anything_is_loaded(neurons: Subject) -> None:
    models = PairSettings(base="nowhere", adapter="nowhere", transcoders="none")
    for wanted in ({"edges": "frozen"}, {"basis": ("transcoder",)}):
        settings = AttributionSettings(**wanted)  # type: ignore[arg-type]
        with pytest.raises(RequestError, match="--transcoders none has no"):
            Workspace(root=Path("nowhere"), models=models, attribution=settings)
    text = neurons.pair.tokenizer.decode(neurons.input_ids[1:])
    with pytest.raises(RequestError, match="no frozen edges"):
        attribute(neurons.pair.merged, text, edges="frozen")


def test_of_millions_of_neurons_the_largest_are_stored(
    neurons: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, text = neurons.model, neurons.pair.tokenizer.decode(neurons.input_ids[1:])
    whole = attribute(model, text, neurons.groups, nodes=50)
    monkeypatch.setattr(full, "MOST_ACTIVE", 200)
    few = attribute(model, text, neurons.groups, nodes=50)
    store = GraphStore(tmp_path)
    store.save(few, {})
    few = store.load(few.header.key)
    assert few.n_active == few.header.n_active == len(whole.active) > 200 == len(few.active)
    assert whole.header.n_active is None and whole.n_active == len(whole.active)
    assert few.truncated and few.names(few.selected_features) == whole.names(
        whole.selected_features
    )
    assert torch.equal(few.require_edges().to_dense(), whole.require_edges().to_dense())
    weights = neurons.groups.over(whole.targets.token_ids)
    sizes = (weights @ whole.gradient.double()).abs()
    rows = [whole.active_index(place) for place in few.names(few.active)]
    assert sizes[rows].min() >= sizes.topk(200).values[-1] * (1 - 1e-5)
    assert torch.equal(few.gradient, whole.gradient[:, rows])
    assert torch.equal(few.activations, whole.activations[rows])
