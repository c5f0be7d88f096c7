"""Features over many prompts: how far they push towards evil, with intervals and tests.

A key is a feature wherever it fires, (layer, id), or at a position counted from the end of a
prompt. In every prompt it is in one of three states:

    inactive       it fires nowhere: its effect is exactly 0, and counts as 0
    not selected   it fires but is no node of the graph: unknown, left out
    selected       it has a score; `partial` where it fires at further, unselected positions

Over the prompts in which a key is known: mean, standard deviation, bootstrap interval, share of
active prompts whose sign is the mean's; per key selected in at least `min_prompts`: a test that
permutes the labels within each prompt, adjusted over these keys by Benjamini and Hochberg; and
whether the top k stay when one prompt is left out.

    tables = [by_key(stored_scores(graph, "gradient").contrasted(words)) for graph, words in ...]
    aggregate(tables).table.top(10)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from pydantic import BaseModel, Field
from torch import Tensor

from em_circuits.graphs.graph import AttributionGraph
from em_circuits.statistics import (
    benjamini_hochberg,
    bootstrap_interval,
    permutation_p,
    permute_labels,
)
from em_circuits.table import FeatureTable
from pivotal_tokens.artefacts import finite
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen

FORMULA = 1
"""Raise it when a formula of this package or of influence changes, to recompute stored tables."""


class AggregateSettings(Frozen):
    """How prompts are summed up."""

    min_prompts: int = Field(default=5, ge=1)
    """Prompts in which a key must be selected to be tested, and known to be ranked."""
    top_k: int = Field(default=20, ge=1)
    """Number of most positive keys whose stability is measured."""
    bootstrap: int = Field(default=2000, ge=1)
    """Resamples of prompts."""
    permutations: int = Field(default=9999, ge=1)
    """Of the labels; all distinct labellings, where they are no more."""
    seed: int = 0
    """Of both."""


DEFAULTS = AggregateSettings()


class Stability(BaseModel):
    """How much of the top k remains when one prompt is left out; None with a single prompt."""

    k: int
    mean_overlap: float | None
    """Share of the top k, mean over the prompts left out."""
    least_overlap: float | None


@dataclass(frozen=True, eq=False)
class Aggregate:
    """What several prompts say together.

    Attributes:
        table: Keys by their mean, most positive first; those known in fewer than `min_prompts`
            prompts follow after all others. Columns, NaN where a figure is not defined:
            `selected` (prompts with a score), `partial` (those of them in which further positions
            have none), `not_selected`, `inactive`, `n` (selected + inactive, over which the next
            four are taken), `mean`, `sd`, `low` and `high` (bootstrap), `mean_selected`,
            `same_sign`, `p` (label permutation), `q` (adjusted over all tested keys) and `stable`
            (share of the leave-one-out rankings with it in the top k).
        n_tested: Keys.
        n_permutations: Of the labels.
        exact: These are all distinct labellings.
        stability: Of the top k.
    """

    table: FeatureTable
    n_tested: int
    n_permutations: int
    exact: bool
    stability: Stability


class LayerComparison(BaseModel):
    """Included against excluded layers, in the method's unit; None where a side is empty."""

    excluded: tuple[int, ...]
    prompts: int
    """Prompts with features on both sides."""
    kept_mean: float | None = None
    """Mean over these prompts of mean |contrast|."""
    excluded_mean: float | None = None
    difference: float | None = None
    low: float | None = None
    """2.5 % of the bootstrap over prompts: a bare ratio of means says nothing about chance."""
    high: float | None = None


def by_key(contrasted: FeatureTable, *, by_position: bool = False) -> FeatureTable:
    """One prompt's contrasts by key, NaN where a key is unknown.

    Args:
        contrasted: Scores of the prompt's active features.
        by_position: Keys have the position from the end (-1 is the last).
    """
    if by_position:
        table = contrasted.from_end(contrasted.about["n_pos"])
        return replace(table, frame=table.frame.assign(partial=False))
    return contrasted.by_id()


