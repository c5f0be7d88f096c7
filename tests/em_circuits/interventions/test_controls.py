"""Matched random draws: same layer, similar activation, never a chosen feature."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from subjects import Subject

from em_circuits.interventions import Mode, matched_controls, on_each
from em_circuits.interventions.feature_rows import decoder_norms
from em_circuits.interventions.matched_controls import (
    Pool,
    apply_to,
    matched_draws,
    random_places,
)
from em_circuits.spread import Spread
from pivotal_tokens.errors import RequestError


def pool(n: int = 300, layers: int = 3) -> Pool:
    generator = torch.Generator().manual_seed(0)
    amount = torch.rand(n, generator=generator) * 5
    return Pool(torch.arange(n) % layers, amount, 1 + torch.rand(n, generator=generator))


@settings(max_examples=30, deadline=None)
@given(st.sets(st.integers(0, 299), min_size=1, max_size=100), st.integers(0, 5))
def test_draws_never_repeat_and_never_hold_a_chosen_feature(chosen: set, seed: int) -> None:
    picked = torch.tensor(sorted(chosen))
    draws = matched_draws(pool(), picked, n_draws=20, seed=seed)
    assert draws is not None
    for draw in draws.tolist():
        assert len(set(draw)) == len(draw) and not set(draw) & chosen


def test_draws_stay_in_the_layer_and_near_the_activation() -> None:
    candidates, chosen = pool(), torch.arange(0, 60, 6)
    draws = matched_draws(candidates, chosen, n_draws=20)
    assert draws is not None
    assert (candidates.layer[draws] == candidates.layer[chosen]).all()
    ratio = (candidates.amount[draws] / candidates.amount[chosen]).log().abs().mean()
    anyone = (candidates.amount[:, None] / candidates.amount[chosen]).log().abs().mean()
    assert ratio < anyone


def test_another_layer_serves_only_where_the_own_one_is_used_up() -> None:
    layer = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    draws = matched_draws(Pool(layer, torch.ones(7), torch.ones(7)), torch.tensor([0, 1]))
    assert draws is not None
    assert ((layer[draws] == 0).sum(1) == 1).all()


def test_too_few_candidates_are_no_draw() -> None:
    assert matched_draws(pool(5, 1), torch.arange(3)) is None


def test_barred_candidates_are_never_drawn() -> None:
    barred = torch.arange(10, 300)
    draws = matched_draws(pool(), torch.arange(5), barred=barred)
    assert draws is not None
    assert set(draws.flatten().tolist()) == set(range(5, 10))


def test_the_same_seed_draws_the_same() -> None:
    one, same, other = (matched_draws(pool(), torch.arange(9), seed=s) for s in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_spread_is_mean_deviation_and_the_middle_95_percent() -> None:
    spread = Spread.of(torch.arange(101).float())
    assert (spread.mean, spread.low, spread.high) == pytest.approx((50.0, 2.5, 97.5))
    assert spread.sd == pytest.approx(float(torch.arange(101).float().std()))


def test_substitutes_are_other_active_feature_ids_of_like_size(subject: Subject) -> None:
    state = subject.state()
    steered = [tuple(p) for p in state.active[::97].tolist()]
    items = on_each(steered, Mode.ABLATE)
    places = random_places(subject.model, state, items, n_draws=20, seed=0)
    ids = {(layer, feature) for layer, _, feature in steered}
    for draw in places.tolist():
        assert not ids & {(layer, feature) for layer, _, feature in draw}
    assert (state.activation_of(places.reshape(-1, 3)) > 0).all()
    assert (places[..., 0] == torch.tensor(steered)[:, 0]).float().mean() > 0.9
    norms = decoder_norms(subject.model, *torch.tensor(steered)[:, ::2].T)
    assert norms.shape == (len(steered),) and (norms > 0).all()


def test_substitutes_of_features_at_every_position_are_at_every_position(
    subject: Subject,
) -> None:
    state = subject.state()
    items = on_each(
        [(a, None if i % 2 else b, c) for i, (a, b, c) in enumerate(state.active[::60].tolist())],
        Mode.SCALE,
        2.0,
    )
    draw = random_places(subject.model, state, items, n_draws=20, seed=0)[3]
    replaced = apply_to(items, draw.tolist())
    assert [r.position is None for r in replaced] == [i.position is None for i in items]
    assert {(r.mode, r.value) for r in replaced} == {(Mode.SCALE, 2.0)}


def test_too_few_other_features_are_an_error_that_says_so(subject: Subject) -> None:
    state = subject.state()
    items = on_each([tuple(p) for p in state.active.tolist()], Mode.ABLATE)
    with pytest.raises(RequestError, match="no random control"):
        random_places(subject.model, state, items, n_draws=20, seed=0)


@pytest.mark.parametrize(("n", "layers", "known"), [(3000, 4, 256), (900, 6, 256), (200, 6, 180)])
def test_neighbours_are_the_nearest_by_distance(n: int, layers: int, known: int) -> None:
    """Searched in a tree where a layer has enough of them, else by all distances."""
    drawn = torch.Generator().manual_seed(n)
    layer = torch.randint(layers, (n,), generator=drawn).sort().values
    pool = Pool(layer, torch.randn(n, generator=drawn), torch.rand(n, generator=drawn))
    chosen = torch.randperm(n, generator=drawn)[:20]
    candidates = torch.ones(n, dtype=torch.bool).index_fill_(0, chosen, False).nonzero()[:, 0]
    found = matched_controls._neighbours(pool, chosen, candidates)
    assert found.shape == (20, known)
    places = torch.stack([pool.amount.abs(), pool.norm], 1).double().add(1e-6).log()
    for one, nearest in zip(chosen.tolist(), candidates[found], strict=True):
        distance = (places[candidates] - places[one]).abs().sum(1)
        distance[layer[candidates] != layer[one]] += 1e6
        assert nearest.tolist() == candidates[distance.argsort()[:known]].tolist()
