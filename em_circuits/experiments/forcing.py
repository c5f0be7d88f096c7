"""Forced tokens: the token that steering boosts, appended without steering.

The token whose probability the treatment raises most is appended to the prompt, nothing is steered,
and the continuations are judged with the token as their first. Beside it: how much the treatment
still changes what follows that token (KL divergence in nats, steered from un-steered). If the
forced rate equals the steered one and that divergence is near 0, the features raise a token, not a
disposition.

    forced = force_token(pair, case, treatment, token, sampling, judge)
    forced.evil_rate, forced.after_kl
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from em_circuits.experiments.cases import Case
from em_circuits.experiments.rollouts import continuations_of, share
from em_circuits.intervention import FIRST_POSITION, Intervention
from em_circuits.interventions import ActivationCache, Treatment, Where, generate, run_rows
from em_circuits.models import ModelPair
from em_circuits.models.next_tokens import kl_divergence
from em_circuits.sampling import Sampling
from pivotal_tokens.judge.continuations import ContinuationJudge
from pivotal_tokens.schema import ContinuationLabel


@dataclass(frozen=True)
class Forced:
    """What the token does without steering, and what steering does after the token."""

    token: int
    evil_rate: float | None
    """Of the continuations that a judge could label."""
    unscored: int
    """Those that it could not."""
    after_kl: float
    texts: tuple[str, ...]
    """Of the continuations, the token in front."""
    labels: tuple[ContinuationLabel, ...]
    first: str
    """The token as a judge read it."""


def force_token(
    pair: ModelPair,
    case: Case,
    treatment: Treatment,
    token: int,
    sampling: Sampling,
    judge: ContinuationJudge,
) -> Forced:
    """Append a token to the prompt without steering, and look on.

    `treatment` is what raised it, values absolute; of continuations one token less is drawn.
    """
    model = pair.model(case.model)
    ids = torch.cat([case.state.input_ids, case.state.input_ids.new_tensor([token])])
    state = ActivationCache.capture(model, ids)
    shorter = sampling.model_copy(update={"max_tokens": max(1, sampling.max_tokens - 1)})
    generated = generate(model, state, [[]], shorter, treatment.regime)
    tokens = [[token, *generated.ids(0, s)] for s in range(sampling.samples)]
    said = continuations_of(case, model, tokens)
    judged = [ContinuationLabel(*one) for one in judge.label(case.prompt, said)]
    labels = [one.label for one in judged]
    decode = model.tokenizer.decode
    items = on_longer_prompt(
        treatment.interventions, case.state.n_pos, first_position=state.first_position
    )
    steered = treatment.model_copy(update={"interventions": items})
    logits = run_rows(model, state, [[], steered], treatment.regime)
    return Forced(
        token=token,
        evil_rate=share(labels, "evil"),
        unscored=labels.count(None),
        after_kl=float(kl_divergence(logits[0], logits[1])),
        texts=tuple(str(decode(ids, clean_up_tokenization_spaces=False)) for ids in tokens),
        labels=tuple(judged),
        first=said[0].token,
    )


def on_longer_prompt(
    interventions: Sequence[Intervention], n_pos: int, *, first_position: int = FIRST_POSITION
) -> tuple[Intervention, ...]:
    """The same interventions when one generated token has become part of the prompt."""
    found: list[Intervention] = []
    for item in interventions:
        if item.position is Where.GENERATED:
            found.append(item.model_copy(update={"position": n_pos}))
        elif item.position in (Where.LAST, Where.PROMPT):
            places = item.positions(n_pos, first_position)
            found += [item.model_copy(update={"position": p}) for p in places]
        else:
            found.append(item)
    return tuple(found)
