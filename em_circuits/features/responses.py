"""Nodes by how they differ between misaligned and aligned answers to the same questions.

With v_a a node's pooled activation in answer a, over questions q that have answers of both sides,

    d_q      = mean of v over q's misaligned answers - mean over its aligned ones
    contrast = mean over questions of d_q                       positive: more in misaligned answers

A question counts once, however many answers it has, and what questions differ in cancels. The test
permutes the labels within each question; q-values are of Benjamini and Hochberg over the nodes that
are active in enough answers. Some questions are held out: their contrast stands beside, and a
detector that was fitted without them is tried on them.

    written        = contrast * |what the node writes per unit|: the ranking, alike in all layers
    without_length = contrast of v less its regression, within questions, on the answer's length

    compared = compare_responses(pooled, question, misaligned, ResponseSettings())
    compared.table.top(20), compared.detector.auroc, compared.detector.length_auroc
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int64
from pydantic import BaseModel
from torch import Tensor

from em_circuits.bases.part import Part
from em_circuits.features.pooled import PooledAnswers
from em_circuits.features.settings import ResponseSettings
from em_circuits.graphs.full import part_record
from em_circuits.statistics import (
    DRAWS,
    Agreement,
    PermutedLabels,
    agreement,
    auroc_within,
    benjamini_hochberg,
    bootstrap_interval,
    paired_interval,
    permutation_p,
    permute_labels,
)
from em_circuits.table import FeatureTable
from pivotal_tokens.errors import RequestError

SCORE = "written"


class Detector(BaseModel, frozen=True):
    """How well a few nodes tell misaligned from aligned answers to held-out questions.

    Areas under the ROC curve within questions, with 95 % intervals over questions. The score is the
    sum over the nodes of sign(contrast) * v / sd, sd within questions; nodes, signs and sd are of
    the other questions.
    """

    nodes: int
    questions: int
    auroc: float | None
    low: float | None
    high: float | None
    best_node: str | None
    best_auroc: float | None
    """Of the first node alone."""
    length_auroc: float | None
    """Of the answer's length alone, longer taken for misaligned where it was so before."""


class LayerOfResponses(BaseModel, frozen=True):
    """What one layer (or LoRA module of a layer) has of the difference."""

    layer: int
    module: str
    nodes: int
    """Tested."""
    raised: int
    """With q < .05, more in misaligned answers."""
    lowered: int
    share: float
    """Of the sum of |written| over all tested nodes."""


@dataclass(frozen=True, eq=False)
class ComparedResponses:
    """Nodes with their contrasts, and what is said of them together."""

    table: FeatureTable
    layers: tuple[LayerOfResponses, ...]
    detector: Detector
    held_out: Agreement | None
    """Of the contrasts with those of held-out questions."""
    length_difference: float
    """Misaligned minus aligned, in tokens."""
    length_p: float
    """Of the same test."""
    n_questions: int
    n_held_out: int
    exact: bool
    """The permutations are all there are."""


def compare_responses(
    pooled: PooledAnswers,
    question: Int64[Tensor, " answer"],
    misaligned: Bool[Tensor, " answer"],
    settings: ResponseSettings,
) -> ComparedResponses:
    """Compare answers within questions.

    Args:
        pooled: Activations of every answer.
        question: Number of the question that each answers.
        misaligned: Its side.

    Raises:
        RequestError: If no question has answers of both sides, or no node is active.
    """
    both = QuestionBlocks.paired(question, misaligned)
    order = torch.randperm(len(both), generator=torch.Generator().manual_seed(settings.seed))
    n_out = min(round(settings.hold_out * len(both)), len(both) - 1)
    aside, used = ([both[i] for i in part] for part in (order[:n_out], order[n_out:]))
    within, outside = (QuestionBlocks.of(question, misaligned, each) for each in (used, aside))
    permuted = permute_labels(within.weights, draws=settings.permutations, seed=settings.seed)
    lengths = pooled.n_tokens.double()[:, None]
    parts = [
        _compare_part(pooled, i, within, outside, permuted, settings)
        for i in range(len(pooled.parts))
    ]
    keys = torch.cat([part.keys for part in parts])
    if not len(keys):
        raise RequestError(
            f"no node is active in {settings.min_answers} of these answers; lower --min-answers"
        )
    columns: dict[str, Any] = {
        name: torch.cat([part.columns[name] for part in parts]) for name in parts[0].columns
    }
    columns["q"] = benjamini_hochberg(columns["p"])
    modules = [
        part_record(part).module
        for part, own in zip(pooled.parts, parts, strict=True)
        for _ in own.keys
    ]
    table = FeatureTable.of(
        keys,
        by="responses",
        score=SCORE,
        unit="activation x norm",
        modules=modules if any(modules) else None,
        **columns,
    )
    values = torch.cat([part.values for part in parts], 1)
    held_out = agreement(columns["contrast"], columns["held_out"]) if aside else None
    return ComparedResponses(
        table=table.sorted_by(SCORE),
        layers=_layers(pooled.parts, parts, columns),
        detector=_detector(
            values, columns, keys, modules, pooled.n_tokens, within, outside, settings
        ),
        held_out=held_out,
        length_difference=float(within.contrast(lengths)),
        length_p=float(permutation_p(lengths[within.rows], permuted, torch.cat(within.weights))),
        n_questions=len(used),
        n_held_out=len(aside),
        exact=permuted.exact,
    )