def activation_by_key(graph: AttributionGraph, *, by_position: bool = False) -> FeatureTable:
    """Activations of one prompt by key, in the shape of contrasts; always known."""
    features, rows = graph.features
    activations = graph.activations[rows].double().numpy()
    table = FeatureTable.of(
        features,
        by="activation",
        targets=[0],
        per_target=activations[None],
        about={"n_pos": len(graph.input_ids)},
        contrast=activations,
    )
    return by_key(replace(table, weights=np.ones(1)), by_position=by_position)


def change(base: FeatureTable, merged: FeatureTable) -> FeatureTable:
    """Merged minus base of one prompt, by key.

    A key that is inactive in one model counts there as 0; one that is unknown in either is unknown.

    Raises:
        RequestError: If the two are of different prompts or tokens.
    """
    assert base.weights is not None and merged.weights is not None
    lengths = [table.about["n_pos"] for table in (base, merged)]
    alike = all(
        np.array_equal(getattr(base, name), getattr(merged, name))
        for name in ("targets", "weights")
    )
    if lengths[0] != lengths[1] or not alike:
        raise RequestError(
            f"base and merged cannot be compared: {lengths[0]} and {lengths[1]} positions, "
            f"{len(base.weights)} and {len(merged.weights)} labelled targets; build both graphs "
            "in one go (em-circuits graphs build)"
        )
    indices = [pd.MultiIndex.from_frame(t.frame[t.keys]) for t in (base, merged)]
    keys = indices[0].union(indices[1])
    partial = np.zeros(len(keys), dtype=bool)
    rows = []
    for table, index in zip((base, merged), indices, strict=True):
        assert table.per_target is not None
        at = keys.get_indexer(index)
        filled = np.zeros((len(table.per_target), len(keys)))
        filled[:, at] = table.per_target
        rows.append(filled)
        partial[at] |= table["partial"]
    difference = rows[1] - rows[0]
    frame = keys.to_frame(index=False)
    frame["contrast"], frame["partial"] = base.weights @ difference, partial
    return replace(base, frame=frame, per_target=difference)


