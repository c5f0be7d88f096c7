"""From many labelled prompts to the features that matter in all of them.

table = aggregate_prompts(work, [], AggregateRequest(method="gradient"))
table.record["stability"], table.rows()[0]["mean"]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd
import torch

from em_circuits.cache import CachedTable, cached_table
from em_circuits.experiments.analyse import input_ids, labelled, live_scores
from em_circuits.features import (
    FORMULA,
    METHODS,
    AggregateSettings,
    Block,
    KeyedScores,
    PromptScores,
    aggregate,
    block_of,
    compare_layers,
    of_graph,
    require_layers,
    without_layers,
)
from em_circuits.features.rank import LIVE_METHODS, REFINED
from em_circuits.graphs.header import read_header
from em_circuits.interventions import N_MEASURED
from em_circuits.progress import tracked
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen, GraphRecord, ModelName, Prompt, PromptLabels


class AggregateRequest(Frozen):
    """What is summed up over prompts."""

    method: str = "gradient"
    """See `em_circuits.features.METHODS`."""
    model: ModelName = "merged"
    by_position: bool = False
    """Keys have the position from the end."""
    exclude_layers: tuple[int, ...] = ()
    """Features of these take no part."""
    settings: AggregateSettings = AggregateSettings()


DEFAULTS = AggregateRequest()


@dataclass(frozen=True)
class ChosenPrompt:
    """A prompt with the labels that count and the graphs it has under a pair."""

    prompt: Prompt
    labels: PromptLabels
    graphs: dict[str, GraphRecord] = field(default_factory=dict)
    """By model."""

    def identity(self) -> dict[str, Any]:
        """Everything of it that a result follows from."""
        return {
            "prompt_id": self.prompt.prompt_id,
            "graphs": {name: [r.key, r.sha256] for name, r in self.graphs.items()},
            "labels": {str(token): label for token, label in self.labels.by_token.items()},
            "labels_from": self.labels.source,
        }

    def to_json(self) -> dict[str, Any]:
        """What a report says of it."""
        return {
            "prompt_id": self.prompt.prompt_id,
            "labels_from": self.labels.source,
            "graphs": {name: record.key for name, record in self.graphs.items()},
        }


def find_pair(work: Workspace, prefix: str) -> str:
    """The key of the one model pair in a store that begins with `prefix`.

    Raises:
        RequestError: If none does, or several do.
    """
    pairs = work.store.results.pairs()
    found = [pair for pair in pairs if pair.startswith(prefix)]
    if len(found) != 1:
        known = ", ".join(pair[:12] for pair in pairs) or "none"
        raise RequestError(f"{len(found)} model pairs begin with {prefix!r}; the store has {known}")
    return found[0]


def choose_prompts(
    work: Workspace, prefixes: Sequence[str], pair: str, models: Sequence[ModelName]
) -> tuple[list[ChosenPrompt], list[dict[str, str]]]:
    """Prompts with evil and safe labels and graphs of some models under a pair.

    Args:
        work: Store.
        prefixes: Prompt ids or unique prefixes; none for every prompt that will do.
        pair: Key of the model pair.
        models: Whose graphs are needed.

    Returns:
        The prompts by id, and those left out, each with the reason.

    Raises:
        RequestError: If a prompt that was named will not do, or none is left.
    """
    ids = {work.store.prompts.get(prefix).prompt_id for prefix in prefixes}
    chosen, left_out = [], []
    for prompt_id in sorted(ids or {prompt.prompt_id for prompt in work.store.prompts.all()}):
        try:
            chosen.append(_choose(work, prompt_id, pair, models))
        except RequestError as error:
            if ids:
                raise
            left_out.append({"prompt_id": prompt_id, "reason": str(error)})
    if not chosen:
        raise RequestError(
            f"none of {len(left_out)} prompts has evil and safe labels and graphs under these "
            "models; run em-circuits label first"
        )
    return chosen, left_out


def aggregate_prompts(
    work: Workspace,
    prefixes: Sequence[str],
    request: AggregateRequest = DEFAULTS,
    *,
    pair: str | None = None,
) -> CachedTable:
    """Sum up a method's contrast over prompts by feature, or re-use the table of equal inputs.

    Args:
        work: Models, store and graphs.
        prefixes: Prompt ids or unique prefixes; none for every prompt that will do.
        request: Method, model, keys.
        pair: Key of another pair in the store than the models'.

    Raises:
        RequestError: No such method or layer, or no prompts that will do.
    """
    if request.method not in METHODS:
        raise RequestError(f"--method {request.method!r}: choose one of {', '.join(METHODS)}")
    live = request.method in LIVE_METHODS
    pair = pair or work.pair.key
    if live:
        require_loaded(work, pair, request.method)
    models: list[ModelName] = [] if live else [request.model]
    chosen, left_out = choose_prompts(work, prefixes, pair, models)
    require_layers(request.exclude_layers, layers_of(work, chosen))
    inputs = {
        "formula": FORMULA,
        "n_measured": N_MEASURED if request.method == REFINED else None,
        "pair": pair,
        **request.model_dump(mode="json"),
        "prompts": [item.identity() for item in chosen],
    }

    def compute() -> tuple[dict[str, Any], pd.DataFrame]:
        blocks, prompts = [], []
        for item in tracked(chosen, "aggregate", work.progress):
            scores = prompt_scores(work, item, request.method, request.model)
            blocks.append(block_of(scores, by_position=request.by_position))
            prompts.append({**item.to_json(), "unmatched": unmatched(scores)})
        return _summed(blocks, request, {"pair": pair, "prompts": prompts})

    table = cached_table(work.results / "features", "aggregate", inputs, compute)
    table.record["left_out"] = left_out
    return table


def layers_of(work: Workspace, chosen: Sequence[ChosenPrompt]) -> int:
    """Layers of the model that prompts' graphs are of, or else of the models that are loaded."""
    for record in chosen[0].graphs.values():
        return read_header(work.graphs.path(record.key)).n_layers
    return work.pair.base.sites.n_layers


