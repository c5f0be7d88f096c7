"""Batched rows against circuit-tracer's `feature_intervention`, one by one."""

import pytest
import torch
from subjects import Subject, hooks_on

from em_circuits.interventions import ActivationCache, Intervention, Mode, Regime, run_rows

UPSTREAM = {
    Regime.DIRECT: {"constrained_layers": range(4)},
    Regime.ATTENTION_FROZEN: {"freeze_attention": True},
    Regime.FREE: {"freeze_attention": False},
}


def some_features(state: ActivationCache, n: int) -> list[list[int]]:
    chosen = torch.randperm(len(state.active), generator=torch.Generator().manual_seed(0))[:n]
    last = (state.active[:, 1] == state.n_pos - 1).nonzero()[:3, 0]
    return state.active[torch.cat([chosen[: n - 3], last])].tolist()


def upstream(subject: Subject, values: list[tuple], regime: Regime) -> torch.Tensor:
    model = subject.model.replacement
    return model.feature_intervention(subject.input_ids, values, **UPSTREAM[regime])[0][0, -1]


@pytest.mark.parametrize("regime", list(UPSTREAM))
@pytest.mark.frozen
def test_rows_equal_upstream_one_by_one(subject: Subject, regime: Regime) -> None:
    state = subject.state()
    rows, oracle = [], []
    for layer, position, feature in some_features(state, 5):
        own = float(state.activation_of(torch.tensor([[layer, position, feature]])))
        for mode, value, new in (
            (Mode.SET, 2.5, 2.5),
            (Mode.SCALE, -3.0, -3.0 * own),
            (Mode.ADD, 1.5, own + 1.5),
            (Mode.ABLATE, None, 0.0),
            (Mode.CLAMP, own / 2, own / 2),
        ):
            item = Intervention(
                layer=layer, position=position, feature=feature, mode=mode, value=value
            )
            rows.append([item])
            oracle.append([(layer, position, feature, new)])
    expected = torch.stack([upstream(subject, values, regime) for values in oracle])
    measured = run_rows(subject.model, state, rows, regime, batch_size=16)
    assert (measured - state.logits).abs().max() > 0.1
    assert (measured - expected).abs().max() <= 1e-5 * max(1, subject.logit_scale())


@pytest.mark.parametrize("regime", list(UPSTREAM))
@pytest.mark.frozen
def test_several_features_at_once_equal_upstream(subject: Subject, regime: Regime) -> None:
    state = subject.state()
    features = some_features(state, 12)
    inactive = [0, state.n_pos - 1, int((state.dense_activations(0)[-1] == 0).nonzero()[0, 0])]
    values = [(*place, 0.5 * i) for i, place in enumerate([*features, inactive])]
    row = [
        Intervention(layer=lay, position=pos, feature=f, mode=Mode.SET, value=v)
        for lay, pos, f, v in values
    ]
    measured = run_rows(subject.model, state, [row, row[:1]], regime)
    expected = torch.stack([upstream(subject, v, regime) for v in (values, values[:1])])
    assert (measured - expected).abs().max() <= 1e-5 * max(1, subject.logit_scale())


@pytest.mark.frozen
def test_scaling_several_follows_the_activations_of_the_pass_itself(subject: Subject) -> None:
    state, model = subject.state(), subject.model.replacement
    places = sorted(some_features(state, 10))
    values: list[tuple] = []
    for place in places:  # what upstream finds there once the features below are changed
        activations = model.feature_intervention(subject.input_ids, values, freeze_attention=False)[
            1
        ]
        values.append((*place, 3.0 * float(activations[tuple(place)])))
    row = [
        Intervention(layer=lay, position=pos, feature=f, mode=Mode.SCALE, value=3.0)
        for lay, pos, f in places
    ]
    measured = run_rows(subject.model, state, [row])[0]
    expected = upstream(subject, values, Regime.FREE)
    assert (measured - expected).abs().max() <= 2e-5 * max(1, subject.logit_scale())


def test_every_position_equals_the_positions_one_by_one(subject: Subject) -> None:
    state = subject.state()
    layer, _, feature = some_features(state, 4)[0]
    item = Intervention(layer=layer, feature=feature, mode=Mode.ADD, value=1.0)
    each = [item.model_copy(update={"position": p}) for p in range(1, state.n_pos)]
    everywhere, one_by_one = run_rows(subject.model, state, [[item], each])
    assert torch.equal(everywhere, one_by_one)


@pytest.mark.parametrize("regime", list(Regime))
def test_a_no_op_changes_no_logit_by_a_bit(subject: Subject, regime: Regime) -> None:
    state = subject.state()
    places = some_features(state, 8)
    asleep = [1, 2, int((state.dense_activations(1)[2] == 0).nonzero()[0, 0])]

    def row(mode: Mode, value: float | None, at: list) -> list[Intervention]:
        return [
            Intervention(layer=lay, position=pos, feature=f, mode=mode, value=value)
            for lay, pos, f in at
        ]

    nothing = [
        row(Mode.SCALE, 1.0, places),
        row(Mode.ADD, 0.0, places),
        row(Mode.CLAMP, 1e6, places),
        row(Mode.ABLATE, None, [asleep]),
        row(Mode.SCALE, 15.0, [asleep]),  # multiplying cannot wake an inactive feature
    ]
    logits = run_rows(subject.model, state, [[], *nothing], regime)
    assert all(torch.equal(logits[0], other) for other in logits[1:])
    assert (logits[0] - state.logits).abs().max() <= 1e-5 * max(1, subject.logit_scale())


def test_an_undisturbed_row_is_the_plain_model_bit_for_bit(subject: Subject) -> None:
    state = subject.state()
    batch = subject.input_ids.expand(3, -1)
    plain = subject.model.hf(input_ids=batch, use_cache=False, logits_to_keep=1).logits[:, -1]
    assert torch.equal(run_rows(subject.model, state, [[], [], []]), plain)


@pytest.mark.parametrize("regime", list(Regime))
def test_nothing_is_left_behind_after_an_exception(subject: Subject, regime: Regime) -> None:
    state, hf = subject.state(), subject.model.hf
    before, hooks = subject.model.next_logits(subject.input_ids), hooks_on(hf)
    broken = hf.model.layers[2].mlp.register_forward_pre_hook(lambda *_: 1 / 0)  # type: ignore
    with pytest.raises(ZeroDivisionError):
        run_rows(subject.model, state, [[Intervention(layer=0, position=1, feature=1)]], regime)
    broken.remove()
    assert hf.config._attn_implementation == "eager"
    assert hooks_on(hf) == hooks
    assert torch.equal(subject.model.next_logits(subject.input_ids), before)


def test_the_batch_size_changes_nothing_that_matters(subject: Subject) -> None:
    state = subject.state()
    rows = [
        [Intervention(layer=lay, position=pos, feature=f)]
        for lay, pos, f in some_features(state, 9)
    ]
    whole, parts = (run_rows(subject.model, state, rows, batch_size=n) for n in (9, 2))
    assert torch.allclose(whole, parts, atol=1e-5 * max(1, subject.logit_scale()))


def test_no_rows_give_no_logits(subject: Subject) -> None:
    assert run_rows(subject.model, subject.state(), []).shape == (0, len(subject.state().logits))
