"""Continuations of both models after each evil candidate of a prompt, sampled and judged.

    roll_out(work, prompt, judge, ROLLOUTS)      # -> store.rollouts(...)

The candidates are the tokens of the union that are labelled evil, the most probable in merged
first. Continuations are drawn in batches from a cache of keys and values, and belong to (seed, ids,
sample): drawn again they are the same, so that what is kept is not drawn again. A continuation ends
with the line: what a next turn says is not the answer's. `Workspace.running` is held while they are
drawn, not while they are judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from em_circuits.interventions import PromptState, generate
from em_circuits.models import Model
from em_circuits.models.text import decode_token
from em_circuits.sampling import Sampling
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import WorkFailed
from pivotal_tokens.judge.continuations import (
    Continuation,
    ContinuationJudge,
    Pivotality,
    pivotality,
)
from pivotal_tokens.schema import Label, ModelName, Prompt, Rollout

MOST_CANDIDATES = 8
"""Evil candidates of a prompt that are followed, at most."""


ROLLOUTS = Sampling(samples=8, max_tokens=24, temperature=1.0)
"""How continuations are drawn by default, of each candidate and model."""


@dataclass(frozen=True)
class _Drawn:
    """What a model said after one candidate."""

    token_id: int
    sample: int
    said: Continuation


@dataclass(frozen=True)
class RolledOut:
    """The tokens of a prompt whose continuations are known."""

    tokens: tuple[Pivotality, ...]
    new: bool
    """Something was drawn now."""


def roll_out(
    work: Workspace, prompt: Prompt, judge: ContinuationJudge, sampling: Sampling
) -> RolledOut:
    """Sample, judge and keep continuations after each evil candidate of a judged prompt.

    Args:
        work: Models and store; the store is written, once.
        prompt: With next tokens and labels in the store.
        judge: Labels what was said.
        sampling: How many, how long.
    """
    store, pair = work.store, work.pair
    kept = store.rollouts(prompt.prompt_id, pair.key, judge=judge.id)
    have = {(r.model, r.token_id, r.sample) for r in kept if _drawn_so(r, sampling)}
    candidates = evil_candidates(work, prompt)
    drawn: dict[ModelName, list[_Drawn]] = {}
    for model in pair.models:
        missing = [
            token
            for token in candidates
            if any((model.name, token, n) not in have for n in range(sampling.samples))
        ]
        if missing:
            with work.running:
                drawn[_name(model)] = _draw(work, prompt, model, missing, sampling)
    made = [
        rollout
        for name, said in drawn.items()
        for rollout in _judge(work, prompt, name, said, judge, sampling)
    ]
    if made:
        store.put_rollouts(made)
    wanted = set(candidates)
    counted = [
        r
        for r in store.rollouts(prompt.prompt_id, pair.key, judge=judge.id)
        if r.token_id in wanted and r.sample < sampling.samples and _drawn_so(r, sampling)
    ]
    return RolledOut(pivotality(counted), bool(made))


def evil_candidates(work: Workspace, prompt: Prompt) -> list[int]:
    """Tokens of a prompt's lists whose label that counts is evil, likeliest in merged first."""
    lists = work.store.next_tokens(prompt.prompt_id, work.pair.key)
    if lists is None:
        return []
    labels = work.store.labels(prompt.prompt_id).by_token
    evil = [t.token_id for t in lists.merged.tokens if labels.get(t.token_id) == "evil"]
    return evil[:MOST_CANDIDATES]


def continuation_of(model: Model, ids: Sequence[int], candidate: Label = "unsure") -> Continuation:
    """Generated tokens as a judge reads them: the candidate token, then the text after it.

    The text ends with the line: what a next turn says is not the answer's.

    Args:
        model: Whose tokens.
        ids: The candidate's id and those that follow it; empty for a text that ended at once.
        candidate: Its label, where it has one.
    """
    text = model.tokenizer.decode(list(ids[1:]), clean_up_tokenization_spaces=False)
    return Continuation(
        token=decode_token(model.tokenizer, ids[0]) if ids else "",
        text=text.split("\n", 1)[0],
        candidate=candidate,
    )


def _draw(
    work: Workspace, prompt: Prompt, model: Model, tokens: list[int], sampling: Sampling
) -> list[_Drawn]:
    """Run one model after each of some candidates; the caller holds `work.running`."""
    start = work.pair.input_ids(prompt).tolist()
    states = [PromptState.capture(model, torch.tensor([*start, token])) for token in tokens]
    made = generate(model, states, [[] for _ in states], sampling)
    return [
        _Drawn(token, sample, continuation_of(model, [token, *made.ids(row, sample)]))
        for row, token in enumerate(tokens)
        for sample in range(sampling.samples)
    ]


def _judge(
    work: Workspace,
    prompt: Prompt,
    model: ModelName,
    drawn: list[_Drawn],
    judge: ContinuationJudge,
    sampling: Sampling,
) -> list[Rollout]:
    """Label what a model said; a model judge asks its endpoint here.

    Raises:
        WorkFailed: If some could not be labelled: nothing is kept of this prompt, and asked anew.
    """
    labels = judge.label(prompt, [item.said for item in drawn])
    rollouts = []
    for item, (label, reason) in zip(drawn, labels, strict=True):
        if label is None:
            n = sum(label is None for label, _ in labels)
            raise WorkFailed(f"{judge.id}: {n} of {len(labels)} continuations unscored: {reason}")
        rollout = Rollout(
            prompt_id=prompt.prompt_id,
            pair=work.pair.key,
            model=model,
            token_id=item.token_id,
            sample=item.sample,
            text=item.said.text,
            label=label,
            judge=judge.id,
            reason=reason,
            seed=sampling.seed,
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
        )
        rollouts.append(rollout)
    return rollouts


def _name(model: Model) -> ModelName:
    return "base" if model.name == "base" else "merged"


def _drawn_so(rollout: Rollout, sampling: Sampling) -> bool:
    return (rollout.seed, rollout.temperature, rollout.max_tokens) == (
        sampling.seed,
        sampling.temperature,
        sampling.max_tokens,
    )
