"""Continuations of both models, free and after each evil candidate, and their labels.

    followed = roll_out(work, prompt, judge, ROLLOUTS)
    followed.free.pivotal, followed.tokens[0].difference

Free continuations are of the prompt alone. The candidates are the tokens of the union that are
labelled evil, the most probable in merged first. Continuations are drawn in batches from a cache of
keys and values, and belong to (seed, ids, sample): drawn again they are the same, so that what is
in the store is not drawn again. A continuation ends with the line: what a next turn says is not the
answer's. `Workspace.running` is held while they are drawn, not while they are judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, get_args

import torch

from em_circuits.interventions import ActivationCache, generate
from em_circuits.models import Model
from em_circuits.models.text import decode_token
from em_circuits.sampling import Sampling
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import WorkFailed
from pivotal_tokens.judge.continuations import ContinuationJudge
from pivotal_tokens.pivotality import EvilRates, Pivotality, free_rates, pivotality
from pivotal_tokens.schema import (
    Continuation,
    FilteredContinuation,
    Label,
    ModelName,
    Prompt,
    Rollout,
)

ROLLOUTS = Sampling(samples=8, max_tokens=24, temperature=1.0)
"""How continuations are drawn by default, of each candidate and model."""
MOST_CANDIDATES = 8
"""Evil candidates of a prompt that are followed, at most."""


class Followed(NamedTuple):
    """What the continuations of a prompt say."""

    free: EvilRates | None
    """Of the prompt alone."""
    tokens: tuple[Pivotality, ...]
    """Of each candidate."""
    new: bool
    """Something was drawn now."""


def roll_out(
    work: Workspace, prompt: Prompt, judge: ContinuationJudge, sampling: Sampling
) -> Followed:
    """Sample and judge continuations of a judged prompt, and after each of its evil candidates."""
    store, pair = work.store, work.pair
    candidates: list[int | None] = [None, *evil_candidates(work, prompt)]

    def stored() -> list[Rollout]:
        """The requested ones that were drawn with these settings."""
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
    there = stored()
    return Followed(free_rates(there), pivotality(there), bool(drawn))


def evil_candidates(work: Workspace, prompt: Prompt) -> list[int]:
    """Tokens of a prompt's lists whose label in force is evil, likeliest in merged first."""
    lists = work.store.results.next_tokens(prompt.prompt_id, work.pair.key)
    if lists is None:
        return []
    labels = work.store.labels.of(prompt.prompt_id).by_token
    evil = [t.token_id for t in lists.merged.tokens if labels.get(t.token_id) == "evil"]
    return evil[:MOST_CANDIDATES]


def continuation_of(model: Model, ids: Sequence[int], candidate: Label = "unsure") -> Continuation:
    """Generated tokens as a judge reads them: the candidate token, then the text after it.

    The text ends with the line: what a next turn says is not the answer's.

    Args:
        ids: The candidate's id and those that follow it; empty for a text that ended at once.
    """
    text = model.tokenizer.decode(list(ids[1:]), clean_up_tokenization_spaces=False)
    return Continuation(
        token=decode_token(model.tokenizer, ids[0]) if ids else "",
        text=text.split("\n", 1)[0],
        candidate=candidate,
    )


def _said(
    model: Model, start: list[int], tokens: Sequence[int | None], sampling: Sampling
) -> Iterator[tuple[int | None, int, Continuation]]:
    """Each token with each sample's number and continuation; all tokens, or all None."""
    if not tokens:
        return
    given = [[] if token is None else [token] for token in tokens]
    states = [ActivationCache.capture(model, torch.tensor([*start, *ids])) for ids in given]
    drawn = generate(model, states, [[] for _ in states], sampling)
    for row, (token, ids) in enumerate(zip(tokens, given, strict=True)):
        for sample in range(sampling.samples):
            said = continuation_of(model, [*ids, *drawn.ids(row, sample)])
            if token is None:  # its first token is no candidate: all of it is the continuation
                whole = f"{said.token}{said.text}".split("\n", 1)[0]
                said = Continuation(token="", text=whole)
            yield token, sample, said


def _draw(
    work: Workspace,
    prompt: Prompt,
    name: ModelName,
    tokens: list[int | None],
    judge: ContinuationJudge,
    sampling: Sampling,
) -> list[Rollout]:
    """Sample one model and label what it said; a model judge asks its endpoint here.

    Raises:
        WorkFailed: If some could not be labelled: nothing is stored of this prompt, and asked anew.
            What a filter of the judge's endpoint refused is left out.
    """
    model = work.pair.model(name)
    with work.running:
        start = work.pair.input_ids(prompt).tolist()
        said = [
            (token, sample, continuation)
            for several in ([t for t in tokens if t is None], [t for t in tokens if t is not None])
            for token, sample, continuation in _said(model, start, several, sampling)
        ]
    labels = judge.label(prompt, [each for _, _, each in said])
    open_ones = [one for one in labels if not isinstance(one, FilteredContinuation)]
    unscored = [reason for label, reason in open_ones if label is None]
    if unscored:
        raise WorkFailed(
            f"{judge.id}: {len(unscored)} of {len(labels)} continuations unscored: {unscored[0]}"
        )
    return [
        Rollout(
            prompt_id=prompt.prompt_id,
            pair=work.pair.key,
            model=name,
            token_id=token,
            sample=sample,
            text=each.text,
            label=label,
            judge=judge.id,
            reason=reason,
            seed=sampling.seed,
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
        )
        for (token, sample, each), (label, reason) in zip(said, labels, strict=True)
        if label is not None
    ]