@dataclass(frozen=True, eq=False)
class QuestionBlocks:
    """Answers of some questions, question by question, with the weights of the contrast."""

    rows: Int64[Tensor, " row"]
    """Answers in the order of `weights`."""
    block: Int64[Tensor, " row"]
    """Number of each row's question, from 0."""
    hit: Bool[Tensor, " row"]
    """Misaligned."""
    weights: list[Float64[Tensor, " _"]]
    """Per question 1 / misaligned or -1 / aligned answers, over the number of questions."""

    @staticmethod
    def paired(question: Tensor, misaligned: Tensor) -> list[int]:
        """Questions that have answers of both sides.

        Raises:
            RequestError: If there are none.
        """
        both = [
            q
            for q in question.unique().tolist()
            if 0 < float(misaligned[question == q].float().mean()) < 1
        ]
        if not both:
            raise RequestError(
                "no question has both misaligned and aligned answers: there is nothing to compare; "
                "sample more answers to each question, or answers of both models"
            )
        return both

    @classmethod
    def of(cls, question: Tensor, misaligned: Tensor, chosen: Sequence[int]) -> QuestionBlocks:
        rows, blocks, weights = [], [], []
        for number, q in enumerate(chosen):
            mine = (question == q).nonzero()[:, 0]
            hit = misaligned[mine].double()
            rows.append(mine)
            blocks.append(torch.full_like(mine, number))
            weights.append((hit / hit.sum() - (1 - hit) / (1 - hit).sum()) / len(chosen))
        empty = torch.zeros(0, dtype=torch.int64)
        order = torch.cat([empty, *rows])
        return cls(order, torch.cat([empty, *blocks]), misaligned[order], weights)

    @property
    def n(self) -> int:
        return len(self.weights)

    def each(self, values: Float64[Tensor, "answer node"]) -> Float64[Tensor, "question node"]:
        """Every question's difference d_q."""
        found = torch.zeros(self.n, values.shape[1], dtype=torch.float64)
        if self.n:
            weighted = torch.cat(self.weights)[:, None] * self.n * values[self.rows]
            found.index_add_(0, self.block, weighted)
        return found

    def contrast(self, values: Float64[Tensor, "answer node"]) -> Float64[Tensor, " node"]:
        """Mean over questions of d_q; 0 without any."""
        return self.each(values).sum(0) / max(self.n, 1)

    def centred(self, values: Float64[Tensor, "answer node"]) -> Float64[Tensor, "row node"]:
        """Values of `rows` less their question's mean."""
        mine = values[self.rows]
        sums = torch.zeros(self.n, mine.shape[1], dtype=torch.float64).index_add_(
            0, self.block, mine
        )
        counts = self.block.bincount(minlength=self.n).clamp(min=1)[:, None]
        return mine - (sums / counts)[self.block]


@dataclass(frozen=True, eq=False)
class _ComparedPart:
    keys: Int64[Tensor, "node 2"]
    """(layer, id)."""
    values: Float64[Tensor, "answer node"]
    columns: dict[str, Float64[Tensor, " node"]]


