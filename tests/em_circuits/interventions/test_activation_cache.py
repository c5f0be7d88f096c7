"""Activation caches hold what a graph and the transcoders say of the same prompt."""

import pytest
import torch
from subjects import Subject


@pytest.mark.frozen
def test_active_features_and_errors_are_those_of_a_graph(subject: Subject) -> None:
    state = subject.state()
    context = subject.model.replacement.setup_attribution(subject.input_ids)
    graph = context.activation_matrix.coalesce()
    assert torch.equal(state.active, graph.indices().T)
    assert torch.allclose(state.activations, graph.values(), atol=1e-5)
    errors = state.errors(subject.model)[:, 1:]
    assert torch.allclose(errors, context.error_vectors[:, 1:], atol=1e-4)


def test_a_feature_that_is_not_active_has_activation_zero(subject: Subject) -> None:
    state = subject.state()
    asked = torch.tensor([[0, 0, 3], [*state.active[5].tolist()]])
    assert state.activation_of(asked).tolist() == [0.0, float(state.activations[5])]


def test_dense_activations_hold_the_same_values(subject: Subject) -> None:
    state = subject.state()
    layer = state.active[:, 0] == 1
    assert state.dense_activations(1).count_nonzero() == layer.sum()
    assert torch.isclose(state.dense_activations(1).sum(), state.activations[layer].sum())
