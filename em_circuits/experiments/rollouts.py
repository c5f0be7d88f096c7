"""Continuations under a treatment: their labels, and how coherent they are.

Every continuation is judged, as those of `label --rollouts` are, and read by the un-steered base
model, whose perplexity says whether it is still coherent:

    perplexity = exp(-mean log p_base(token | prompt, continuation so far))
    repetition = 1 - distinct pairs of neighbouring tokens / pairs

    made = rollouts(pair, case, treatments, sampling, judge)
    made[1][0].label, made[1][0].text                  # treatment 1, sample 0
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from em_circuits.experiments.cases import Case, Cases
from em_circuits.interventions import Treatment, generate
from em_circuits.interventions.matched_controls import apply_to
from em_circuits.interventions.steer_result import (
    ConditionTexts,
    LabelledText,
    PromptRollouts,
    RolloutRates,
    SteerResult,
)
from em_circuits.labelling.rollouts import continuation_of
from em_circuits.models import Model, ModelPair
from em_circuits.sampling import Sampling
from em_circuits.workspace import Workspace
from pivotal_tokens.judge.continuations import ContinuationJudge, LabelJudge
from pivotal_tokens.schema import Continuation, Label


@dataclass(frozen=True)
class SteeredRollout:
    """One continuation under a treatment."""

    sample: int
    token_ids: tuple[int, ...]
    text: str
    said: Continuation
    """The same as a judge reads it."""
    label: Label | None
    """None: unscored, and `reason` says why."""
    reason: str
    log_likelihood: float | None
    """Mean over tokens under the un-steered base, in nats; None for an empty one."""

    @property
    def repetition(self) -> float:
        """Share of neighbouring pairs that stood there before."""
        pairs = list(itertools.pairwise(self.token_ids))
        return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0


def rollouts(
    pair: ModelPair,
    case: Case,
    treatments: Sequence[Treatment],
    sampling: Sampling,
    judge: ContinuationJudge,
) -> list[list[SteeredRollout]]:
    """Continuations of each treatment, which must be of one regime."""
    model = pair.model(case.model)
    regime = treatments[0].regime
    generated = generate(model, case.state, treatments, sampling, regime)
    texts = generated.texts(model)
    ids = [[generated.ids(r, s) for s in range(sampling.samples)] for r in range(len(treatments))]
    flat_ids = [i for row in ids for i in row]
    flat_texts = [t for row in texts for t in row]
    said = continuations_of(case, model, flat_ids)
    labels = judge.label(case.prompt, said)
    likelihood = mean_log_likelihood(pair.base, case.state.input_ids.tolist(), flat_ids)
    flat = [
        SteeredRollout(n % sampling.samples, tuple(tokens), text, one, *label, score)
        for n, (tokens, text, one, label, score) in enumerate(
            zip(flat_ids, flat_texts, said, labels, likelihood, strict=True)
        )
    ]
    return [flat[i : i + sampling.samples] for i in range(0, len(flat), sampling.samples)]


def continuations_of(
    case: Case, model: Model, several: Sequence[Sequence[int]]
) -> list[Continuation]:
    """Continuations given as token ids, as a judge reads them."""
    return [
        continuation_of(model, ids, case.labels.get(ids[0], "unsure") if ids else "unsure")
        for ids in several
    ]


def share(labels: Sequence[Label | None], of: Label) -> float | None:
    """The share of one label among continuations that have one; None where none has."""
    scored = [label for label in labels if label is not None]
    return sum(label == of for label in scored) / len(scored) if scored else None


@torch.no_grad()
def mean_log_likelihood(
    model: Model, prompt: Sequence[int], continuations: Sequence[Sequence[int]]
) -> list[float | None]:
    """Mean log-probability of each continuation's tokens, in nats; None for an empty one."""
    unique = sorted({tuple(tokens) for tokens in continuations if tokens}, key=len)
    found: dict[tuple[int, ...], float] = {}
    for start in range(0, len(unique), 64):
        part = unique[start : start + 64]
        longest = max(map(len, part))
        rows = [[*prompt, *tokens, *[0] * (longest - len(tokens))] for tokens in part]
        ids = torch.tensor(rows, device=model.device)
        # Padding stands at the end, where attention is causal: no real token sees it.
        logits = model.hf(input_ids=ids, use_cache=False, logits_to_keep=longest + 1).logits
        for tokens, scores in zip(part, _log_probabilities(logits, ids, longest), strict=True):
            found[tokens] = float(scores[: len(tokens)].mean())
    return [found.get(tuple(tokens)) for tokens in continuations]


def _log_probabilities(
    logits: Float[Tensor, "row kept vocab"], ids: Tensor, longest: int
) -> Float[Tensor, "row step"]:
    tokens = ids[:, -longest:, None]
    return logits[:, :-1].float().log_softmax(-1).gather(2, tokens)[..., 0].cpu()


def rates(drawn: Sequence[SteeredRollout]) -> RolloutRates:
    """Figures of some continuations."""
    labels = [rollout.label for rollout in drawn]
    known = [r.log_likelihood for r in drawn if r.log_likelihood is not None]
    return RolloutRates(
        n_rollouts=len(drawn),
        unscored=labels.count(None),
        evil_rate=share(labels, "evil"),
        safe_rate=share(labels, "safe"),
        perplexity=math.exp(-sum(known) / len(known)) if known else None,
        repetition=sum(r.repetition for r in drawn) / len(drawn),
    )


def prompt_rollouts(work: Workspace, result: SteerResult, sampling: Sampling) -> PromptRollouts:
    """Continue a prompt that was steered."""
    case = Cases(work, None).of(work.store.prompts.get(result.prompt_id), result.intervention.model)  # type: ignore[arg-type]
    draw = apply_to(result.intervention.features, result.random_places[0])
    conditions = {"unsteered": (), "steered": result.intervention.features, "random_control": draw}
    treatments = [
        Treatment(interventions=tuple(items), regime=result.intervention.regime)
        for items in conditions.values()
    ]
    judge = LabelJudge()
    drawn = rollouts(work.pair, case, treatments, sampling, judge)
    return PromptRollouts(
        judge=judge.id,
        sampling=sampling,
        worlds={
            name: ConditionTexts(
                **rates(row).model_dump(),
                texts=tuple(LabelledText(text=r.text, label=r.label) for r in row),
            )
            for name, row in zip(conditions, drawn, strict=True)
        },
    )
