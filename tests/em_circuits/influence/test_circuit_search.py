"""Circuit search against exhaustive removal, and clusters that are known."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import torch

from em_circuits.graphs import AttributionGraph, attribute
from em_circuits.influence.circuit_search import profiles, search_circuit, supernodes
from em_circuits.interventions.circuits import CircuitRuns
from em_circuits.organisms.compiled import known_contrast, known_pair, write_known
from em_circuits.organisms.known import PROGRAMS, Program
from pivotal_tokens.errors import RequestError, WorkFailed


def searched(
    program: Program, prompt: str, directory: Path, size: int
) -> tuple[AttributionGraph, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """A program's graph; the circuit's nodes, predicted and measured faithfulness by size."""
    with known_pair(write_known(program, directory), neurons=True) as pair:
        words = known_contrast(pair)
        graph = attribute(pair.base, prompt, words, nodes=1000)
        found = search_circuit(graph, words, size=size)
        runs = CircuitRuns.alone(pair.base, graph.input_ids, words)
        assert torch.equal(runs.coordinates, graph.selected_features)
        sets = [found.nodes[: k + 1] for k in range(len(found.nodes))]
        return graph, found.nodes, found.faithfulness, runs.sufficiency(sets)


@pytest.mark.parametrize(("name", "prompt"), [("and", "11"), ("chain", "1"), ("inhibit", "11")])
def test_nodes_that_are_needed_together_stay_together(
    name: str, prompt: str, tmp_path: Path
) -> None:
    program = PROGRAMS[name]
    truth = program.truth(prompt)
    size = len(truth.circuit)
    graph, nodes, predicted, measured = searched(program, prompt, tmp_path, size)
    found = {tuple(graph.selected_features[int(i)].tolist()) for i in nodes}
    if name == "inhibit":  # what holds back leaves: by itself the rest does more
        assert found - truth.circuit and predicted.max() > 1
        return
    assert found == truth.circuit
    assert measured is not None
    assert float(predicted[-1]) == pytest.approx(1, abs=2e-3)
    assert float(measured[-1]) == pytest.approx(1, abs=2e-3)


def test_predicted_faithfulness_is_the_linear_model_s(tmp_path: Path) -> None:
    """Against a dense inverse, for the set that the search ends with and for every pair."""
    with known_pair(write_known(PROGRAMS["xor"], tmp_path), neurons=True) as pair:
        words = known_contrast(pair)
        graph = attribute(pair.base, "10", words, nodes=1000)
        found = search_circuit(graph, words, size=2)
    layout, edges = graph.layout, graph.require_edges()
    dense = edges.to_dense()[layout.features, layout.features].double()
    p = dense / graph.selected_activations.double()[:, None]
    w = words.over(graph.targets.token_ids) @ edges.logit_rows()[:, layout.features].double()

    def faithful(kept: tuple[int, ...]) -> float:
        held = torch.ones(len(p), dtype=torch.float64)
        held[list(kept)] = 0
        responding = p.clone()
        responding[held > 0] = 0
        r = torch.linalg.inv(torch.eye(len(p)).double() - responding) @ -held
        return 1 + float(w @ r) / float(w.sum())

    kept = tuple(found.nodes.tolist())
    assert float(found.faithfulness[-1]) == pytest.approx(faithful(kept), abs=1e-9)
    best = max(faithful(pair) for pair in combinations(range(len(p)), 2))
    assert faithful(kept) == pytest.approx(best, abs=1e-6)


def test_what_cannot_be_searched_is_refused(tmp_path: Path) -> None:
    with known_pair(write_known(PROGRAMS["cancel"], tmp_path)) as pair:
        words = known_contrast(pair)
        frozen = attribute(pair.base, "1", words, edges="frozen")
        with pytest.raises(RequestError, match="frozen edges"):
            search_circuit(frozen, words, size=2)
        full = attribute(pair.base, "1", words, nodes=100)  # two paths undo each other
        with pytest.raises(WorkFailed, match="cancels"):
            search_circuit(full, words, size=2)


def test_alike_nodes_are_grouped(tmp_path: Path) -> None:
    """Three bits are read by the same neurons; rise and cap of a threshold undo each other."""
    graph, _, _, _ = searched(PROGRAMS["majority"], "111", tmp_path, 1)
    circuit = sorted(PROGRAMS["majority"].truth("111").circuit)
    nodes = torch.tensor([graph.node_named("/".join(map(str, node))) for node in circuit])
    groups, silhouette = supernodes(profiles(graph, nodes))
    found = {frozenset(circuit[i] for i in group) for group in groups}
    assert found == {
        frozenset({(0, 1, 0), (0, 1, 1), (0, 1, 2)}),
        frozenset({(1, 1, 0)}),
        frozenset({(1, 1, 1)}),
    }
    assert silhouette is not None and silhouette > 0.3


def test_few_nodes_or_none_alike_stay_alone() -> None:
    assert supernodes(torch.eye(2).double()) == ([[0], [1]], None)
    assert supernodes(torch.eye(4).double()) == ([[0], [1], [2], [3]], None)
    twins = torch.eye(3).double()[[0, 0, 1, 1, 2]]
    groups, silhouette = supernodes(twins)
    assert groups == [[0, 1], [2, 3], [4]] and silhouette == pytest.approx(0.8)
