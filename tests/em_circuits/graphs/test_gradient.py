"""Gradient scores are the real model's, checked by finite differences at 1 % of the activation."""

from __future__ import annotations

from typing import Any

import torch
from subjects import Subject, in_float64

from em_circuits.graphs.gradient import demeaned_targets, feature_scores, mlp_output_gradients


def scores_of(subject: Subject, targets: torch.Tensor):
    model = subject.model
    context = model.replacement.setup_attribution(subject.input_ids)
    d_vocab = context.logits.shape[-1]
    gradients = mlp_output_gradients(model, subject.input_ids, demeaned_targets(targets, d_vocab))
    active = context.activation_matrix.indices().T
    return context, gradients, feature_scores(gradients, active, context.decoder_vecs)


def nudged(subject: Subject, layer: int, position: int, vector: torch.Tensor) -> torch.Tensor:
    def write(at: int, output: torch.Tensor) -> torch.Tensor | None:
        if at != layer:
            return None
        changed = output.clone()
        changed[:, position] += vector
        return changed

    with subject.model.sites.hooked(write=write):
        logits = subject.model.next_logits(subject.input_ids).double()
    return logits - logits.mean()


def test_scores_are_finite_differences_of_the_real_model(subject: Subject) -> None:
    targets = torch.tensor([*subject.groups.evil, *subject.groups.safe])
    # The replacement model is built around the real one as it is then: before that is in float64.
    context = subject.model.replacement.setup_attribution(subject.input_ids)
    with in_float64(subject.model):
        scores = scores_of_double(subject, context, targets)
        active = context.activation_matrix.indices().T
        chosen = torch.randperm(len(active), generator=torch.Generator().manual_seed(0))[:60]
        step = 0.1  # Llama's norms round to float32 even here: smaller steps drown in it
        found, expected = [], []
        for i in chosen.tolist():
            layer, position, _ = active[i].tolist()
            slopes = []
            for part in (step, step / 2):
                vector = part * context.decoder_vecs[i].double()
                plus = nudged(subject, layer, position, vector)[targets]
                minus = nudged(subject, layer, position, -vector)[targets]
                slopes.append((plus - minus) / (2 * part))
            # Richardson: the error of a central difference falls with the square of its step.
            expected.append((4 * slopes[1] - slopes[0]) / 3)
            found.append(scores[:, i])
    left, right = torch.stack(found).flatten().double(), torch.stack(expected).flatten()
    assert torch.corrcoef(torch.stack([left, right]))[0, 1] >= 0.9999
    assert (left - right).abs().max() <= 1e-3 * right.abs().max()


def scores_of_double(subject: Subject, context: Any, targets: torch.Tensor) -> torch.Tensor:
    weights = demeaned_targets(targets, context.logits.shape[-1])
    gradients = mlp_output_gradients(subject.model, subject.input_ids, weights.double())
    active = context.activation_matrix.indices().T
    return feature_scores(gradients, active, context.decoder_vecs)


def test_batches_of_targets_do_not_change_the_scores(subject: Subject) -> None:
    targets = torch.tensor([*subject.groups.evil, *subject.groups.safe])
    weights = demeaned_targets(targets, subject.model.hf.config.vocab_size)
    whole = mlp_output_gradients(subject.model, subject.input_ids, weights)
    parts = mlp_output_gradients(subject.model, subject.input_ids, weights, batch_size=2)
    assert (whole - parts).abs().max() <= 1e-5 * whole.abs().max()


def test_scores_contract_gradient_and_decoder_row_by_row(subject: Subject) -> None:
    context, gradients, scores = scores_of(subject, torch.tensor(subject.groups.evil))
    active = context.activation_matrix.indices().T
    for i in range(0, len(active), 37):
        layer, position, _ = active[i].tolist()
        expected = gradients[:, layer, position] @ context.decoder_vecs[i].float()
        assert torch.allclose(scores[:, i], expected, atol=1e-5 * float(scores.abs().max()))


def test_nothing_stays_hooked_and_no_parameter_wants_a_gradient(subject: Subject) -> None:
    before = subject.model.next_logits(subject.input_ids)
    scores_of(subject, torch.tensor(subject.groups.evil))
    assert torch.equal(subject.model.next_logits(subject.input_ids), before)
    assert not any(p.requires_grad for p in subject.model.hf.parameters())
