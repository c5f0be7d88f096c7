"""Targets by name: what matches, what does not, what the weights are."""

import dataclasses

import pytest
import torch
from synthetic import D_VOCAB, Size, synthetic_graph

from em_circuits.influence import contrast, match, one_per_logit, probabilities, tokens
from em_circuits.influence.seeds import TargetSeed
from pivotal_tokens.errors import RequestError

GRAPH = synthetic_graph(Size(n_logits=5))
IDS = GRAPH.targets.token_ids.tolist()


def test_one_target_per_logit():
    targets = one_per_logit(GRAPH)
    assert torch.equal(targets.weights, torch.eye(5, dtype=torch.float64))
    assert targets.names == GRAPH.targets.texts
    assert targets.logits == (0, 1, 2, 3, 4)


def test_tokens_by_id():
    targets = tokens(GRAPH, [IDS[3], IDS[0]])
    assert targets.logits == (3, 0)
    assert targets.weights.tolist() == [[0, 0, 0, 1, 0], [1, 0, 0, 0, 0]]
    with pytest.raises(RequestError, match=r"Tokens \[999\] are no targets"):
        tokens(GRAPH, [IDS[0], 999])
    with pytest.raises(RequestError):
        tokens(GRAPH, [])


def test_a_uniform_contrast():
    targets = contrast(GRAPH, [IDS[0], IDS[4]], [IDS[2]])
    assert targets.weights.tolist() == [[0.5, 0, -1, 0, 0.5]]
    assert targets.names == ("evil - safe (uniform)",)
    assert targets.logits == (None,)


def test_a_contrast_by_probability():
    targets = contrast(GRAPH, IDS[:2], IDS[2:], weighting="probability")
    p = GRAPH.targets.probabilities.double()
    expected = torch.cat([p[:2] / p[:2].sum(), -p[2:] / p[2:].sum()])
    assert torch.allclose(targets.weights[0], expected)
    assert targets.names == ("evil - safe (probability)",)
    assert float(targets.weights.sum()) == pytest.approx(0)


def test_tokens_that_are_no_targets_are_reported():
    targets = contrast(GRAPH, [IDS[0], 998], [IDS[1], 999])
    assert targets.unmatched == (998, 999)
    assert targets.weights.tolist() == [[1, -1, 0, 0, 0]]


def test_a_contrast_needs_both_sides():
    with pytest.raises(RequestError, match="No contrast: none of the 1 evil"):
        contrast(GRAPH, [999], [IDS[0]])
    with pytest.raises(RequestError, match="No contrast: none of the 0 safe"):
        contrast(GRAPH, [IDS[0]], [])
    with pytest.raises(RequestError, match="both sides"):
        contrast(GRAPH, IDS[:2], IDS[1:])


def test_a_side_without_probability_cannot_be_weighed_by_it():
    targets = dataclasses.replace(GRAPH.targets, probabilities=torch.zeros(5))
    graph = dataclasses.replace(GRAPH, targets=targets)
    with pytest.raises(RequestError, match="probability 0"):
        contrast(graph, IDS[:1], IDS[1:2], weighting="probability")


def test_a_virtual_target_matches_no_token():
    ids = GRAPH.targets.token_ids.clone()
    ids[2] = D_VOCAB + 2
    graph = dataclasses.replace(GRAPH, targets=dataclasses.replace(GRAPH.targets, token_ids=ids))
    assert match(graph, [IDS[0], D_VOCAB + 2]) == ((0,), (D_VOCAB + 2,))
    assert len(one_per_logit(graph)) == 5


def test_a_token_is_counted_once():
    ids = GRAPH.targets.token_ids.clone()
    ids[1] = ids[0]
    graph = dataclasses.replace(GRAPH, targets=dataclasses.replace(GRAPH.targets, token_ids=ids))
    assert match(graph, [IDS[0], IDS[0]]) == ((0,), ())


def test_probabilities_are_one_target():
    targets = probabilities(GRAPH)
    assert torch.equal(targets.weights[0], GRAPH.targets.probabilities.double())


def test_weights_must_be_finite_and_named():
    weights = torch.full((1, 5), torch.nan, dtype=torch.float64)
    with pytest.raises(RequestError, match="finite"):
        TargetSeed(weights, ("x",), (None,))
    with pytest.raises(RequestError, match="2 names"):
        TargetSeed(torch.ones(1, 5, dtype=torch.float64), ("x", "y"), (None,))
