"""Aggregation: features that matter across many labelled prompts.

table = aggregate_prompts(work, [], AggregateRequest(method="gradient"))
AggregateRecord.model_validate(table.record).stability, table.rows()[0]["mean"]
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pandas as pd

from em_circuits.cache import CachedTable, TableHead, cached_table
from em_circuits.experiments.analyse import LabelledCase
from em_circuits.experiments.cases import UnusedPrompt
from em_circuits.features import (
    FORMULA,
    AggregateSettings,
    aggregate,
    by_key,
    compare_layers,
    stored_scores,
    without_layers,
)
from em_circuits.features.over_prompts import LayerComparison, Stability
from em_circuits.graphs.header import read_header
from em_circuits.interventions import N_MEASURED, ActivationCache, live_scores
from em_circuits.progress import tracked
from em_circuits.scoring import Scoring
from em_circuits.table import FeatureTable
from em_circuits.target import Target
from em_circuits.target_request import NO_TARGET, TargetRequest
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen, GraphRecord, ModelName, Prompt

Chosen = TypeVar("Chosen")


class OverPrompts(Frozen):
    """How scores of features are summed up over prompts."""

    method: Scoring = Scoring.GRADIENT
    """One that runs the model needs the models of every pair loaded."""
    by_position: bool = False
    """Keys have the position from the end."""
    exclude_layers: tuple[int, ...] = ()
    """Layers whose features are left out."""
    settings: AggregateSettings = AggregateSettings()

    def inputs(self) -> dict[str, Any]:
        """What a result follows from beside its prompts."""
        measured = N_MEASURED if self.method is Scoring.GRADIENT_ABLATION else None
        return {"formula": FORMULA, "n_measured": measured, **self.model_dump(mode="json")}


class AggregateRequest(OverPrompts):
    """What is summed up over prompts."""

    model: ModelName = "merged"


class Permutations(Frozen):
    """Permutations of the labels behind the tests."""

    n: int
    exact: bool
    """These are all distinct labellings."""


class FiguresOverPrompts(Frozen):
    """What is said of all features together."""

    n_tested: int
    """Features scored in at least `min_prompts` prompts."""
    permutations: Permutations
    stability: Stability
    layers: LayerComparison | None
    """Null where no layers are excluded."""


class ScoredPrompt(Frozen):
    """A prompt that features are summed up over."""

    prompt_id: str
    labels_from: str
    graphs: dict[str, str]
    """Key by model; none where the method ran the model."""


class AggregatedPrompt(ScoredPrompt):
    """The same of an aggregate."""

    unmatched: tuple[int, ...]
    """Labelled token ids that are no targets."""


class AggregateRecord(FiguresOverPrompts, AggregateRequest):
    """The JSON beside the table of features."""

    pair: str
    target: str | None = None
    """What is scored, where it is not the contrast of labelled next tokens; of several prompts with
    targets of their own, the first one's."""
    prompts: tuple[AggregatedPrompt, ...]
    n_features: int
    left_out: tuple[UnusedPrompt, ...] = ()


class FeaturePlace(Frozen):
    """Where a line over prompts stands."""

    layer: int
    feature: int
    offset: int | None
    """Position from the prompt's end, 0 = last, with `--by-position`; else null, and a prompt's
    value is the sum over positions."""


