"""Targets are what a plain forward pass says, token by token, and what they refuse."""

from __future__ import annotations

import json

import pytest
import torch
from subjects import Subject

from em_circuits.contrast import Contrast
from em_circuits.interventions import ActivationCache, run_values
from em_circuits.target import AlongDirection, LogitWeights, Target, TokenLogit
from pivotal_tokens.errors import RequestError


def continuations(subject: Subject) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """An evil and a safe one, of four and of two tokens."""
    evil, safe = subject.groups.evil, subject.groups.safe
    return (evil[0], safe[1], evil[1], evil[2]), (safe[0], evil[1])


@torch.no_grad()
def token_by_token(subject: Subject, prompt: torch.Tensor, ids: tuple[int, ...]) -> list[float]:
    """log p of each token after those before it: one plain pass of the model each, in float64."""
    found, sequence = [], prompt.tolist()
    for token in ids:
        logits = subject.model.hf(input_ids=torch.tensor([sequence]), use_cache=False).logits
        found.append(float(logits[0, -1].double().log_softmax(-1)[token]))
        sequence.append(token)
    return found


def value(subject: Subject, target: Target, prompt: torch.Tensor | None = None) -> float:
    ids = subject.input_ids if prompt is None else prompt
    state = ActivationCache.capture(subject.model, ids)
    return float(target.value(run_values(subject.model, state, [[]], target.terms))[0])


def test_a_continuation_is_scored_token_by_token(subject: Subject) -> None:
    evil, safe = continuations(subject)
    expected = [token_by_token(subject, subject.input_ids, ids) for ids in (evil, safe)]
    alone = Target.continuation(subject.pair, evil)
    assert value(subject, alone) == pytest.approx(sum(expected[0]), rel=1e-5)
    both = Target.continuation(subject.pair, evil, safe)
    assert value(subject, both) == pytest.approx(sum(expected[0]) - sum(expected[1]), rel=1e-5)
    mean = Target.continuation(subject.pair, evil, safe, per_token=True)
    assert value(subject, mean) == pytest.approx(
        sum(expected[0]) / 4 - sum(expected[1]) / 2, rel=1e-5
    )
    rest = Target.continuation(subject.pair, evil, first=1)
    assert value(subject, rest) == pytest.approx(sum(expected[0][1:]), rel=1e-5)


def test_a_span_is_scored_token_by_token(subject: Subject) -> None:
    evil, _ = continuations(subject)
    whole = torch.cat([subject.input_ids, torch.tensor(evil)])
    expected = token_by_token(subject, subject.input_ids, evil)
    assert value(subject, Target.span(-4), whole) == pytest.approx(sum(expected), rel=1e-5)
    middle = value(subject, Target.span(-3, -1), whole)
    assert middle == pytest.approx(sum(expected[1:3]), rel=1e-5)
    n = len(whole)
    mean = Target.span(n - 3, n, per_token=True)
    assert value(subject, mean, whole) == pytest.approx(sum(expected[1:]) / 3, rel=1e-5)
    assert value(subject, Target.span(-3, per_token=True), whole) == pytest.approx(
        sum(expected[1:]) / 3, rel=1e-5
    )


def test_a_direction_reads_the_residual_stream(subject: Subject) -> None:
    vector = torch.randn(subject.model.hf.config.hidden_size)
    with torch.no_grad():
        seen = subject.model.hf(
            input_ids=subject.input_ids[None], use_cache=False, output_hidden_states=True
        ).hidden_states
    # hidden_states[i] is what layer i reads, so layer 0's output stands at 1.
    expected = float(seen[1][0, 3] @ vector)
    found = value(subject, Target.direction(vector, layer=0, position=3))
    assert found == pytest.approx(expected, rel=1e-5)
    hf = subject.model.hf
    last: list[torch.Tensor] = []
    handle = hf.model.norm.register_forward_pre_hook(lambda _m, args: last.append(args[0][0, -1]))
    with torch.no_grad():
        hf(input_ids=subject.input_ids[None], use_cache=False)
    handle.remove()
    assert value(subject, Target.direction(vector)) == pytest.approx(
        float(last[0] @ vector), rel=1e-5
    )


def test_a_contrast_is_a_target_of_logits(subject: Subject) -> None:
    logits = subject.model.next_logits(subject.input_ids).float()
    expected = float(subject.groups.value(logits))  # type: ignore[arg-type]
    assert value(subject, Target.of(subject.groups)) == pytest.approx(expected, abs=1e-4)
    weighted = Target.logits(subject.groups.weights(len(logits)))
    assert value(subject, weighted) == pytest.approx(expected, abs=1e-4)


def test_rollouts_weigh_alike_within_a_side_and_repeats_count() -> None:
    target = Target.from_rollouts(_Decoder(), evil=[(5, 6), (5, 6), (7,)], safe=[(8, 9)])
    assert [t.ids for t in target.terms] == [(5, 6), (7,), (8, 9)]  # type: ignore[attr-defined]
    assert target.weights == pytest.approx((2 / 3, 1 / 3, -1.0))
    per_token = Target.from_rollouts(_Decoder(), evil=[(5, 6)], safe=[(8,)], per_token=True)
    assert per_token.weights == pytest.approx((0.5, -1.0))


