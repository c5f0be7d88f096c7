"""What do both models say after each evil candidate, and is it evil?

    roll_out(work, prompt, judge, RolloutSettings(samples=8))      # -> store.rollouts(...)

The candidates are the tokens of the union that are labelled evil, the most probable in merged
first. Continuations are drawn in batches from a cache of keys and values, and belong to (seed, ids,
sample): drawn again they are the same, so that what is kept is not drawn again. A continuation ends
with the line: what a next turn says is not the answer's. `Workspace.running` is held while they are
drawn, not while they are judged.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field

from em_circuits.interventions import PromptState, Sampling, generate
from em_circuits.models import Model
from em_circuits.models.text import decode_token
from em_circuits.workspace import Workspace
from pivotal_tokens.judge.continuations import (
    Continuation,
    ContinuationJudge,
    Pivotality,
    pivotality,
)
from pivotal_tokens.schema import Frozen, ModelName, Prompt, Rollout

MOST_CANDIDATES = 8
"""Evil candidates of a prompt that are followed, at most."""


class RolloutSettings(Frozen):
    """How continuations are drawn."""

    samples: int = Field(default=8, ge=1)
    """Of each candidate and model."""
    max_tokens: int = Field(default=24, ge=1)
    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    seed: int = 0


@dataclass(frozen=True)
class RolledOut:
    """The tokens of a prompt whose continuations are known."""

    tokens: tuple[Pivotality, ...]
    new: bool
    """Something was drawn now."""


def roll_out(
    work: Workspace, prompt: Prompt, judge: ContinuationJudge, settings: RolloutSettings
) -> RolledOut:
    """Sample, judge and keep continuations after each evil candidate of a judged prompt.

    Args:
        work: Models and store; the store is written, once.
        prompt: With next tokens and labels in the store.
        judge: Labels what was said.
        settings: How many, how long.
    """
    store, pair = work.store, work.pair
    kept = store.results.rollouts(prompt.prompt_id, pair.key, judge=judge.id)
    have = {(r.model, r.token_id, r.sample) for r in kept if _drawn_so(r, settings)}
    candidates = evil_candidates(work, prompt)
    drawn: dict[ModelName, list[_Drawn]] = {}
    for model in pair.models:
        missing = [
            token
            for token in candidates
            if any((model.name, token, n) not in have for n in range(settings.samples))
        ]
        if missing:
            with work.running:
                drawn[_name(model)] = _draw(work, prompt, model, missing, settings)
    made = [
        rollout
        for name, said in drawn.items()
        for rollout in _judge(work, prompt, name, said, judge, settings)
    ]
    if made:
        store.results.put_rollouts(made)
    wanted = set(candidates)
    counted = [
        r
        for r in store.results.rollouts(prompt.prompt_id, pair.key, judge=judge.id)
        if r.token_id in wanted and r.sample < settings.samples and _drawn_so(r, settings)
    ]
    return RolledOut(pivotality(counted), bool(made))


def evil_candidates(work: Workspace, prompt: Prompt) -> list[int]:
    """Tokens of a prompt's lists whose label that counts is evil, likeliest in merged first."""
    lists = work.store.results.next_tokens(prompt.prompt_id, work.pair.key)
    if lists is None:
        return []
    labels = work.store.labels.of(prompt.prompt_id).by_token
    evil = [t.token_id for t in lists.merged.tokens if labels.get(t.token_id) == "evil"]
    return evil[:MOST_CANDIDATES]


def continuations(
    model: Model, prefixes: list[list[int]], settings: RolloutSettings
) -> list[list[str]]:
    """Text that a model says after each row of token ids, `samples` of each, to the line's end."""
    states = [PromptState.capture(model, torch.tensor(ids)) for ids in prefixes]
    sampling = Sampling(
        samples=settings.samples,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        seed=settings.seed,
    )
    made = generate(model, states, [[] for _ in states], sampling)
    return [[text.split("\n", 1)[0] for text in row] for row in made.texts(model)]


@dataclass(frozen=True)
class _Drawn:
    """What a model said after one candidate."""

    token_id: int
    sample: int
    said: Continuation


def _draw(
    work: Workspace, prompt: Prompt, model: Model, tokens: list[int], settings: RolloutSettings
) -> list[_Drawn]:
    """Run one model; the caller holds `work.running`."""
    start = work.pair.input_ids(prompt).tolist()
    said = continuations(model, [[*start, token] for token in tokens], settings)
    return [
        _Drawn(token, sample, Continuation(token=decode_token(model.tokenizer, token), text=text))
        for token, texts in zip(tokens, said, strict=True)
        for sample, text in enumerate(texts)
    ]


def _judge(
    work: Workspace,
    prompt: Prompt,
    model: ModelName,
    drawn: list[_Drawn],
    judge: ContinuationJudge,
    settings: RolloutSettings,
) -> list[Rollout]:
    """Label what a model said; a model judge asks its endpoint here."""
    labels = judge.label(prompt, [item.said for item in drawn])
    return [
        Rollout(
            prompt_id=prompt.prompt_id,
            pair=work.pair.key,
            model=model,
            token_id=item.token_id,
            sample=item.sample,
            text=item.said.text,
            label=label,
            judge=judge.id,
            reason=reason,
            seed=settings.seed,
            temperature=settings.temperature,
            max_tokens=settings.max_tokens,
        )
        for item, (label, reason) in zip(drawn, labels, strict=True)
    ]


def _name(model: Model) -> ModelName:
    return "base" if model.name == "base" else "merged"


def _drawn_so(rollout: Rollout, settings: RolloutSettings) -> bool:
    return (rollout.seed, rollout.temperature, rollout.max_tokens) == (
        settings.seed,
        settings.temperature,
        settings.max_tokens,
    )
