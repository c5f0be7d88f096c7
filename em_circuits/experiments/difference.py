"""Differences of features between models over prompts: merged minus base, of one or several pairs.

table = difference_over_prompts([GraphSource(work, work.pair_key)], [], OverPrompts())
joined(table)[0].changes[0].score.mean
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from em_circuits.cache import CachedTable, TableHead, cached_table
from em_circuits.experiments.aggregate import (
    ChosenPrompt,
    FeaturePlace,
    FiguresOverPrompts,
    OverPrompts,
    OverPromptsFigures,
    ScoredPrompt,
    choose_prompts,
    layers_of,
    require_layers,
    require_loaded,
    summed,
)
from em_circuits.experiments.cases import UnusedPrompt
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
from pivotal_tokens.schema import Frozen, ModelName

MEASURES = ("activation", "score", "edge")
_PLACE = ("layer", "feature", "offset")


class PairDifference(FiguresOverPrompts):
    """The prompts of a pair of models; `n_tested`, `permutations`, `stability` and `layers` are of
    the score."""

    pair: str
    models: dict[str, str]
    prompts: tuple[ScoredPrompt, ...]
    prompts_with_edges: int
    left_out: tuple[UnusedPrompt, ...] = ()


class DifferenceRecord(OverPrompts):
    """The JSON beside the table of changes."""

    pairs: tuple[PairDifference, ...]


class FeatureChange(Frozen):
    """Merged minus base of a feature under one pair; a measure that is not known is null."""

    activation: OverPromptsFigures | None = None
    score: OverPromptsFigures | None = None
    edge: OverPromptsFigures | None = None
    """From the feature directly to the contrast."""


class FeatureChanges(FeaturePlace):
    """A feature's changes."""

    changes: tuple[FeatureChange | None, ...]
    """In the order of `pairs`; null where it fires in none of a pair's prompts."""


class DifferenceOutput(TableHead, DifferenceRecord):
    """The object of `features diff --json`."""

    features: tuple[FeatureChanges, ...]
    """By mean change of score, most positive first."""


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
    keys = [work.store.results.find_pair(prefix) for prefix in pairs] or [work.pair_key]
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
    *,
    only_divergent: bool = False,
) -> CachedTable:
    """Merged minus base of activation, score and direct edge, by feature and pair, over prompts.

    A line per pair, measure and key (see `joined`), stored in the first pair's workspace. No prefix
    means every prompt that will do; `only_divergent` leaves out what is not under the pair.

    Raises:
        RequestError: If a pair has no prompts that will do.
    """
    request = request or OverPrompts()
    if not request.method.is_stored:
        for source in sources:
            require_loaded(source.work, source.pair, request.method)
    both: list[ModelName] = ["base", "merged"]
    chosen = [
        choose_prompts(s.work, prefixes, s.pair, both, only_divergent=only_divergent)
        for s in sources
    ]
    inputs = {
        **request.inputs(),
        "prompts": [
            {"pair": source.pair, "prompts": [item.identity() for item in items]}
            for source, (items, _) in zip(sources, chosen, strict=True)
        ],
    }

    def compute() -> tuple[dict[str, Any], pd.DataFrame]:
        for source, (items, _) in zip(sources, chosen, strict=True):
            require_layers(request.exclude_layers, layers_of(source.work, items))
        pairs, frames = [], []
        for number, (source, (items, _)) in enumerate(zip(sources, chosen, strict=True)):
            found, frame = _pair(source, tracked(items, "compare", source.work.progress), request)
            pairs.append(found)
            frames.append(frame.assign(pair=number))
        record = DifferenceRecord(**dict(request), pairs=tuple(pairs)).model_dump(
            mode="json", exclude={"pairs": {"__all__": {"left_out"}}}
        )
        return record, pd.concat(frames, ignore_index=True)

    table = cached_table(sources[0].work.results / "features", "diff", inputs, compute)
    for record, (_, left_out) in zip(table.record["pairs"], chosen, strict=True):
        record["left_out"] = [one.model_dump() for one in left_out]
    return table


def joined(table: CachedTable) -> list[FeatureChanges]:
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
            cell = changes[pair] = {}
        cell[measure] = row
    lines = [
        FeatureChanges.model_validate({**dict(zip(_PLACE, key, strict=True)), "changes": changes})
        for key, changes in found.items()
    ]
    return sorted(lines, key=_order)


def _order(line: FeatureChanges) -> tuple[bool, float, int, int, int]:
    scores: list[Any] = [c.score.mean for c in line.changes if c and c.score]
    mean = sum(scores) / len(scores) if scores else 0.0
    return not scores, -mean, line.layer, line.feature, -(line.offset or 0)


def _pair(
    source: GraphSource, items: Any, request: OverPrompts
) -> tuple[PairDifference, pd.DataFrame]:
    """The record and the lines of one pair."""
    tables: dict[str, list[FeatureTable]] = {measure: [] for measure in MEASURES}
    prompts = []
    for item in items:
        for measure, table in _changes(source.work, item, request).items():
            tables[measure].append(table)
        prompts.append(item.scored())
    found = {
        measure: summed(mine, request, test=measure != "activation")
        for measure, mine in tables.items()
    }
    record = PairDifference(
        **dict(found["score"][0]),
        pair=source.pair,
        models=source.work.store.results.pairs().get(source.pair, {}),
        prompts=tuple(prompts),
        prompts_with_edges=len(tables["edge"]),
    )
    frames = [frame.assign(measure=measure) for measure, (_, frame) in found.items()]
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