class OverPromptsFigures(Frozen):
    """Figures of a feature over prompts, in the method's unit."""

    selected: int
    """Prompts in which the feature has a score."""
    partial: int
    """In how many of them it also fires at positions that are no nodes of the graph."""
    not_selected: int
    """Prompts in which it fires and is no node: its effect is unknown and left out."""
    inactive: int
    """Prompts in which its effect is exactly 0."""
    n: int
    """`selected` + `inactive`: the prompts behind `mean`, `sd`, `low`, `high`. By position, a
    prompt too short to have the position is in none of the counts."""
    mean: float | None
    sd: float | None
    """Sample standard deviation."""
    low: float | None
    """Of the 95 % percentile bootstrap over prompts; null for a feature selected once. Too narrow
    below about ten prompts."""
    high: float | None
    mean_selected: float | None
    """Over the selected prompts alone."""
    same_sign: float | None
    """Share of the non-zero contrasts with the sign of the mean."""
    p: float | None
    """Two-sided, evil and safe labels permuted over the tokens of each prompt; null for features
    selected in fewer than `min_prompts`. Tokens of one label may be alike for other reasons (a
    shared stem, say), which this test cannot tell apart."""
    q: float | None
    """`p` adjusted over all tested features by Benjamini and Hochberg."""
    stable: float | None
    """Share of the rankings without one prompt that keep it in the top k."""


class FeatureOverPrompts(OverPromptsFigures, FeaturePlace):
    """A feature over prompts."""


class AggregateOutput(TableHead, AggregateRecord):
    """The object of `features aggregate --json`."""

    features: tuple[FeatureOverPrompts, ...]
    """By mean, most positive first; those known in fewer than `min_prompts` prompts (of all
    prompts, where these are fewer) come after the others."""


@dataclass(frozen=True)
class ChosenPrompt(LabelledCase):
    """A prompt with the labels that count and the graphs it has under a pair."""

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

    def scores_by(self, work: Workspace, method: Scoring, model: ModelName) -> FeatureTable:
        """Scores by a method, from its graph or by running a model."""
        if method.is_stored:
            return stored_scores(work.graphs.load(self.graphs[model].key), method)
        return self.scores(work, method, model)

    def scored(self) -> ScoredPrompt:
        """What a report says of it."""
        return ScoredPrompt(
            prompt_id=self.prompt.prompt_id,
            labels_from=self.labels.source,
            graphs={name: record.key for name, record in self.graphs.items()},
        )


@dataclass(frozen=True)
class TargetedPrompt:
    """A prompt, labelled or not, with a target of its own."""

    prompt: Prompt
    target: Target

    def identity(self) -> dict[str, Any]:
        """The parts that a result follows from."""
        return {"prompt_id": self.prompt.prompt_id, "target": self.target.record}


def choose_prompts(
    work: Workspace,
    prefixes: Sequence[str],
    pair: str,
    models: Sequence[ModelName],
    *,
    only_divergent: bool = False,
) -> tuple[list[ChosenPrompt], list[UnusedPrompt]]:
    """Prompts with evil and safe labels and graphs of some models under a pair.

    No prefix means every prompt that will do; what will not is left out, with the reason.

    Args:
        only_divergent: Leave out what is not divergent under the pair, named or not.

    Raises:
        RequestError: If a prompt that was named will not do, or none is left.
    """
    chosen, left_out = _each(
        work,
        prefixes,
        pair,
        lambda prompt_id: _choose(work, prompt_id, pair, models),
        only_divergent=only_divergent,
    )
    if not chosen:
        which = "is divergent and has" if only_divergent else "has"
        raise RequestError(
            f"none of {len(left_out)} prompts {which} evil and safe labels and graphs under these "
            "models; run em-circuits label first"
        )
    return chosen, left_out


def choose_targets(
    work: Workspace,
    prefixes: Sequence[str],
    request: TargetRequest,
    *,
    only_divergent: bool = False,
) -> tuple[list[TargetedPrompt], list[UnusedPrompt]]:
    """Prompts with a target each; no prefix means every prompt that was shown to a model.

    Raises:
        RequestError: If a prompt that was named will not do, or none is left.
    """

    def choose(prompt_id: str) -> TargetedPrompt:
        prompt = work.store.prompts.get(prompt_id)
        if prompt.token_ids is None and not prefixes:
            raise RequestError("never shown to a model")
        target = request.build(work, prompt)
        assert target is not None
        return TargetedPrompt(prompt, target)

    chosen, left_out = _each(work, prefixes, work.pair_key, choose, only_divergent=only_divergent)
    if not chosen:
        reasons = "; ".join(sorted({one.reason for one in left_out})[:2])
        raise RequestError(f"none of {len(left_out)} prompts will do: {reasons}")
    return chosen, left_out


