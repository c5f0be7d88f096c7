"""Differences of features between models over prompts: merged minus base, of one or several pairs.

table = difference_over_prompts([GraphSource(work, work.pair.key)], [], OverPrompts())
table.record["pairs"][0]["prompts"], joined(table)[0]["changes"][0]["score"]["mean"]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from em_circuits.cache import CachedTable, cached_table
from em_circuits.experiments.aggregate import (
    ChosenPrompt,
    OverPrompts,
    choose_prompts,
    layers_of,
    require_layers,
    require_loaded,
    summed,
)
from em_circuits.features import (
    activation_by_key,
    by_key,
    change,
    stored_scores,
)
from em_circuits.progress import tracked
from em_circuits.scoring import Scoring
from em_circuits.table import FeatureTable
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import ModelName

MEASURES = ("activation", "score", "edge")
_PLACE = ("layer", "feature", "offset")


@dataclass(frozen=True)
class GraphSource:
    """A pair of models whose graphs are in a workspace's store."""

    work: Workspace
    pair: str


def find_sources(
    work: Workspace, pairs: Sequence[str], others: Sequence[Workspace]
) -> list[GraphSource]:
    """The pairs that are compared: those named, or else the models'; and all of other stores.

    Raises:
        RequestError: If a pair is not there, or another store has none.
    """
    keys = [work.store.results.find_pair(prefix) for prefix in pairs] or [work.pair.key]
    sources = [GraphSource(work, key) for key in dict.fromkeys(keys)]
    for other in others:
        found = sorted({record.pair for record in other.store.graphs.all()})
        if not found:
            raise RequestError(f"{other.store.where} has no graphs; run em-circuits label there")
        sources += [GraphSource(other, key) for key in found]
    return sources


def difference_over_prompts(
    sources: Sequence[GraphSource],
    prefixes: Sequence[str],
    request: OverPrompts | None = None,
) -> CachedTable:
    """Merged minus base of activation, score and direct edge, by feature and pair, over prompts.

    A line per pair, measure and key (see `joined`), stored in the first pair's workspace. No prefix
    means every prompt that will do.

    Raises:
        RequestError: If a pair has no prompts that will do.
    """
    request = request or OverPrompts()
    if not request.method.is_stored:
        for source in sources:
            require_loaded(source.work, source.pair, request.method)
    chosen = [choose_prompts(s.work, prefixes, s.pair, ["base", "merged"]) for s in sources]
    for source, (items, _) in zip(sources, chosen, strict=True):
        require_layers(request.exclude_layers, layers_of(source.work, items))
    inputs = {
        **request.inputs(),
        "prompts": [
            {"pair": source.pair, "prompts": [item.identity() for item in items]}
            for source, (items, _) in zip(sources, chosen, strict=True)
        ],
    }

    def compute() -> tuple[dict[str, Any], pd.DataFrame]:
        pairs, frames = [], []
        for number, (source, (items, _)) in enumerate(zip(sources, chosen, strict=True)):
            record, frame = _pair(source, tracked(items, "compare", source.work.progress), request)
            pairs.append(record)
            frames.append(frame.assign(pair=number))
        record = {**request.model_dump(mode="json"), "pairs": pairs}
        return record, pd.concat(frames, ignore_index=True)

    table = cached_table(sources[0].work.results / "features", "diff", inputs, compute)
    for record, (_, left_out) in zip(table.record["pairs"], chosen, strict=True):
        record["left_out"] = [one.model_dump() for one in left_out]
    return table


def joined(table: CachedTable) -> list[dict[str, Any]]:
    """A line per key with its changes under every pair, by mean change of score, positive first.

    A pair in which a key is active in no prompt has null, and so has a measure it is unknown in.
    """
    n_pairs = len(table.record["pairs"])
    found: dict[tuple[Any, ...], list[dict[str, Any] | None]] = {}
    for row in table.rows():
        pair, measure = row.pop("pair"), row.pop("measure")
        key = tuple(row.pop(name) for name in _PLACE)
        changes = found.setdefault(key, [None] * n_pairs)
        cell = changes[pair]
        if cell is None:
            cell = changes[pair] = dict.fromkeys(MEASURES)
        cell[measure] = row
    lines = [
        {**dict(zip(_PLACE, key, strict=True)), "changes": changes}
        for key, changes in found.items()
    ]
    return sorted(lines, key=_order)


def _order(line: dict[str, Any]) -> tuple[bool, float, int, int, int]:
    scores = [c["score"]["mean"] for c in line["changes"] if c and c["score"]]
    mean = sum(scores) / len(scores) if scores else 0.0
    return not scores, -mean, line["layer"], line["feature"], -(line["offset"] or 0)


def _pair(
    source: GraphSource, items: Any, request: OverPrompts
) -> tuple[dict[str, Any], pd.DataFrame]:
    """The record and the lines of one pair."""
    tables: dict[str, list[FeatureTable]] = {measure: [] for measure in MEASURES}
    prompts = []
    for item in items:
        for measure, table in _changes(source.work, item, request).items():
            tables[measure].append(table)
        prompts.append(item.to_json())
    frames = []
    record: dict[str, Any] = {
        "pair": source.pair,
        "models": source.work.store.results.pairs().get(source.pair, {}),
        "prompts": prompts,
        "prompts_with_edges": len(tables["edge"]),
    }
    for measure, mine in tables.items():
        figures, frame = summed(mine, request, test=measure != "activation")
        frames.append(frame.assign(measure=measure))
        if measure == "score":
            record |= figures
    return record, pd.concat(frames, ignore_index=True)


def _changes(work: Workspace, item: ChosenPrompt, request: OverPrompts) -> dict[str, FeatureTable]:
    """Merged minus base of one prompt by measure; without edges in both there is no edge."""
    models: tuple[ModelName, ModelName] = ("base", "merged")
    graphs = [work.graphs.load(item.graphs[name].key) for name in models]

    def keyed(scores: FeatureTable) -> FeatureTable:
        return by_key(scores.contrasted(item.contrast), by_position=request.by_position)

    found = {
        "activation": [activation_by_key(g, by_position=request.by_position) for g in graphs],
        "score": [keyed(item.scores_by(work, request.method, model)) for model in models],
    }
    if all(graph.edges is not None for graph in graphs):
        found["edge"] = [keyed(stored_scores(graph, Scoring.DIRECT)) for graph in graphs]
    return {measure: change(base, merged) for measure, (base, merged) in found.items()}
