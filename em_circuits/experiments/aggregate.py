"""Aggregation: features that matter across many labelled prompts.

table = aggregate_prompts(work, [], AggregateRequest(method="gradient"))
table.record["stability"], table.rows()[0]["mean"]
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from em_circuits.cache import CachedTable, cached_table
from em_circuits.experiments.analyse import labelled, prompt_scores, token_groups, unmatched
from em_circuits.features import (
    FORMULA,
    AggregateSettings,
    aggregate,
    by_key,
    compare_layers,
    stored_scores,
    without_layers,
)
from em_circuits.graphs.header import read_header
from em_circuits.interventions import N_MEASURED
from em_circuits.progress import tracked
from em_circuits.scoring import Scoring
from em_circuits.table import FeatureTable
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen, GraphRecord, ModelName, Prompt, PromptLabels


class AggregateRequest(Frozen):
    """What is summed up over prompts."""

    method: Scoring = Scoring.GRADIENT
    model: ModelName = "merged"
    by_position: bool = False
    """Keys have the position from the end."""
    exclude_layers: tuple[int, ...] = ()
    """Layers whose features are left out."""
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
        """The parts that a result follows from."""
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
        RequestError: No such layer, or no prompts that will do.
    """
    live = not request.method.is_stored
    pair = pair or work.pair.key
    if live:
        require_loaded(work, pair, request.method)
    models: list[ModelName] = [] if live else [request.model]
    chosen, left_out = choose_prompts(work, prefixes, pair, models)
    require_layers(request.exclude_layers, layers_of(work, chosen))
    inputs = {
        "formula": FORMULA,
        "n_measured": N_MEASURED if request.method is Scoring.GRADIENT_ABLATION else None,
        "pair": pair,
        **request.model_dump(mode="json"),
        "prompts": [item.identity() for item in chosen],
    }

    def compute() -> tuple[dict[str, Any], pd.DataFrame]:
        tables, prompts = [], []
        for item in tracked(chosen, "aggregate", work.progress):
            scores = scores_of(work, item, request.method, request.model)
            contrasted = scores.contrasted(token_groups(item.labels))
            tables.append(by_key(contrasted, by_position=request.by_position))
            prompts.append({**item.to_json(), "unmatched": unmatched(scores, item.labels)})
        return _summed(tables, request, {"pair": pair, "prompts": prompts})

    table = cached_table(work.results / "features", "aggregate", inputs, compute)
    table.record["left_out"] = left_out
    return table


def layers_of(work: Workspace, chosen: Sequence[ChosenPrompt]) -> int:
    """Layers of the model that prompts' graphs are of, or else of the models that are loaded."""
    for record in chosen[0].graphs.values():
        return read_header(work.graphs.path(record.key)).n_layers
    return work.pair.base.sites.n_layers


def require_loaded(work: Workspace, pair: str, method: Scoring) -> None:
    """Refuse a method that runs models on a pair that is only known by its graphs.

    Raises:
        RequestError: If the workspace's models are another pair.
    """
    if pair != work.pair.key:
        raise RequestError(
            f"{method} runs the models, and pair {pair[:12]} is not loaded: leave out --pair, or "
            f"give its models (--base, --adapter), or choose --method gradient"
        )


def scores_of(
    work: Workspace, chosen: ChosenPrompt, method: Scoring, model: ModelName
) -> FeatureTable:
    """Scores of one prompt by a method, from its graph or by running a model."""
    if method.is_stored:
        return stored_scores(work.graphs.load(chosen.graphs[model].key), method)
    return prompt_scores(work, chosen.prompt, chosen.labels, method, model=model)


def require_layers(layers: Collection[int], n_layers: int) -> None:
    """Refuse layers that a model of `n_layers` does not have.

    Raises:
        RequestError: Naming them, and those that there are.
    """
    if strange := [str(layer) for layer in sorted(layers) if not 0 <= layer < n_layers]:
        raise RequestError(
            f"--exclude-layers: there is no layer {', '.join(strange)}; the model has layers 0 to "
            f"{n_layers - 1}"
        )


def with_offset(table: FeatureTable) -> pd.DataFrame:
    """A table over prompts; `offset` counts from the last position (0), or is null."""
    frame = table.frame.drop(columns="position", errors="ignore")
    offset = table.frame["position"] + 1 if "position" in table.frame else [None] * len(frame)
    frame.insert(2, "offset", pd.array(offset, "Int64"))
    return frame


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
    tables: Sequence[FeatureTable], request: AggregateRequest, record: dict[str, Any]
) -> tuple[dict[str, Any], pd.DataFrame]:
    excluded, settings = request.exclude_layers, request.settings
    layers = compare_layers(tables, excluded, settings) if excluded else None
    result = aggregate([without_layers(table, excluded) for table in tables], settings)
    if not len(result.table):
        raise RequestError(f"no feature is left without layers {list(excluded)}")
    record = {
        **request.model_dump(mode="json"),
        **record,
        "n_features": len(result.table),
        "n_tested": result.n_tested,
        "permutations": {"n": result.n_permutations, "exact": result.exact},
        "stability": result.stability.model_dump(),
        "layers": layers.model_dump(mode="json") if layers else None,
    }
    return record, with_offset(result.table)
