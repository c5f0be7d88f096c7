"""Methods on known circuits: full and measured edges find every one, frozen ones do not."""

from __future__ import annotations

import pytest

from em_circuits.experiments.known_circuits import KnownScores, score_known
from em_circuits.organisms.known import FIRST_ORDER_BLIND, PROGRAMS

CHOSEN = ("xor", "product", "select", "dormant")


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> KnownScores:
    return score_known(tmp_path_factory.mktemp("known"), [PROGRAMS[name] for name in CHOSEN])


def test_full_and_measured_edges_are_exact_at_the_true_size(scores: KnownScores) -> None:
    found = {(one.kind, one.basis): one for one in scores.edges}
    for basis in ("neuron", "transcoder"):
        assert found["measured", basis].auroc == 1 and not found["measured", basis].not_exact
        assert found["full", basis].not_exact == FIRST_ORDER_BLIND
        assert found["full", basis].worst_program == "dormant"


def test_frozen_edges_miss_what_a_pattern_carries(scores: KnownScores) -> None:
    frozen = next(one for one in scores.edges if one.kind == "frozen")
    assert frozen.basis == "transcoder"
    assert set(frozen.not_exact) == {"select", *FIRST_ORDER_BLIND}


def test_really_removing_nodes_finds_the_circuit(scores: KnownScores) -> None:
    found = {(one.method, one.basis): one for one in scores.nodes}
    for basis in ("neuron", "transcoder"):
        assert found["measured", basis].auroc == 1
        assert found["measured", basis].faithfulness == pytest.approx(1, abs=1e-3)
    # The product has no exact transcoder: one program less.
    assert found["measured", "transcoder"].programs == found["measured", "neuron"].programs - 1
    every = {method for method, _ in found}
    assert every >= {"gradient", "greedy", "circuit search", "full pruning", "frozen pruning"}
