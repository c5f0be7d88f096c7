"""Screening: next tokens of both models for a batch of prompts, written to the store at once.

    screened, failures = screen_prompts(work, prompts, top_k=10)
    screened[0].next_tokens.merged.top

Lists that are in the store are not computed again. Once a prompt has graphs, the stored lists are
the graphs' own and stay so; asking for more tokens than these have is refused for that prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from em_circuits.labelling.result import StageFailed
from em_circuits.models.next_tokens import screen, screen_many
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import RequestError, WorkFailed
from pivotal_tokens.schema import NextTokenPair, Prompt
from pivotal_tokens.store import Screened

Failures = list[tuple[Prompt, StageFailed]]


def screen_prompts(
    work: Workspace, prompts: Sequence[Prompt], *, top_k: int
) -> tuple[list[Screened], Failures]:
    """The next tokens of prompts, in the order given.

    Returns:
        Prompts as stored, with token ids and lists; and those that could not be screened.
    """
    store, pair = work.store, work.pair
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    by_id |= store.prompts.several(by_id)
    screened: dict[str, Screened] = {}
    failures: Failures = []
    ready: list[Prompt] = []
    stored = store.results.next_tokens_of(by_id, pair.key)
    for prompt_id, prompt in by_id.items():
        lists = stored.get(prompt_id)
        if lists is not None and lists.base.top_k >= top_k:
            screened[prompt_id] = Screened(prompt=prompt, next_tokens=lists, new=False)
            continue
        try:
            if lists is not None:
                _refuse_wider_than_graphs(work, prompt_id, lists, top_k)
            ids = pair.input_ids(prompt)
        except RequestError as error:
            failures.append((prompt, StageFailed("next_tokens", error)))
        else:
            ready.append(prompt.model_copy(update={"token_ids": tuple(ids.tolist())}))
    if ready:
        found, failed = _ask_models(work, ready, top_k)
        if found:
            store.results.put_screened(pair.key, found)
        screened |= {item.prompt.prompt_id: item for item in found}
        failures += failed
    return [screened[prompt_id] for prompt_id in by_id if prompt_id in screened], failures


def _ask_models(
    work: Workspace, prompts: list[Prompt], top_k: int
) -> tuple[list[Screened], Failures]:
    """Both models' lists of prompts; a batch with a bad one is run again one by one."""
    rows = [torch.tensor(prompt.token_ids) for prompt in prompts]
    try:
        lists = screen_many(work.pair, rows, top_k=top_k)
    except WorkFailed:
        found, failed = [], []
        for prompt, ids in zip(prompts, rows, strict=True):
            try:
                found.append(
                    Screened(prompt=prompt, next_tokens=screen(work.pair, ids, top_k=top_k))
                )
            except WorkFailed as error:
                failed.append((prompt, StageFailed("next_tokens", error)))
        return found, failed
    pairs = zip(prompts, lists, strict=True)
    return [Screened(prompt=prompt, next_tokens=each) for prompt, each in pairs], []


def _refuse_wider_than_graphs(
    work: Workspace, prompt_id: str, lists: NextTokenPair, top_k: int
) -> None:
    if work.store.graphs.all(prompt_id, work.pair.key):
        raise RequestError(
            f"its graphs are over the top {lists.base.top_k}, and stored logits are a graph's "
            f"own; use another --root for --top-k {top_k}"
        )
