"""Contrasts: mean evil minus mean safe, over logits, targets and scores."""

import pytest
import torch

from em_circuits.contrast import Contrast, demeaned
from pivotal_tokens.errors import RequestError

LOGITS = torch.tensor([[1.0, 2.0, 4.0, -1.0], [0.0, 0.0, 0.0, 0.0]])


def test_contrast_is_mean_evil_minus_mean_safe() -> None:
    groups = Contrast(evil=(0, 2), safe=(3,))
    assert groups.value(LOGITS).tolist() == [3.5, 0.0]
    assert (LOGITS @ groups.weights(4)).tolist() == [3.5, 0.0]


def test_contrast_does_not_care_about_demeaning() -> None:
    groups = Contrast(evil=(0, 2), safe=(3,))
    assert torch.allclose(groups.value(demeaned(LOGITS)), groups.value(LOGITS))


def test_demeaned_logits_have_mean_zero() -> None:
    assert demeaned(LOGITS).mean(-1).abs().max() < 1e-6


@pytest.mark.parametrize("labels", [{1: "evil"}, {1: "safe"}, {1: "unsure"}, {}])
def test_a_side_without_tokens_is_no_contrast_and_never_zero(labels: dict) -> None:
    groups = Contrast.from_labels(labels)
    assert groups.value(LOGITS) is None
    with pytest.raises(RequestError, match="no contrast"):
        groups.weights(4)


def test_evil_mass_is_a_sum_of_probabilities() -> None:
    groups = Contrast.from_labels({0: "evil", 1: "evil", 2: "unsure", 3: "safe"})
    assert float(groups.evil_mass(LOGITS[1])) == pytest.approx(0.5)


def test_a_token_cannot_be_evil_and_safe() -> None:
    with pytest.raises(RequestError, match="token 2"):
        Contrast((1, 2), (2,))
