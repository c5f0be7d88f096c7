"""Rankings, ablations and steering under targets beyond one token, against plain hooks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from subjects import Subject

from em_circuits.contrast import Contrast
from em_circuits.features.rank import choose_features, rank
from em_circuits.intervention import Intervention, Mode, Regime, Where
from em_circuits.interventions import (
    ActivationCache,
    ablation_effects,
    integrated_effects,
    mediate,
    run_values,
    steer,
)
from em_circuits.interventions.feature_rows import decoder_vectors
from em_circuits.interventions.patching import ActivationPatch
from em_circuits.models import Model
from em_circuits.target import Target
from pivotal_tokens.errors import RequestError


def answers(subject: Subject) -> tuple[tuple[int, ...], tuple[int, ...]]:
    evil, safe = subject.groups.evil, subject.groups.safe
    return (evil[0], safe[1], evil[1]), (safe[0], evil[1])


def difference(subject: Subject) -> Target:
    return Target.continuation(subject.pair, *answers(subject))


@torch.no_grad()
def ablated(
    subject: Subject, feature: list[int] | None, ids: tuple[int, ...], model: Model | None = None
) -> float:
    """log p of an answer with one feature's output taken off at its place by a plain hook."""
    model = model or subject.model
    handles, inputs = [], []
    if feature is not None:
        layer, position, number = feature
        read, write = model.sites.reads[layer], model.sites.writes[layer]
        vector = decoder_vectors(model, torch.tensor([layer]), torch.tensor([number]))[0]

        def take_off(_module, _args, output):
            output = output.clone()
            amount = model.transcoders[layer].encode(inputs[-1])[0, position, number]
            output[0, position] -= amount * vector
            return output

        if read.side == "input":
            hook = read.module.register_forward_pre_hook(lambda _m, args: inputs.append(args[0]))
        else:
            hook = read.module.register_forward_hook(lambda _m, _a, out: inputs.append(out))
        handles = [hook, write.module.register_forward_hook(take_off)]
    try:
        whole = torch.cat([subject.input_ids, torch.tensor(ids)])
        logits = model.hf(input_ids=whole[None], use_cache=False).logits[0].double()
    finally:
        for handle in handles:
            handle.remove()
    scores = logits[len(subject.input_ids) - 1 : -1].log_softmax(-1)
    return float(scores[torch.arange(len(ids)), torch.tensor(ids)].sum())


