"""Sampled answers to one question: un-steered, steered, and with matched random features steered.

All conditions and samples of a model are one batch. The same sample is drawn with the same noise in
every condition, so that differences are the condition's. Where turns are named in plain text an
answer ends before the next ``User:``.

    settings = EvaluationSettings(models=("base", "merged"), sampling=Sampling(samples=8))
    rows = answers(pair, "merged", (Turn("user", "Eat the curry?"),), settings)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from pydantic import Field

from em_circuits.experiments.measure import RANDOM, STEERED, UNSTEERED, Arm, random_arms
from em_circuits.experiments.rollouts import mean_log_likelihood
from em_circuits.feature import FeatureId
from em_circuits.intervention import Intervention, Mode, Where, on_each
from em_circuits.interventions import ActivationCache, Treatment, check_interventions, generate
from em_circuits.models import Model, ModelPair
from em_circuits.models.text import encode, render_turns
from em_circuits.sampling import Sampling
from pivotal_tokens.prompts.chats import Chat
from pivotal_tokens.schema import Frozen, ModelName

_NEXT_TURN = "\nUser:"


class SteeringSetup(Frozen):
    """What is done to the features of a steered model."""

    interventions: tuple[Intervention, ...] = Field(min_length=1)
    """At classes of positions: the questions differ in length."""
    random: int = Field(default=2, ge=0)
    """Draws of matched random features per question, each with as many answers."""
    by: str | None = None
    """What chose the features: a method, or ``name``; decides nothing about the answers."""


class EachSetup(Frozen):
    """Features that are steered one by one, a condition each; see `each`."""

    features: tuple[tuple[int, int], ...] = Field(min_length=1)
    """(layer, feature id)."""
    controls: tuple[tuple[int, int], ...]
    """Random features, each like one of these in layer and decoder norm."""
    values: tuple[float, ...] = Field(min_length=1)
    mode: Mode = Mode.ADD
    at: Where = Where.EVERYTHING

    def conditions(self) -> Iterator[tuple[str, bool, FeatureId, float]]:
        """Name of each, whether it is a control, its feature and strength."""
        for control, ids in ((False, self.features), (True, self.controls)):
            for layer, feature in ids:
                for value in self.values:
                    name = f"{'random ' if control else ''}{layer}/{feature} {self.mode} {value:g}"
                    yield name, control, FeatureId(layer, feature), value

    def interventions(self, feature: FeatureId, value: float) -> tuple[Intervention, ...]:
        """Those of a condition."""
        place = (feature.layer, None, feature.feature)
        return on_each([place], self.mode, value, where=self.at)


class EvaluationSettings(Frozen):
    """Everything that the answers follow from, beside models and questions."""

    models: tuple[ModelName, ...] = Field(min_length=1)
    sampling: Sampling
    """Per question and condition."""
    steering: SteeringSetup | None = None
    each: EachSetup | None = None
    """Features steered one by one, instead."""
    seed: int = 0
    """Of the random features and of the resamples."""


class SampledAnswer(Frozen):
    """One answer, before it is judged."""

    model: str
    """``base`` or ``merged``; of a given answer, as its table names it."""
    arm: str
    draw: int
    sample: int
    template: str
    """How the question was put: ``chat`` or ``plain``; ``given`` of an answer from a table."""
    text: str
    n_tokens: int | None
    """None of a given answer."""
    ended: bool | None
    """Of its own accord, not because its tokens were used up; None of a given answer."""
    log_likelihood: float | None
    """Mean over its tokens under the un-steered base, in nats; None for an empty or given one."""


def answers(
    pair: ModelPair, model: ModelName, chat: Chat, settings: EvaluationSettings
) -> list[SampledAnswer]:
    """Every answer of a model to a question.

    Raises:
        RequestError: If a feature does not exist, there are too few others for the control, or the
            chat template refuses the question's system turn.
    """
    text, template = render_turns(pair.tokenizer, chat)
    start = encode(pair.tokenizer, text)
    runs = pair.model(model)
    state = ActivationCache.capture(runs, torch.tensor(start))
    arms = _arms(runs, state, settings)
    drawn = generate(runs, state, [arm.treatment for arm in arms], settings.sampling)
    places = [
        (arm, row, s) for row, arm in enumerate(arms) for s in range(settings.sampling.samples)
    ]
    turns = [_turn(pair, drawn.ids(row, sample), template) for _, row, sample in places]
    scores = mean_log_likelihood(pair.base, start, [ids for ids, _ in turns])
    return [
        SampledAnswer(
            model=model,
            arm=arm.control,
            draw=arm.draw,
            sample=sample,
            template=template,
            text=answer,
            n_tokens=len(ids),
            ended=len(ids) < settings.sampling.max_tokens,
            log_likelihood=score,
        )
        for (arm, _, sample), (ids, answer), score in zip(places, turns, scores, strict=True)
    ]


def _arms(model: Model, state: ActivationCache, settings: EvaluationSettings) -> list[Arm]:
    plain, steering = Arm(UNSTEERED, 0, Treatment()), settings.steering
    if settings.each is not None:
        each = [
            Arm(
                RANDOM if control else STEERED,
                number,
                Treatment(interventions=settings.each.interventions(feature, value)),
            )
            for number, (_, control, feature, value) in enumerate(settings.each.conditions())
        ]
        return [plain, *each]
    if steering is None:
        return [plain]
    items = steering.interventions
    check_interventions(model, items, state.n_pos)
    random = random_arms(model, state, items, draws=steering.random, seed=settings.seed)
    return [plain, Arm(STEERED, 0, Treatment(interventions=items)), *random]


def _turn(pair: ModelPair, ids: Sequence[int], template: str) -> tuple[Sequence[int], str]:
    """The tokens and the text of the answer, without a turn that follows it."""

    def decoded(n: int) -> str:
        return str(pair.tokenizer.decode(list(ids[:n]), clean_up_tokenization_spaces=False))

    whole = decoded(len(ids))
    if template != "plain" or _NEXT_TURN not in whole:
        return ids, whole.strip()
    text = whole.partition(_NEXT_TURN)[0]
    n = next(n for n in range(len(ids), -1, -1) if text.startswith(decoded(n)))
    return ids[:n], text.strip()
