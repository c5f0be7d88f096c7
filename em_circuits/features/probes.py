"""Linear probes of activations: how well each place tells misaligned from aligned answers.

Ridge regression of the label (+1 misaligned, -1 aligned) on standardised activations, in the dual,

    w = X' (X X' / d + penalty I)^-1 y / d

fitted on some questions and tried on others (blocks of a cross-validation are whole questions, so
that no probe can know a question). The control is the same probe of labels that were shuffled
within each question: where it is far from one half, the split leaks. A probe that reads the style
of answers loses what it finds when the answers it is tried on are put in another.

    scores = probe(values, question, misaligned, folds=4, seed=0, restyled=other)
    scores.auroc, scores.control, scores.style
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from em_circuits.statistics import auroc

PENALTY = 1.0
"""Ridge penalty in units of the mean squared standardised activation."""


class LinearProbe(NamedTuple):
    """A fitted probe: ``(x - mean) / sd . weights`` is larger for misaligned answers."""

    weights: Float64[Tensor, " d"]
    mean: Float64[Tensor, " d"]
    sd: Float64[Tensor, " d"]

    @classmethod
    def fit(
        cls, values: Float[Tensor, "answer d"], misaligned: Bool[Tensor, " answer"]
    ) -> LinearProbe:
        """Fit on answers of both sides."""
        x = values.double()
        mean, sd = x.mean(0), x.std(0, correction=0)
        # What does not vary (but for rounding) tells nothing and is not blown up.
        sd = torch.where(sd > 1e-6 * sd.max().clamp(min=1e-12), sd, torch.inf)
        x, d = (x - mean) / sd, max(int(sd.isfinite().sum()), 1)
        y = 2.0 * misaligned.double() - 1
        kernel = x @ x.T / d
        solved = torch.linalg.solve(
            kernel + PENALTY * torch.eye(len(x), dtype=torch.float64), y - y.mean()
        )
        return cls(x.T @ solved / d, mean, sd)

    @classmethod
    def between_means(
        cls, values: Float[Tensor, "answer d"], misaligned: Bool[Tensor, " answer"]
    ) -> LinearProbe:
        """The difference of the sides' means, without a fit."""
        x = values.double()
        difference = x[misaligned].mean(0) - x[~misaligned].mean(0)
        return cls(difference, x.mean(0), torch.ones_like(difference))

    def scores(self, values: Float[Tensor, "answer d"]) -> Float64[Tensor, " answer"]:
        """Of answers, without a threshold."""
        return ((values.double() - self.mean) / self.sd) @ self.weights

    @property
    def direction(self) -> Float64[Tensor, " d"]:
        """The same in the space of activations, of length 1; 0 where nothing was learnt."""
        raw = self.weights / self.sd
        return raw / raw.norm().clamp(min=1e-12)


class ProbeScores(NamedTuple):
    """Areas under the ROC curve on questions that the probe was not fitted on."""

    auroc: float
    low: float
    """Least and largest over the folds."""
    high: float
    control: float
    """Of shuffled labels."""
    style: float
    """On the restyled answers to these questions; the probe knows the plain ones alone."""


Fit = Callable[[Tensor, Tensor], LinearProbe]
"""Of values and sides."""


def question_folds(
    question: Int64[Tensor, " answer"], folds: int, seed: int
) -> Int64[Tensor, " answer"]:
    """The fold of each answer; all answers to a question are in one."""
    names, index = question.unique(return_inverse=True)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))
    return (order.argsort() % folds)[index]


def probe(
    values: Float[Tensor, "answer d"],
    question: Int64[Tensor, " answer"],
    misaligned: Bool[Tensor, " answer"],
    *,
    folds: int,
    seed: int,
    restyled: Float[Tensor, "answer d"],
    fit: Fit = LinearProbe.fit,
) -> ProbeScores:
    """Cross-validate a probe over blocks of questions, its control, and its test of style.

    Args:
        values: Activations at one place.
        question: Number of the question of each answer.
        misaligned: Its side.
        folds: Blocks; at most as many as questions.
        seed: Of blocks and shuffles.
        restyled: Activations there, of the same answers in another style.
        fit: What a probe is.
    """
    fold = question_folds(question, folds, seed)
    shuffled = shuffle_within(misaligned, question, seed)
    areas = torch.zeros(3, folds, dtype=torch.float64)
    for number in range(folds):
        out = fold == number
        known = fit(values[~out], misaligned[~out])
        blind = fit(values[~out], shuffled[~out])
        for row, (fitted, x, labels) in enumerate(
            ((known, values, misaligned), (blind, values, shuffled), (known, restyled, misaligned))
        ):
            scores, hit = fitted.scores(x[out]), labels[out]
            areas[row, number] = auroc(scores[hit], scores[~hit])
    mean = areas.mean(1).tolist()
    return ProbeScores(mean[0], float(areas[0].min()), float(areas[0].max()), *mean[1:])


def shuffle_within(
    labels: Bool[Tensor, " answer"], question: Int64[Tensor, " answer"], seed: int
) -> Bool[Tensor, " answer"]:
    """Labels permuted among the answers to each question."""
    generator = torch.Generator().manual_seed(seed)
    found = labels.clone()
    for q in question.unique().tolist():
        mine = (question == q).nonzero()[:, 0]
        found[mine] = labels[mine[torch.randperm(len(mine), generator=generator)]]
    return found