def _compare_part(
    pooled: PooledAnswers,
    index: int,
    within: QuestionBlocks,
    outside: QuestionBlocks,
    permuted: PermutedLabels,
    settings: ResponseSettings,
) -> _ComparedPart:
    part = pooled.parts[index]
    ids, values = pooled.dense(index, settings.pool, least=settings.min_answers)
    each = within.each(values)
    contrast = each.mean(0)
    low, high = bootstrap_interval(
        each, torch.ones_like(each, dtype=torch.bool), draws=DRAWS, seed=settings.seed
    )
    error = torch.full_like(contrast, math.nan)
    if within.n > 1 and len(ids):
        error = each.std(0) / math.sqrt(within.n)
    lengths = pooled.n_tokens.double()[:, None]
    on, length = within.centred(values), within.centred(lengths)
    square = float(length.square().sum())
    slope = (length * on).sum(0) / square if square else torch.zeros_like(contrast)
    norms = _norms(part, ids)
    misaligned = within.rows[within.hit]
    columns = {
        "contrast": contrast,
        SCORE: contrast * norms,
        "low": low,
        "high": high,
        "t": torch.where(error > 0, contrast / error, math.nan),
        "p": permutation_p(values[within.rows], permuted, torch.cat(within.weights)),
        "q": torch.full_like(contrast, math.nan),
        "misaligned_mean": values[misaligned].mean(0),
        "aligned_mean": values[within.rows[~within.hit]].mean(0),
        "active": (values[within.rows] != 0).double().mean(0),
        "without_length": contrast - slope * within.contrast(lengths),
        "held_out": outside.contrast(values) if outside.n else torch.full_like(contrast, math.nan),
        "sd": on.square().mean(0).sqrt(),
    }
    keys = torch.stack([torch.full_like(ids, part.layer), ids], 1)
    return _ComparedPart(keys, values, columns)


def _norms(part: Part, ids: Int64[Tensor, " node"]) -> Float64[Tensor, " node"]:
    """Length of what each node writes per unit, over all its sites."""
    if not len(ids):
        return torch.zeros(0, dtype=torch.float64)
    squares = [part.written(ids, k).double().square().sum(1).cpu() for k in range(len(part.writes))]
    return torch.stack(squares).sum(0).sqrt()


def _layers(
    parts: Sequence[Part], compared: Sequence[_ComparedPart], columns: dict[str, Tensor]
) -> tuple[LayerOfResponses, ...]:
    found, start = [], 0
    size = columns[SCORE].abs()
    for part, own in zip(parts, compared, strict=True):
        mine = slice(start, start + len(own.keys))
        start = mine.stop
        discovery, contrast = columns["q"][mine] < 0.05, columns["contrast"][mine]
        found.append(
            LayerOfResponses(
                layer=part.layer,
                module=part_record(part).module,
                nodes=len(own.keys),
                raised=int((discovery & (contrast > 0)).sum()),
                lowered=int((discovery & (contrast < 0)).sum()),
                share=float(size[mine].sum() / size.sum()) if float(size.sum()) else 0.0,
            )
        )
    return tuple(found)


def _detector(
    values: Float64[Tensor, "answer node"],
    columns: dict[str, Float64[Tensor, " node"]],
    keys: Int64[Tensor, "node 2"],
    modules: Sequence[str],
    n_tokens: Int64[Tensor, " answer"],
    within: QuestionBlocks,
    outside: QuestionBlocks,
    settings: ResponseSettings,
) -> Detector:
    k = min(settings.detector, len(keys))
    first = columns[SCORE].abs().argsort(descending=True, stable=True)[:k]
    unit = columns["sd"][first].clamp(min=1e-12)
    scores = values[:, first] / unit * columns["contrast"][first].sign()
    longer = float(within.contrast(n_tokens.double()[:, None])) >= 0
    layer, node = keys[first[0]].tolist()
    module = modules[int(first[0])]

    def area(score: Tensor) -> Float64[Tensor, " question"]:
        return auroc_within(score[outside.rows], outside.block, outside.hit)

    def mean(areas: Tensor) -> float | None:
        return float(areas.mean()) if len(areas) else None

    areas = area(scores.sum(1))
    low, high = paired_interval(areas, seed=settings.seed)
    return Detector(
        nodes=k,
        questions=outside.n,
        auroc=mean(areas),
        low=low,
        high=high,
        best_node=f"{module}:{layer}/{node}" if module else f"{layer}/{node}",
        best_auroc=mean(area(scores[:, 0])),
        length_auroc=mean(area(n_tokens.double() * (1 if longer else -1))),
    )
