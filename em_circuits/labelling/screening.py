"""What would both models say next, for a whole batch of prompts, kept in one write?

    screened = screen_prompts(work, prompts, settings)
    screened.next_tokens["44a71bc74c37"].merged.top

Lists that are kept are not made again. Once a prompt has graphs, the stored lists are the graphs'
own and stay so; asking for more tokens than these have is refused for that prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from em_circuits.labelling.label_result import LabelSettings
from em_circuits.labelling.stages import StageFailed
from em_circuits.models.next_tokens import screen, screen_many
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import RequestError, WorkFailed
from pivotal_tokens.schema import NextTokenPair, Prompt
from pivotal_tokens.store import Screened


@dataclass
class ScreenedBatch:
    """What a batch of prompts came to; every prompt stands in `next_tokens` or in `failures`."""

    prompts: dict[str, Prompt] = field(default_factory=dict)
    """As stored, with token ids; in the order given."""
    next_tokens: dict[str, NextTokenPair] = field(default_factory=dict)
    failures: dict[str, StageFailed] = field(default_factory=dict)
    new: set[str] = field(default_factory=set)
    """Prompt ids whose lists were made now."""


def screen_prompts(
    work: Workspace, prompts: Sequence[Prompt], settings: LabelSettings
) -> ScreenedBatch:
    """The next tokens of prompts: those that are kept, and of the others those of both models now.

    Args:
        work: Models and store; the store is written, once.
        prompts: A repeated text counts once.
        settings: Its `thresholds.top_k` tokens of each model are compared.
    """
    store, pair, top_k = work.store, work.pair, settings.thresholds.top_k
    batch = ScreenedBatch({prompt.prompt_id: prompt for prompt in prompts})
    batch.prompts |= store.prompts.several(batch.prompts)
    kept = store.results.next_tokens_of(batch.prompts, pair.key)
    ready: dict[str, Prompt] = {}
    for prompt_id, prompt in batch.prompts.items():
        known = kept.get(prompt_id)
        if known is not None and known.base.top_k >= top_k:
            batch.next_tokens[prompt_id] = known
            continue
        try:
            if known is not None:
                _refuse_wider_than_graphs(work, prompt_id, known, top_k)
            ids = pair.input_ids(prompt)
        except RequestError as error:
            batch.failures[prompt_id] = StageFailed("next_tokens", error)
        else:
            ready[prompt_id] = prompt.model_copy(update={"token_ids": tuple(ids.tolist())})
    if ready:
        _ask_models(work, ready, batch, top_k)
    made = [
        Screened(prompt=ready[i], next_tokens=batch.next_tokens[i]) for i in ready if i in batch.new
    ]
    if made:
        store.results.put_screened(pair.key, made)
    batch.prompts |= {item.prompt.prompt_id: item.prompt for item in made}
    return batch


def _ask_models(
    work: Workspace, ready: dict[str, Prompt], batch: ScreenedBatch, top_k: int
) -> None:
    """Both models' lists of prompts; a batch with a bad one is asked again one by one."""
    ids = {i: torch.tensor(prompt.token_ids) for i, prompt in ready.items()}
    try:
        found = dict(zip(ids, screen_many(work.pair, list(ids.values()), top_k=top_k), strict=True))
    except WorkFailed:
        found = {}
        for prompt_id, tokens in ids.items():
            try:
                found[prompt_id] = screen(work.pair, tokens, top_k=top_k)
            except WorkFailed as error:
                batch.failures[prompt_id] = StageFailed("next_tokens", error)
    batch.next_tokens |= found
    batch.new |= found.keys()


def _refuse_wider_than_graphs(
    work: Workspace, prompt_id: str, known: NextTokenPair, top_k: int
) -> None:
    if work.store.graphs.all(prompt_id, work.pair.key):
        raise RequestError(
            f"its graphs are over the top {known.base.top_k}, and stored logits are a graph's "
            f"own; use another --root for --top-k {top_k}"
        )