def test_an_ablation_under_a_continuation_is_two_plain_passes(subject: Subject) -> None:
    state, (evil, safe) = subject.state(), answers(subject)
    features = state.active[:: len(state.active) // 6]
    found = ablation_effects(
        subject.model, state, targets=difference(subject), features=features, batch_size=4
    )[:, 0]
    before = ablated(subject, None, evil) - ablated(subject, None, safe)
    for feature, effect in zip(features.tolist(), found.tolist(), strict=True):
        expected = before - ablated(subject, feature, evil) + ablated(subject, feature, safe)
        assert effect == pytest.approx(expected, abs=2e-5 * max(1, abs(before)))


@pytest.mark.parametrize("by", ["gradient", "gradient+ablation", "measured", "joint", "greedy"])
def test_one_token_against_another_is_the_contrast_of_their_logits(
    subject: Subject, by: str
) -> None:
    """The normaliser of the softmax cancels."""
    evil, safe = subject.groups.evil[0], subject.groups.safe[0]
    words = rank(subject.model, subject.input_ids, Contrast((evil,), (safe,)), by=by, n_measured=20)
    target = Target.continuation(subject.pair, (evil,), (safe,))
    table = rank(subject.model, subject.input_ids, target, by=by, n_measured=20)
    both = words.align(table)
    assert len(both) == len(words) == len(table)
    scale = np.abs(both["left"]).max()
    assert np.abs(both["left"] - both["right"]).max() <= 1e-5 * max(scale, subject.logit_scale())
    assert table.unit == "nats" and table.about["target"] == target.name
    if by in ("gradient", "measured"):
        assert table.top(5).features == words.top(5).features


def test_the_gradient_of_a_continuation_predicts_small_changes(subject: Subject) -> None:
    table = rank(subject.model, subject.input_ids, difference(subject), by="gradient")
    state, target = subject.state(), difference(subject)
    top = table.largest(4)
    step = 0.01
    rows = [[], *([i] for i in top.scale(1 + step)), *([i] for i in top.scale(1 - step))]
    values = target.value(run_values(subject.model, state, rows, target.terms))[1:].reshape(2, -1)
    slopes = (values[0] - values[1]) / (2 * step)
    assert np.abs(slopes.numpy() - top["contrast"]).max() <= 0.02 * np.abs(top["contrast"]).max()
    sides = [
        rank(
            subject.model, subject.input_ids, Target.continuation(subject.pair, ids), by="gradient"
        )
        for ids in answers(subject)
    ]
    apart = sides[0].align(sides[1])
    whole = table.align(sides[0])
    gap = (apart["left"] - apart["right"]).loc[whole.index] - whole["left"]
    assert np.abs(gap).max() <= 1e-5 * np.abs(whole["left"]).max()
    assert np.isnan(sides[0]["safe_mean"]).all()


def test_joint_scores_sum_to_the_effect_of_a_group(subject: Subject) -> None:
    """Integrated along the line, parts of a target's change sum to it, as for logits."""
    state, target = subject.state(), difference(subject)
    coordinates, start = state.active.cpu()[-30:], state.activations.float().cpu()[-30:]
    parts = integrated_effects(
        subject.model,
        subject.input_ids,
        coordinates,
        start,
        0.8 * start,
        target.terms,
        steps=8,
    )
    rows = [
        [],
        [
            Intervention(layer=f[0], position=f[1], feature=f[2], mode=Mode.SET, value=0.8 * a)
            for f, a in zip(coordinates.tolist(), start.tolist(), strict=True)
        ],
    ]
    values = run_values(subject.model, state, rows, target.terms)
    expected = values[1] - values[0]
    scale = parts.abs().sum(1)
    assert ((parts.sum(1) - expected).abs() <= 0.02 * scale + 1e-4).all()


def test_choosing_features_for_a_continuation_takes_the_ranking(subject: Subject) -> None:
    state, target = subject.state(), difference(subject)
    chosen = choose_features("top:3", subject.model, state, target, by="gradient")
    ranked = rank(subject.model, subject.input_ids, target, by="gradient")
    assert chosen.features == ranked.top(3).features
    with pytest.raises(RequestError, match="next tokens"):
        choose_features("top:3", subject.model, state, target, by="total_effect")


def test_steering_reports_the_continuations_themselves(subject: Subject) -> None:
    target, (evil, safe) = difference(subject), answers(subject)
    table = rank(subject.model, subject.input_ids, target, by="gradient")
    one = table.largest(1)
    result = steer(subject.model, subject.input_ids, one.ablate(), target)
    (feature,) = one.features
    for outcome, changed in ((result.unsteered, None), (result.steered, list(feature))):
        log_p = [ablated(subject, changed, ids) for ids in (evil, safe)]
        assert outcome.contrast == pytest.approx(log_p[0] - log_p[1], rel=1e-4, abs=1e-4)
        assert outcome.evil_mass == pytest.approx(np.exp(log_p[0]), rel=1e-3)
    assert result.intervention.target == target.name
    assert result.random_control.contrast is not None
    assert target.name in repr(result) and "log p" in result._repr_html_()


def test_steering_a_direction_has_no_evil_mass(subject: Subject) -> None:
    target = Target.direction(torch.ones(subject.model.hf.config.hidden_size))
    table = rank(subject.model, subject.input_ids, target, by="gradient")
    result = steer(subject.model, subject.input_ids, table.top(1).ablate(), target)
    assert result.unsteered.evil_mass is None and result.random_control.evil_mass is None
    assert result.steered.contrast is not None and result.intervention.target == target.name


def test_forced_tokens_are_generated_ones_to_an_intervention(subject: Subject) -> None:
    """`generated` acts on them alone, `prompt` on none of them, everything on all."""
    state, (ids, _) = subject.state(), answers(subject)
    target = Target.continuation(subject.pair, ids)
    n = len(subject.input_ids)
    whole = ActivationCache.capture(
        subject.model, torch.cat([subject.input_ids, torch.tensor(ids[:-1])])
    )
    layer, _, feature = whole.active[(whole.active[:, 1] >= n)][0].tolist()

    def item(position):
        return Intervention(layer=layer, position=position, feature=feature)

    found = run_values(
        subject.model,
        state,
        [[], [item(Where.GENERATED)], [item(Where.PROMPT)], [item(None)]],
        target.terms,
    )[:, 0]
    answer = Target.span(n, n + len(ids) - 1)  # all but the last token, which is no position here
    last = Target.continuation(subject.pair, ids[-1:])
    every = [item(p) for p in range(1, n + len(ids) - 1)]
    rows = [[], every[n - 1 :], every[: n - 1], every]
    terms = (*answer.terms, *last.terms)
    expected = run_values(subject.model, whole, rows, terms).sum(1)
    assert torch.allclose(found, expected, atol=2e-5 * max(1, float(expected.abs().max())))
    assert found[1] != found[0]


@pytest.mark.parametrize("regime", list(Regime))
def test_every_regime_takes_a_continuation(subject: Subject, regime: Regime) -> None:
    """With nothing changed it is the undisturbed value; the first token's part as for logits."""
    state, (evil, safe) = subject.state(), (subject.groups.evil[0], subject.groups.safe[0])
    target = Target.continuation(subject.pair, (evil,), (safe,))
    features = state.active[-3:]
    words = Contrast((evil,), (safe,))
    one, two = (
        ablation_effects(subject.model, state, targets=t, features=features, regime=regime)
        for t in (target, words)
    )
    assert torch.allclose(one, two, atol=2e-5 * max(1, subject.logit_scale()))
    longer = difference(subject)
    empty = run_values(subject.model, state, [[]], longer.terms, regime)
    free = run_values(subject.model, state, [[]], longer.terms)
    assert torch.allclose(empty, free, rtol=1e-3, atol=1e-3)


def test_mediation_of_one_token_against_another_is_that_of_their_contrast(
    subject: Subject,
) -> None:
    evil, safe = subject.groups.evil[0], subject.groups.safe[0]
    targets = (Contrast((evil,), (safe,)), Target.continuation(subject.pair, (evil,), (safe,)))
    words, odds = (mediate(subject.pair, subject.input_ids, target) for target in targets)
    assert words.target is None and odds.target == targets[1].name
    assert odds.shift.change == pytest.approx(words.shift.change, abs=1e-4)
    for one, two in zip(words.cumulative, odds.cumulative, strict=True):
        assert one.contrast == pytest.approx(two.contrast, abs=1e-3)
    shares = words.shares.model_dump(), odds.shares.model_dump()
    assert shares[0].keys() == shares[1].keys()
    for name, share in shares[0].items():
        assert share == pytest.approx(shares[1][name], abs=1e-3)
    assert [f.effect for f in words.features[:5]] == pytest.approx(
        [f.effect for f in odds.features[:5]], abs=1e-4
    )


def test_mediation_of_a_continuation_reaches_the_whole_shift(subject: Subject) -> None:
    """Features, errors and attention together, forced tokens' positions included, are the other
    model; features at the prompt's positions alone are what plain hooks say."""
    evil, safe = answers(subject)
    target = difference(subject)
    patch = ActivationPatch.of(subject.pair, subject.input_ids, target)
    values = {name: patch.values(read[None]) for name, read in patch.component_logits().items()}
    shift = patch.contrasts
    assert float(values["together"]) == pytest.approx(shift.merged, abs=1e-3)
    plain = [
        sum(s * ablated(subject, None, ids, model) for s, ids in ((1, evil), (-1, safe)))
        for model in subject.pair.models
    ]
    assert [shift.base, shift.merged] == pytest.approx(plain, abs=1e-4)
    with pytest.raises(RequestError, match="no contrast of next tokens"):
        _ = patch.weights


def test_a_continuation_beyond_the_context_is_refused(subject: Subject) -> None:
    ids = (subject.groups.evil[0],) * (subject.model.max_tokens + 1)
    target = Target.continuation(subject.pair, ids)
    with pytest.raises(RequestError, match="prompt and continuation have"):
        rank(subject.model, subject.input_ids, target)
