"""What do the worlds answer to one question?

All treatments and samples of a model are one batch. The same sample is drawn with the same noise in
every world, so that differences are the world's. Where turns are named in plain text an answer ends
before the next ``User:``.

    rows = answers(pair, "Eat the curry?", settings)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from em_circuits.experiments.evaluation.settings import EvaluationSettings, Steering
from em_circuits.experiments.rollouts import mean_log_likelihood
from em_circuits.interventions import PromptState, Treatment, check_interventions, generate
from em_circuits.interventions.substitutes import moved, random_places
from em_circuits.models import Model, ModelPair
from em_circuits.models.text import encode, render_turns
from pivotal_tokens.schema import ModelName

UNSTEERED, STEERED, RANDOM = "unsteered", "steered", "random"
_NEXT_TURN = "\nUser:"


def rendered(pair: ModelPair, question: str) -> tuple[str, str]:
    """A question as the models see it, and ``chat`` or ``plain``."""
    text, template = render_turns(pair.tokenizer, user=question, assistant="")
    return (text.rstrip(" ") if template == "plain" else text), template


def answers(
    pair: ModelPair, model: ModelName, question: str, settings: EvaluationSettings
) -> list[dict[str, Any]]:
    """Every answer of a model to a question, as the rows of the table know it.

    Args:
        pair: Its base also reads every answer.
        model: Which of the two answers.
        question: As a person put it.
        settings: Treatments and sampling.

    Raises:
        RequestError: If a feature does not exist, or there are too few others for the control.
    """
    text, template = rendered(pair, question)
    start = encode(pair.tokenizer, text)
    runs = pair.model(model)
    state = PromptState.capture(runs, torch.tensor(start))
    arms = _arms(runs, state, settings.steering, settings.seed)
    made = generate(runs, state, [treatment for _, _, treatment in arms], settings.sampling)
    lines: list[dict[str, Any]] = []
    said: list[Sequence[int]] = []
    for row, (arm, draw, _) in enumerate(arms):
        for sample in range(settings.sampling.samples):
            ids = made.ids(row, sample)
            kept, answer = _turn(pair, ids, template)
            said.append(kept)
            lines.append(
                {
                    "model": model,
                    "arm": arm,
                    "draw": draw,
                    "sample": sample,
                    "template": template,
                    "text": answer,
                    "n_tokens": len(kept),
                    # Of its own accord, not because its tokens were used up.
                    "ended": len(kept) < settings.sampling.max_tokens,
                }
            )
    scores = mean_log_likelihood(pair.base, start, said)
    return [line | {"log_likelihood": s} for line, s in zip(lines, scores, strict=True)]


def _arms(
    model: Model, state: PromptState, steering: Steering | None, seed: int
) -> list[tuple[str, int, Treatment]]:
    """(arm, draw, treatment) of every row."""
    arms = [(UNSTEERED, 0, Treatment())]
    if steering is None:
        return arms
    items = steering.interventions
    check_interventions(model, items, state.n_pos)
    arms.append((STEERED, 0, Treatment(interventions=items)))
    if steering.random:
        places = random_places(model, state, items, n_draws=steering.random, seed=seed)
        arms += [
            (RANDOM, draw, Treatment(interventions=tuple(moved(items, place))))
            for draw, place in enumerate(places.tolist())
        ]
    return arms


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
