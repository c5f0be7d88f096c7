"""Greedy selection: every step is the best measured one, and what it finds really works."""

from __future__ import annotations

import pytest
import torch
from subjects import Subject

from em_circuits.feature import FeatureId
from em_circuits.interventions import (
    ActivationCache,
    Mode,
    Treatment,
    Where,
    greedy_ids,
    joint_scores,
    on_each,
    run_rows,
    set_effects,
)
from em_circuits.interventions.greedy_selection import CANDIDATES, greedy_scores, select_greedily
from pivotal_tokens.errors import RequestError


def test_a_step_takes_what_adds_most_beside_those_chosen() -> None:
    alone = [3.0, 2.5, 2.0, 0.0]

    def value(members: list[int]) -> float:
        total = sum(alone[i] for i in members)
        total -= 2.4 * ({0, 1} <= set(members))  # 1 does the work of 0 once more
        return total + 4.0 * ({2, 3} <= set(members))  # 3 works beside 2 alone

    def measure(sets: list[list[int]]) -> torch.Tensor:
        return torch.tensor([value(members) for members in sets])

    assert select_greedily(measure, n_candidates=4, k=4) == [0, 2, 3, 1]
    assert select_greedily(measure, n_candidates=4, k=2) == [0, 2]
    assert select_greedily(measure, n_candidates=2, k=9) == [0, 1]
    assert select_greedily(measure, n_candidates=0, k=3) == []


def test_ties_go_to_the_first() -> None:
    assert select_greedily(lambda sets: torch.zeros(len(sets)), n_candidates=3, k=2) == [0, 1]


def targets_of(subject: Subject) -> torch.Tensor:
    return torch.tensor([*subject.groups.evil, *subject.groups.safe])


def chosen_on(subject: Subject, k: int) -> tuple[ActivationCache, torch.Tensor, torch.Tensor]:
    """The prompt on the merged model, the places chosen there, and their scores."""
    model = subject.pair.merged
    state = ActivationCache.capture(model, subject.input_ids)
    scores, chosen = greedy_scores(model, state, subject.groups, targets_of(subject), k=k)
    return state, state.active.cpu()[chosen], scores[:, chosen]


def largest_joint(subject: Subject, state: ActivationCache, k: int) -> torch.Tensor:
    """The k places of the largest joint score on the contrast."""
    targets = targets_of(subject)
    weights = subject.groups.over(targets, strict=True).float()
    joint = weights @ joint_scores(subject.pair.merged, state, subject.groups, targets)
    return state.active.cpu()[joint.topk(k).indices]


def test_scores_of_the_chosen_add_up_to_the_effect_of_the_set(subject: Subject) -> None:
    state, chosen, scores = chosen_on(subject, 4)
    sets = chosen[None]
    whole = set_effects(subject.pair.merged, state, sets, targets=targets_of(subject))[0]
    assert len(chosen.unique(dim=0)) == 4
    torch.testing.assert_close(scores.sum(1), whole, rtol=1e-4, atol=1e-4)


def test_the_first_is_the_candidate_of_the_largest_measured_effect(subject: Subject) -> None:
    state, chosen, _ = chosen_on(subject, 1)
    places = largest_joint(subject, state, CANDIDATES)
    model, sets = subject.pair.merged, places[:, None]
    effects = set_effects(model, state, sets, targets=subject.groups)[:, 0]
    assert chosen[0].tolist() == places[int(effects.argmax())].tolist()


def test_the_set_does_more_than_the_largest_joint_scores(subject: Subject) -> None:
    if subject.name == "lifelike":
        pytest.skip("random weights: nothing is redundant there")
    state, chosen, _ = chosen_on(subject, 10)
    sets = torch.stack([chosen, largest_joint(subject, state, 10)])
    effects = set_effects(subject.pair.merged, state, sets, targets=subject.groups)[:, 0]
    by_greedy, by_joint = effects.tolist()
    assert by_greedy > by_joint > 0


def test_tokens_of_the_contrast_must_be_targets(subject: Subject) -> None:
    state = ActivationCache.capture(subject.pair.merged, subject.input_ids)
    few = targets_of(subject)[1:]
    with pytest.raises(RequestError, match="are no targets"):
        greedy_scores(subject.pair.merged, state, subject.groups, few)


def test_ids_are_chosen_by_what_ablating_them_everywhere_does(subject: Subject) -> None:
    model = subject.pair.merged
    longer = ActivationCache.capture(model, subject.input_ids)
    shorter = ActivationCache.capture(model, subject.input_ids[:-1])
    pairs = [(state, subject.groups) for state in (longer, shorter)]
    ids = [FeatureId(layer, feature) for layer, _, feature in longer.active.cpu()[-12:].tolist()]
    candidates = list(dict.fromkeys(ids))
    lowered = []
    for layer, feature in candidates:
        rows = [
            Treatment(),
            Treatment(interventions=on_each([(layer, Where.PROMPT, feature)], Mode.ABLATE)),
        ]
        values = [groups.value(run_rows(model, s, rows)) for s, groups in pairs]
        lowered.append(sum(float(v[0] - v[1]) for v in values))
    best = candidates[int(torch.tensor(lowered).argmax())]
    chosen = greedy_ids(model, pairs, candidates, k=3)
    assert chosen[0] == best
    assert len(set(chosen)) == 3 and set(chosen) <= set(candidates)