def _each(
    work: Workspace,
    prefixes: Sequence[str],
    pair: str,
    choose: Callable[[str], Chosen],
    *,
    only_divergent: bool,
) -> tuple[list[Chosen], list[UnusedPrompt]]:
    """Prompts that are named and must do, or all that do; and those left out."""
    ids = {work.store.prompts.get(prefix).prompt_id for prefix in prefixes}
    chosen: list[Chosen] = []
    left_out: list[UnusedPrompt] = []
    divergent = work.store.queries.divergent(pair) if only_divergent else None
    for prompt_id in sorted(ids or {prompt.prompt_id for prompt in work.store.prompts.all()}):
        if divergent is not None and prompt_id not in divergent:
            left_out.append(UnusedPrompt(prompt_id=prompt_id, reason="not divergent"))
            continue
        try:
            chosen.append(choose(prompt_id))
        except RequestError as error:
            if ids:
                raise
            left_out.append(UnusedPrompt(prompt_id=prompt_id, reason=str(error)))
    return chosen, left_out


def choose_shown(
    work: Workspace, prefixes: Sequence[str], *, only_divergent: bool = False
) -> tuple[list[ChosenPrompt], list[UnusedPrompt]]:
    """Prompts with evil and safe labels that the models can be run on; see `choose_prompts`.

    Raises:
        RequestError: If a prompt that was named will not do, or none is left.
    """
    chosen, left_out = choose_prompts(
        work, prefixes, work.pair_key, [], only_divergent=only_divergent
    )
    shown = [item for item in chosen if item.prompt.token_ids is not None]
    left_out += [
        UnusedPrompt(prompt_id=item.prompt.prompt_id, reason="never shown to a model")
        for item in chosen
        if item.prompt.token_ids is None
    ]
    if not shown:
        raise RequestError("no labelled prompt was shown to a model; run em-circuits label first")
    return shown, left_out


def aggregate_prompts(
    work: Workspace,
    prefixes: Sequence[str],
    request: AggregateRequest | None = None,
    *,
    pair: str | None = None,
    only_divergent: bool = False,
    target: TargetRequest = NO_TARGET,
) -> CachedTable:
    """Sum up a method's contrast over prompts by feature, or re-use the table of equal inputs.

    No prefix means every prompt that will do; `pair` is another pair's key than the models';
    `only_divergent` leaves the other prompts out. A target, built for each prompt, stands in place
    of the contrast; its models are run, and it has no labels to permute.

    Raises:
        RequestError: No such layer, or no prompts that will do.
    """
    request = request or AggregateRequest()
    if target.is_given:
        require_loaded(work, pair or work.pair_key, request.method)
        return _aggregate_targets(work, prefixes, request, target, only_divergent=only_divergent)
    live = not request.method.is_stored
    pair = pair or work.pair_key
    if live:
        require_loaded(work, pair, request.method)
    models: list[ModelName] = [] if live else [request.model]
    chosen, left_out = choose_prompts(work, prefixes, pair, models, only_divergent=only_divergent)
    inputs = {
        **request.inputs(),
        "pair": pair,
        "prompts": [item.identity() for item in chosen],
    }

    def compute() -> tuple[dict[str, Any], pd.DataFrame]:
        require_layers(request.exclude_layers, layers_of(work, chosen))
        tables, prompts = [], []
        for item in tracked(chosen, "aggregate", work.progress):
            scores = item.scores_by(work, request.method, request.model)
            contrasted = scores.contrasted(item.contrast)
            tables.append(by_key(contrasted, by_position=request.by_position))
            unmatched = tuple(item.unmatched(scores))
            prompts.append(AggregatedPrompt(**dict(item.scored()), unmatched=unmatched))
        figures, frame = summed(tables, request)
        record = AggregateRecord(
            **dict(request),
            **dict(figures),
            pair=pair,
            prompts=tuple(prompts),
            n_features=len(frame),
        )
        return record.model_dump(mode="json", exclude={"left_out"}), frame

    table = cached_table(work.results / "features", "aggregate", inputs, compute)
    table.record["left_out"] = [one.model_dump() for one in left_out]
    return table


