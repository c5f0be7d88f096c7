"""Targets by name: what matches, what does not, what the weights are."""

import dataclasses

import jaxtyping
import pytest
import torch
from synthetic import D_VOCAB, Size, contrast_of, synthetic_graph

from em_circuits.contrast import Contrast
from em_circuits.influence import Method, influence
from em_circuits.influence.targets import Targets, match
from pivotal_tokens.errors import RequestError

GRAPH = synthetic_graph(Size(n_logits=5))
IDS = GRAPH.targets.token_ids.tolist()


def test_one_target_per_logit():
    targets = Targets.each(GRAPH)
    assert torch.equal(targets.weights, torch.eye(5, dtype=torch.float64))
    assert targets.names == GRAPH.targets.texts
    assert targets.logits == (0, 1, 2, 3, 4)


def test_tokens_by_id():
    targets = Targets.tokens(GRAPH, [IDS[3], IDS[0]])
    assert targets.logits == (3, 0)
    assert targets.weights.tolist() == [[0, 0, 0, 1, 0], [1, 0, 0, 0, 0]]
    with pytest.raises(RequestError, match=r"Tokens \[999\] are no targets"):
        Targets.tokens(GRAPH, [IDS[0], 999])
    with pytest.raises(RequestError):
        Targets.tokens(GRAPH, [])


def test_a_uniform_contrast():
    targets = contrast_of(GRAPH, [IDS[0], IDS[4]], [IDS[2]])
    assert targets.weights.tolist() == [[0.5, 0, -1, 0, 0.5]]
    assert targets.names == ("evil - safe (uniform)",)
    assert targets.logits == (None,)


def test_a_contrast_by_probability():
    targets = contrast_of(GRAPH, IDS[:2], IDS[2:], weighting="probability")
    p = GRAPH.targets.probabilities.double()
    expected = torch.cat([p[:2] / p[:2].sum(), -p[2:] / p[2:].sum()])
    assert torch.allclose(targets.weights[0], expected)
    assert targets.names == ("evil - safe (probability)",)
    assert float(targets.weights.sum()) == pytest.approx(0)


def test_tokens_that_are_no_targets_are_reported():
    targets = contrast_of(GRAPH, [IDS[0], 998], [IDS[1], 999])
    assert targets.unmatched == (998, 999)
    assert targets.weights.tolist() == [[1, -1, 0, 0, 0]]


def test_a_contrast_needs_both_sides():
    with pytest.raises(RequestError, match="no contrast: none of the 1 evil"):
        contrast_of(GRAPH, [999], [IDS[0]])
    with pytest.raises(RequestError, match="no contrast: 1 evil and 0 safe"):
        contrast_of(GRAPH, [IDS[0]], [])
    with pytest.raises(RequestError, match="evil and safe"):
        contrast_of(GRAPH, IDS[:2], IDS[1:])


def test_a_side_without_probability_cannot_be_weighed_by_it():
    targets = dataclasses.replace(GRAPH.targets, probabilities=torch.zeros(5))
    graph = dataclasses.replace(GRAPH, targets=targets)
    with pytest.raises(RequestError, match="probability 0"):
        contrast_of(graph, IDS[:1], IDS[1:2], weighting="probability")


def test_a_virtual_target_matches_no_token():
    ids = GRAPH.targets.token_ids.clone()
    ids[2] = D_VOCAB + 2
    graph = dataclasses.replace(GRAPH, targets=dataclasses.replace(GRAPH.targets, token_ids=ids))
    assert match(graph, [IDS[0], D_VOCAB + 2]) == ((0,), (D_VOCAB + 2,))
    assert len(Targets.each(graph)) == 5


def test_a_token_is_counted_once():
    ids = GRAPH.targets.token_ids.clone()
    ids[1] = ids[0]
    graph = dataclasses.replace(GRAPH, targets=dataclasses.replace(GRAPH.targets, token_ids=ids))
    assert match(graph, [IDS[0], IDS[0]]) == ((0,), ())


def test_probabilities_are_one_target():
    targets = Targets.probabilities(GRAPH)
    assert torch.equal(targets.weights[0], GRAPH.targets.probabilities.double())


def test_weights_must_be_finite_and_named():
    weights = torch.full((1, 5), torch.nan, dtype=torch.float64)
    with pytest.raises(RequestError, match="finite"):
        Targets(weights, ("x",), (None,))
    with pytest.raises(RequestError, match="2 names"):
        Targets(torch.ones(1, 5, dtype=torch.float64), ("x", "y"), (None,))


def test_what_is_no_target_says_what_is(monkeypatch):
    monkeypatch.setitem(jaxtyping.config.__dict__, "jaxtyping_disable", True)
    with pytest.raises(RequestError, match="'evil-safe' is no target: give a Contrast"):
        influence(GRAPH, "evil-safe")


def test_a_contrast_is_a_target_as_it_is():
    ids = tuple(IDS)
    values = influence(GRAPH, Contrast(ids[:1], ids[1:])).values
    expected = influence(GRAPH, contrast_of(GRAPH, IDS[:1], IDS[1:]), Method.TOTAL_EFFECT).values
    assert torch.equal(values, expected)