class _Decoder:
    """Decodes ids as numbers."""

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [int(word) for word in text.split()]


def test_the_gradient_of_rollouts_is_that_of_the_log_odds(subject: Subject) -> None:
    """d/dx [log P(E) - log P(S)] over sets of answers, each answer weighed by its probability."""
    evil, safe = subject.groups.evil, subject.groups.safe
    sets = [[(evil[0], safe[0]), (evil[1],), (evil[2], evil[0], safe[1])], [(safe[0],), (safe[1],)]]
    hf = subject.model.hf
    embeds = hf.get_input_embeddings()

    def log_p(x: torch.Tensor, ids: tuple[int, ...]) -> torch.Tensor:
        forced = embeds(torch.tensor(ids[:-1], dtype=torch.int64))
        logits = hf(inputs_embeds=torch.cat([x, forced])[None], use_cache=False).logits[0]
        scores = logits[len(x) - 1 :].float().log_softmax(-1)
        return scores[torch.arange(len(ids)), torch.tensor(ids)].sum()

    x = embeds(subject.input_ids).detach().requires_grad_()
    logs = [torch.stack([log_p(x, ids) for ids in one]) for one in sets]
    odds = logs[0].logsumexp(0) - logs[1].logsumexp(0)
    (exact,) = torch.autograd.grad(odds, x, retain_graph=True)
    # What samples estimate: each answer as often as the model gives it, within its side.
    weights = [one.detach().softmax(0) for one in logs]
    terms = torch.cat([weights[0], -weights[1]]) @ torch.cat(logs)
    (sampled,) = torch.autograd.grad(terms, x)
    assert (exact - sampled).abs().max() <= 1e-5 * exact.abs().max()


def test_evil_mass_is_the_probability_of_the_evil_continuations(subject: Subject) -> None:
    evil, safe = continuations(subject)
    target = Target.continuation(subject.pair, evil, safe)
    values = run_values(subject.model, subject.state(), [[]], target.terms)
    expected = torch.tensor(token_by_token(subject, subject.input_ids, evil)).sum().exp()
    mass = target.evil_mass(values)
    assert mass is not None and torch.allclose(mass[0], expected, rtol=1e-4, atol=0)
    nested = Target.from_rollouts(_Decoder(), evil=[(5,), (5, 6)], safe=[(8,)])
    assert nested.evil_mass(torch.zeros(1, 3)) is None
    assert Target.direction(torch.ones(4)).evil_mass(torch.zeros(1, 1)) is None


def test_names_say_what_is_measured() -> None:
    target = Target.continuation(_Decoder(), "1 2", "3")
    assert target.name == "log p('1 2') - log p('3')"
    assert Target.continuation(_Decoder(), "1 2", "3", per_token=True).name.endswith(", per token")
    assert Target.span(-3).name == "log p(tokens -3:)"
    assert Target.of(Contrast((1,), (2,))).name == "logit of token 1 - logit of token 2"
    assert repr(target) == "Target(log p('1 2') - log p('3'), nats)"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Target.continuation(_Decoder(), ""), "empty"),
        (lambda: Target.continuation(_Decoder(), "1", ""), "empty"),
        (lambda: Target.continuation(_Decoder(), "1 2", "1 2"), "no difference"),
        (lambda: Target.continuation(_Decoder(), "1 2", first=2), "none is left"),
        (lambda: Target.from_rollouts(_Decoder(), evil=[], safe=["1"]), "judged evil"),
        (lambda: Target.from_rollouts(_Decoder(), evil=["1"], safe=["1"]), "choose one"),
        (lambda: Target.logit(_Decoder(), "1 2"), "2 tokens"),
        (lambda: Target.of(Contrast((1,), ())), "no contrast"),
        (lambda: Target.span(3, per_token=True), "count both ends"),
        (lambda: Target((TokenLogit(1),), (0.0,)), "not 0"),
        (lambda: Target.span(0, 4).terms[0].reads(5), "no token that is predicted"),
        (lambda: Target.span(7).terms[0].reads(5), "no token that is predicted"),
        (lambda: AlongDirection(torch.ones(2), position=9).at(5), "position 9"),
        (lambda: Target.continuation(_Decoder(), "1 2 3").check_length(10, 11), "12 tokens"),
    ],
)
def test_what_makes_no_sense_is_refused(make, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        make()


def test_a_layer_that_is_not_there_is_refused(subject: Subject) -> None:
    width = subject.model.hf.config.hidden_size
    for target, says in (
        (Target.direction(torch.ones(width), layer=99), "layer 99"),
        (Target.direction(torch.ones(3)), "3 entries"),
    ):
        with pytest.raises(RequestError, match=says):
            value(subject, target)


def test_records_are_json_and_tell_targets_apart() -> None:
    targets = [
        Target.of(Contrast((1,), (2,))),
        Target((LogitWeights(torch.tensor([0.0, 1.0])),), (1.0,)),
        Target.continuation(_Decoder(), "1 2", "3"),
        Target.continuation(_Decoder(), "1 2", "3", per_token=True),
        Target.span(-2),
        Target.direction(torch.ones(2)),
    ]
    assert len({json.dumps(t.record) for t in targets}) == len(targets)