def _aggregate_targets(
    work: Workspace,
    prefixes: Sequence[str],
    request: AggregateRequest,
    target: TargetRequest,
    *,
    only_divergent: bool,
) -> CachedTable:
    chosen, left_out = choose_targets(work, prefixes, target, only_divergent=only_divergent)
    pair = work.pair_key
    prompts = [item.identity() for item in chosen]
    inputs = {**request.inputs(), "pair": pair, "prompts": prompts}

    def compute() -> tuple[dict[str, Any], pd.DataFrame]:
        require_layers(request.exclude_layers, work.pair.base.sites.n_layers)
        tables, model = [], work.pair.model(request.model)
        for item in tracked(chosen, "aggregate", work.progress):
            state = ActivationCache.capture(model, work.pair.input_ids(item.prompt))
            scores = live_scores(model, state, item.target, request.method)
            contrasted = scores.contrasted(item.target)
            tables.append(by_key(contrasted, by_position=request.by_position))
        figures, frame = summed(tables, request, test=False)
        record = AggregateRecord(
            **dict(request),
            **dict(figures),
            pair=pair,
            target=chosen[0].target.name,
            prompts=tuple(
                AggregatedPrompt(
                    prompt_id=item.prompt.prompt_id, labels_from="none", graphs={}, unmatched=()
                )
                for item in chosen
            ),
            n_features=len(frame),
        )
        return record.model_dump(mode="json", exclude={"left_out"}), frame

    table = cached_table(work.results / "features", "aggregate", inputs, compute)
    table.record["left_out"] = [one.model_dump() for one in left_out]
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
    if pair != work.pair_key:
        raise RequestError(
            f"{method} runs the models, and pair {pair[:12]} is not loaded: leave out --pair, or "
            f"give its models (--base, --adapter), or choose --method gradient"
        )


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


def _choose(
    work: Workspace, prompt_id: str, pair: str, models: Sequence[ModelName]
) -> ChosenPrompt:
    found = LabelledCase.get(work, prompt_id)
    contrast = found.contrast
    if not contrast.is_defined:
        raise RequestError(
            f"prompt {prompt_id} has no contrast: {len(contrast.evil)} evil and "
            f"{len(contrast.safe)} safe tokens are labelled"
        )
    graphs = {model: work.graph_record(prompt_id, model, pair) for model in models}
    return ChosenPrompt(
        found.prompt, found.labels, {str(name): record for name, record in graphs.items()}
    )


def summed(
    tables: Sequence[FeatureTable], request: OverPrompts, *, test: bool = True
) -> tuple[FiguresOverPrompts, pd.DataFrame]:
    """Figures over prompts, and a line per key; `offset` counts from the last position (0)."""
    excluded, settings = request.exclude_layers, request.settings
    layers = compare_layers(tables, excluded, settings) if tables and excluded and test else None
    left = [without_layers(table, excluded) for table in tables]
    result = aggregate(left, settings, test=test)
    if tables and not len(result.table):
        raise RequestError(f"no feature is left without layers {list(excluded)}")
    frame = result.table.frame
    offset = frame["position"] + 1 if "position" in frame else [None] * len(frame)
    frame = frame.drop(columns="position", errors="ignore")
    frame.insert(2, "offset", pd.array(offset, "Int64"))
    figures = FiguresOverPrompts(
        n_tested=result.n_tested,
        permutations=Permutations(n=result.n_permutations, exact=result.exact),
        stability=result.stability,
        layers=layers,
    )
    return figures, frame