@dataclass(frozen=True, eq=False)
class _Stack:
    """Several prompts over one list of keys: those with a score in any of them."""

    tables: Sequence[FeatureTable]
    keys: pd.MultiIndex
    entries: pd.DataFrame
    """`prompt`, `key` (its number), `contrast` (NaN where unknown) and `partial` of every key that
    fires in a prompt, prompt by prompt."""
    lengths: np.ndarray
    """Positions of each prompt."""
    far: np.ndarray
    """Distance of each key's position from the end, from 1; 0 where keys have none."""

    @classmethod
    def of(cls, tables: Sequence[FeatureTable]) -> _Stack:
        names = tables[0].keys if tables else ["layer", "feature"]
        columns = ["prompt", *names, "contrast", "partial"]
        parts = [table.frame.assign(prompt=i)[columns] for i, table in enumerate(tables)]
        entries = pd.concat(parts or [pd.DataFrame(columns=columns)], ignore_index=True)
        index = pd.MultiIndex.from_frame(entries[names])
        keys = index[entries["contrast"].notna()].unique().sort_values()
        entries = entries.drop(columns=names).assign(key=keys.get_indexer(index))
        far = -keys.get_level_values("position") if "position" in names else np.zeros(len(keys))
        lengths = np.array([table.about["n_pos"] for table in tables], dtype=np.int64)
        entries = entries[entries["key"] >= 0]
        return cls(tables, keys, entries, lengths, np.asarray(far, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def scored(self) -> pd.DataFrame:
        return self.entries[self.entries["contrast"].notna()]

    @property
    def unknown(self) -> pd.DataFrame:
        """Fires and has no score at all."""
        return self.entries[self.entries["contrast"].isna()]

    def too_short(self) -> np.ndarray:
        """Prompts without such a position, of each key; position 0 is none."""
        return np.searchsorted(np.sort(self.lengths), self.far, side="right")

    def dense(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Contrasts of some keys, prompt x key, 0 without a score; and where they are known."""
        column = np.full(len(self), -1)
        column[chosen] = np.arange(len(chosen))
        entries = self.entries.assign(column=column[self.entries["key"]])
        entries = entries[entries["column"] >= 0]
        at = entries["prompt"].to_numpy(), entries["column"].to_numpy()
        values = np.zeros((len(self.tables), len(chosen)))
        known = np.broadcast_to(self.far[chosen] < self.lengths[:, None], values.shape).copy()
        contrasts = entries["contrast"].to_numpy(float)
        values[at], known[at] = np.nan_to_num(contrasts), ~np.isnan(contrasts)
        return values, known

    def token_rows(self, chosen: np.ndarray) -> tuple[list[Tensor], Float64[Tensor, "row chosen"]]:
        """Each prompt's label weights, and token scores of some keys, prompts below one another."""
        wanted = self.keys[chosen]
        weights, rows = [], []
        for table in self.tables:
            assert table.weights is not None and table.targets is not None
            assert table.per_target is not None
            labelled = table.weights.nonzero()[0]
            labelled = labelled[table.targets[labelled].argsort(kind="stable")]
            weights.append(torch.from_numpy(table.weights[labelled]))
            at = wanted.get_indexer(pd.MultiIndex.from_frame(table.frame[table.keys]))
            part = np.zeros((len(labelled), len(chosen)))
            part[:, at[at >= 0]] = np.nan_to_num(table.per_target[labelled][:, at >= 0])
            rows.append(torch.from_numpy(part))
        return weights, torch.cat(rows)


def aggregate(
    tables: Sequence[FeatureTable], settings: AggregateSettings = DEFAULTS, *, test: bool = True
) -> Aggregate:
    """Sum up prompts by key.

    Args:
        tables: Contrasts by key of each prompt, by one method and of one model.
        settings: Least prompts, draws, seed.
        test: Permute labels; pointless where rows are no tokens (activations).
    """
    stack = _Stack.of(tables)
    least = min(settings.min_prompts, len(tables))
    frame = _figures(stack)
    stability, frame["stable"] = _leave_one_out(stack, frame, settings.top_k, least)
    several = (frame["selected"] > 1).to_numpy().nonzero()[0]
    if len(several):
        values, known = (torch.from_numpy(part) for part in stack.dense(several))
        low, high = bootstrap_interval(values, known, draws=settings.bootstrap, seed=settings.seed)
        frame.loc[several, "low"], frame.loc[several, "high"] = low.numpy(), high.numpy()
    tested = (frame["selected"] >= settings.min_prompts).to_numpy().nonzero()[0]
    n_permutations, exact = 0, False
    if test and len(tested):
        weights, rows = stack.token_rows(tested)
        permuted = permute_labels(weights, draws=settings.permutations, seed=settings.seed)
        n_permutations, exact = len(permuted.weights), permuted.exact
        p = permutation_p(rows, permuted, torch.cat(weights))
        frame.loc[tested, "p"], frame.loc[tested, "q"] = p.numpy(), benjamini_hochberg(p).numpy()
    frame = frame.drop(columns="total").iloc[_order(frame["mean"], frame["n"] >= least)]
    by = tables[0].by if tables else ""
    table = FeatureTable(frame.reset_index(drop=True), by, score="mean")
    return Aggregate(table, len(tested) if test else 0, n_permutations, exact, stability)


def _figures(stack: _Stack) -> pd.DataFrame:
    """Counts and moments of every key; intervals and tests still NaN."""
    scored, n_prompts = stack.scored, len(stack.tables)
    values = scored["contrast"].astype(float)
    frame = stack.keys.to_frame(index=False)

    def each(found: pd.Series, dtype: type = float) -> pd.Series:
        return found.reindex(range(len(stack)), fill_value=0).astype(dtype)

    def count(mask: pd.Series) -> pd.Series:
        return each(mask.groupby(scored["key"]).sum(), int)

    frame["selected"] = count(values.notna())
    frame["partial"] = count(scored["partial"].astype(bool))
    frame["not_selected"] = each(stack.unknown.groupby("key").size(), int)
    frame["n"] = n_prompts - frame["not_selected"] - stack.too_short()
    frame.insert(len(frame.columns) - 1, "inactive", frame["n"] - frame["selected"])
    frame["total"] = total = each(values.groupby(scored["key"]).sum())
    frame["mean"] = mean = total / frame["n"]
    # An inactive prompt's distance from the mean is the mean itself.
    distance = values - mean.to_numpy()[scored["key"].astype(int)]
    squares = each((distance**2).groupby(scored["key"]).sum()) + frame["inactive"] * mean**2
    frame["sd"] = np.sqrt(squares / (frame["n"] - 1).where(frame["n"] > 1))
    frame["low"] = frame["high"] = math.nan
    frame["mean_selected"] = total / frame["selected"]
    positive, negative = count(values > 0), count(values < 0)
    with_sign = positive.where(mean > 0, negative)
    frame["same_sign"] = with_sign / (positive + negative)
    frame["p"] = frame["q"] = math.nan
    return frame


def _leave_one_out(
    stack: _Stack, frame: pd.DataFrame, top_k: int, least: int
) -> tuple[Stability, np.ndarray]:
    """Overlap of the top k with those without one prompt, and how often each key is in these."""
    k, n_prompts = min(top_k, len(stack)), len(stack.tables)
    if n_prompts < 2 or k == 0:
        none = Stability(k=k, mean_overlap=None, least_overlap=None)
        return none, np.full(len(stack), math.nan)
    n, total = frame["n"].to_numpy(), frame["total"].to_numpy()
    whole = set(_order(frame["mean"], n >= least)[:k])
    entries = dict(iter(stack.entries.groupby("prompt")))
    times, overlaps = np.zeros(len(stack)), []
    for prompt in range(n_prompts):
        values, known = np.zeros(len(stack)), stack.far < stack.lengths[prompt]
        if (mine := entries.get(prompt)) is not None:
            contrasts = mine["contrast"].to_numpy(float)
            at = mine["key"].to_numpy()
            values[at], known[at] = np.nan_to_num(contrasts), ~np.isnan(contrasts)
        rest = n - known
        mean = np.full(len(stack), -math.inf)
        np.divide(total - values, rest, out=mean, where=rest > 0)
        top = _order(mean, rest >= min(least, n_prompts - 1))[:k]
        times[top] += 1
        overlaps.append(len(whole & set(top)) / k)
    stability = Stability(
        k=k, mean_overlap=sum(overlaps) / len(overlaps), least_overlap=min(overlaps)
    )
    return stability, times / n_prompts


def _order(mean: np.ndarray | pd.Series, ranked: np.ndarray | pd.Series) -> np.ndarray:
    """Ranked keys by their mean, most positive first, then the others."""
    order = np.argsort(-np.asarray(mean), kind="stable")
    first = np.asarray(ranked)[order]
    return np.concatenate([order[first], order[~first]])


def compare_layers(
    tables: Sequence[FeatureTable],
    excluded: Collection[int],
    settings: AggregateSettings = DEFAULTS,
) -> LayerComparison:
    """Mean |contrast| of included minus excluded layers' keys, prompt by prompt.

    Args:
        tables: Contrasts by key, one per prompt.
        excluded: Layers.
        settings: Resamples and seed.
    """
    means = []
    for table in tables:
        known = table.frame[table.frame["contrast"].notna()]
        aside, size = known["layer"].isin(excluded), known["contrast"].abs()
        if aside.any() and not aside.all():
            means.append([size[~aside].mean(), size[aside].mean()])
    layers = tuple(sorted(excluded))
    if not means:
        return LayerComparison(excluded=layers, prompts=0)
    both = torch.tensor(means, dtype=torch.float64)
    gaps = (both[:, 0] - both[:, 1])[:, None]
    low, high = bootstrap_interval(
        gaps,
        torch.ones_like(gaps, dtype=torch.bool),
        draws=settings.bootstrap,
        seed=settings.seed,
    )
    included, aside_mean = both.mean(0).tolist()
    return LayerComparison(
        excluded=layers,
        prompts=len(means),
        kept_mean=included,
        excluded_mean=aside_mean,
        difference=included - aside_mean,
        low=finite(float(low)),
        high=finite(float(high)),
    )


def without_layers(table: FeatureTable, excluded: Collection[int]) -> FeatureTable:
    """A table without the keys of some layers."""
    return table.take(~table.frame["layer"].isin(excluded).to_numpy())
