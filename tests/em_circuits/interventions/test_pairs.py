"""Pairs of ablations beside the engine, one pair at a time."""

from itertools import combinations

import pytest
import torch
from subjects import Subject

from em_circuits.interventions import Mode, Regime, on_each, pair_effects, run_rows
from pivotal_tokens.errors import RequestError


@pytest.mark.parametrize("regime", [Regime.FREE, Regime.ATTENTION_FROZEN])
def test_a_joint_effect_is_that_of_ablating_both_one_pair_at_a_time(
    subject: Subject, regime: Regime
) -> None:
    state = subject.state()
    step = max(1, len(state.active) // 5)
    features = state.active[::step][:5].cpu()
    found = pair_effects(
        subject.model, state, features, subject.groups, regime=regime, batch_size=4
    )
    places = [tuple(f) for f in features.tolist()]

    def effect(*numbers: int) -> float:
        chosen = on_each([places[i] for i in numbers], Mode.ABLATE)
        values = subject.groups.value(run_rows(subject.model, state, [[], chosen], regime))
        return float(values[0] - values[1])

    within = 1e-5 * max(1, subject.logit_scale())
    for i in range(len(places)):
        assert float(found.single[i]) == pytest.approx(effect(i), abs=within)
        assert float(found.joint[i, i]) == float(found.single[i])
    for i, j in combinations(range(len(places)), 2):
        both = effect(i, j)
        assert (
            float(found.joint[i, j]) == float(found.joint[j, i]) == pytest.approx(both, abs=within)
        )
        expected = both - effect(i) - effect(j)
        assert float(found.interaction[i, j]) == pytest.approx(expected, abs=4 * within)
    largest = found.largest(3)
    sizes = [abs(value) for _, _, value in largest]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == float(found.interaction.abs().max())
    assert found.interaction.diag().eq(0).all()


def test_one_feature_has_no_pairs(subject: Subject) -> None:
    with pytest.raises(RequestError, match="no pairs"):
        pair_effects(subject.model, subject.state(), torch.tensor([[0, 1, 2]]), subject.groups)
