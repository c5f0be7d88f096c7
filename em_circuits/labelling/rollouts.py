"""Continuations of both models after each evil candidate, and their labels.

    rollouts, drawn = roll_out(work, prompt, judge, rollout_sampling(8, seed=0))

The candidates are the tokens of the union that are labelled evil, the most probable in merged
first. Continuations are drawn in batches from a cache of keys and values, and belong to (seed, ids,
sample): drawn again they are the same, so that what is in the store is not drawn again. A
continuation ends with the line: what a next turn says is not the answer's. `Workspace.running` is
held while they are drawn, not while they are judged.
"""

from __future__ import annotations

from typing import get_args

import torch

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
from pivotal_tokens.schema import ModelName, Prompt, Rollout

MOST_CANDIDATES = 8
"""Evil candidates of a prompt that are followed, at most."""


def rollout_sampling(samples: int, *, seed: int = 0) -> Sampling:
    """How continuations of a labelling run are drawn: up to 24 tokens, at temperature 1."""
    return Sampling(samples=samples, max_tokens=24, temperature=1.0, seed=seed)


def roll_out(
    work: Workspace, prompt: Prompt, judge: ContinuationJudge, sampling: Sampling
) -> tuple[tuple[Pivotality, ...], bool]:
    """Sample and judge continuations after each evil candidate of a judged prompt.

    Args:
        work: Models and store; the store is written, once.
        prompt: With next tokens and labels in the store.
        judge: Labels what was said.
        sampling: How many, how long.

    Returns:
        What they say about each candidate, and whether something was drawn now.
    """
    store, pair = work.store, work.pair
    candidates = evil_candidates(work, prompt)

    def stored() -> list[Rollout]:
        """Those that are wanted and were drawn in this way."""
        how = (sampling.seed, sampling.temperature, sampling.max_tokens)
        return [
            rollout
            for rollout in store.results.rollouts(prompt.prompt_id, pair.key, judge=judge.id)
            if rollout.token_id in candidates
            and rollout.sample < sampling.samples
            and (rollout.seed, rollout.temperature, rollout.max_tokens) == how
        ]

    have = {(rollout.model, rollout.token_id, rollout.sample) for rollout in stored()}
    drawn: list[Rollout] = []
    for name in get_args(ModelName):
        missing = [
            token
            for token in candidates
            if any((name, token, n) not in have for n in range(sampling.samples))
        ]
        if missing:
            drawn += _draw(work, prompt, name, missing, judge, sampling)
    if drawn:
        store.results.put_rollouts(drawn)
    return pivotality(stored()), bool(drawn)


def evil_candidates(work: Workspace, prompt: Prompt) -> list[int]:
    """Tokens of a prompt's lists whose label that counts is evil, likeliest in merged first."""
    lists = work.store.results.next_tokens(prompt.prompt_id, work.pair.key)
    if lists is None:
        return []
    labels = work.store.labels.of(prompt.prompt_id).by_token
    evil = [t.token_id for t in lists.merged.tokens if labels.get(t.token_id) == "evil"]
    return evil[:MOST_CANDIDATES]


def continuations(model: Model, prefixes: list[list[int]], sampling: Sampling) -> list[list[str]]:
    """Text that a model says after each row of token ids, to the line's end."""
    states = [PromptState.capture(model, torch.tensor(ids)) for ids in prefixes]
    texts = generate(model, states, [[] for _ in states], sampling).texts(model)
    return [[text.split("\n", 1)[0] for text in row] for row in texts]


def _draw(
    work: Workspace,
    prompt: Prompt,
    name: ModelName,
    tokens: list[int],
    judge: ContinuationJudge,
    sampling: Sampling,
) -> list[Rollout]:
    """Sample one model and label what it said; a model judge asks its endpoint here."""
    model = work.pair.model(name)
    with work.running:
        start = work.pair.input_ids(prompt).tolist()
        texts = continuations(model, [[*start, token] for token in tokens], sampling)
    said = [
        (token, sample, text)
        for token, samples in zip(tokens, texts, strict=True)
        for sample, text in enumerate(samples)
    ]
    words = {token: decode_token(model.tokenizer, token) for token in tokens}
    labels = judge.label(
        prompt, [Continuation(token=words[token], text=text) for token, _, text in said]
    )
    return [
        Rollout(
            prompt_id=prompt.prompt_id,
            pair=work.pair.key,
            model=name,
            token_id=token,
            sample=sample,
            text=text,
            label=label,
            judge=judge.id,
            reason=reason,
            seed=sampling.seed,
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
        )
        for (token, sample, text), (label, reason) in zip(said, labels, strict=True)
    ]