def require_loaded(work: Workspace, pair: str, method: str) -> None:
    """Refuse a method that runs models on a pair that is only known by its graphs.

    Raises:
        RequestError: If the workspace's models are another pair.
    """
    if pair != work.pair.key:
        raise RequestError(
            f"{method} runs the models, and pair {pair[:12]} is not loaded: leave out --pair, or "
            f"give its models (--base, --adapter), or choose --method gradient"
        )


def prompt_scores(
    work: Workspace, chosen: ChosenPrompt, method: str, model: ModelName
) -> PromptScores:
    """Scores of one prompt by a method, from its graph or by running a model."""
    labels = chosen.labels.by_token
    if method not in LIVE_METHODS:
        return of_graph(work.graphs.load(chosen.graphs[model].key), labels, method)
    scores = live_scores(work, chosen.prompt, chosen.labels, method, model=model)
    none_left = torch.empty(0, 3, dtype=torch.int64)
    return PromptScores(scores, labels, input_ids(work, chosen.prompt).numel(), none_left)


def unmatched(scores: PromptScores) -> list[int]:
    """Labelled token ids that are no targets."""
    return sorted(set(scores.labels) - set(scores.scores.token_ids.tolist()))


def _choose(
    work: Workspace, prompt_id: str, pair: str, models: Sequence[ModelName]
) -> ChosenPrompt:
    prompt, labels = labelled(work, prompt_id)
    if not (labels.ids("evil") and labels.ids("safe")):
        raise RequestError(
            f"prompt {prompt_id} has no contrast: {len(labels.ids('evil'))} evil and "
            f"{len(labels.ids('safe'))} safe tokens are labelled"
        )
    graphs = {model: work.graph_record(prompt_id, model, pair) for model in models}
    return ChosenPrompt(prompt, labels, {str(name): record for name, record in graphs.items()})


def _summed(
    blocks: list[Block], request: AggregateRequest, record: dict[str, Any]
) -> tuple[dict[str, Any], pd.DataFrame]:
    excluded, settings = request.exclude_layers, request.settings
    layers = compare_layers(blocks, excluded, settings) if excluded else None
    blocks = [without_layers(block, excluded) for block in blocks] if excluded else blocks
    keyed = KeyedScores.of(blocks, by_position=request.by_position)
    if not len(keyed):
        raise RequestError(f"no feature is left without layers {list(excluded)}")
    result = aggregate(keyed, settings)
    record = {
        **request.model_dump(mode="json"),
        **record,
        "n_features": len(keyed),
        "n_tested": result.n_tested,
        "permutations": {"n": result.n_permutations, "exact": result.exact},
        "stability": asdict(result.stability),
        "layers": asdict(layers) if layers else None,
    }
    frame = pd.DataFrame(result.summary.columns())
    if not request.by_position:
        frame["offset"] = pd.array([None] * len(keyed), "Int64")
    return record, frame
