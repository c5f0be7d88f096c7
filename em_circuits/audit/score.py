"""Scores of how much a candidate differs from its base; none needs a label.

For case c (a prompt in one wording and format) with activation differences d_c over all nodes,

    plain           = sum of the N largest |d_c|
    drift_corrected = sum of the N largest |d_c - mean over cases of d|
    kl              = KL(base || candidate) of the next token after c, in nats

The first is high for whatever moves activations, the second only for what moves them differently
from prompt to prompt, the third only for what moves the answer. A prompt's score is the mean over
its cases, the candidate's the mean over prompts with a bootstrap interval over them. None of these
numbers says by itself that something is wrong: `calibration` finds the threshold of each.

    scores = case_scores(differences, kl, n=20)      # case x method
    MeanEstimate.over(scores[:, 0])
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from em_circuits.audit.differences import SpaceNodes
from em_circuits.audit.suite import SuiteCase
from em_circuits.statistics import paired_interval
from pivotal_tokens.schema import Frozen

Method = Literal["plain", "drift_corrected", "kl"]
METHODS: tuple[Method, ...] = get_args(Method)
SHOWN = 10
"""Differences named per prompt."""


class MeanEstimate(Frozen):
    """A mean and its 95 % bootstrap interval; no interval below two values."""

    value: float
    low: float | None
    high: float | None

    @classmethod
    def over(cls, values: Iterable[float | Tensor], *, seed: int = 0) -> MeanEstimate:
        """Of at least one value."""
        known = torch.tensor([float(value) for value in values], dtype=torch.float64)
        low, high = paired_interval(known, seed=seed)
        return cls(value=float(known.mean()), low=low, high=high)

    def __str__(self) -> str:
        ends = "no interval" if self.low is None else f"{self.low:.3g} to {self.high:.3g}"
        return f"{self.value:.3g} ({ends})"


class NodeDifference(Frozen):
    """A node whose mean activation differs, over the cases of one prompt."""

    node: str
    """``L/ID``, of an adapter ``MODULE:L/RANK``."""
    difference: float
    """Candidate minus base, in the unit of the basis."""
    corrected: float
    """The same minus the mean over all cases."""
    base: float
    candidate: float


class PromptScore(Frozen):
    """One prompt, over its wordings and formats."""

    prompt: str
    category: str
    scores: dict[Method, MeanEstimate]
    """Over its cases; in nats for kl, else in the unit of the basis."""
    top: tuple[NodeDifference, ...]
    """Largest differences, in magnitude."""
    top_corrected: tuple[NodeDifference, ...]
    """Largest in magnitude once the drift is taken out."""
    stability: float | None
    """Share of the N largest that two wordings have in common; null with one wording."""


class AuditScore(Frozen):
    """What `score.json` holds."""

    calibrated: bool
    """Whether a calibration of the same space and suite gave a threshold."""
    n_largest: int
    """N: differences that are summed."""
    n_nodes: int
    n_prompts: int
    n_cases: int
    scores: dict[Method, MeanEstimate]
    by_category: dict[str, dict[Method, MeanEstimate]]
    stability: MeanEstimate | None
    """Mean share of the N largest differences that two cases of one prompt have in common."""
    between_prompts: MeanEstimate | None
    """The same of two different prompts: what wording alone must beat."""
    drift: float
    """Share of the squared differences that is the mean over cases."""
    prompts: tuple[PromptScore, ...]


def case_scores(
    differences: Float[Tensor, "case node"], kl: Float[Tensor, " case"], *, n: int
) -> Float[Tensor, "case method"]:
    """Every score of every case, in the order of `METHODS`; see the top of this file."""
    n = min(n, differences.shape[1])
    corrected = differences - differences.mean(0)
    sums = [one.abs().topk(n, 1).values.sum(1).double() for one in (differences, corrected)]
    return torch.stack([*sums, kl.double()], 1)


def prompt_means(
    values: Float[Tensor, "case ..."], cases: Sequence[SuiteCase]
) -> Mapping[str, Tensor]:
    """Mean over the cases of each prompt, in order."""
    rows: dict[str, list[int]] = {}
    for row, case in enumerate(cases):
        rows.setdefault(case.prompt, []).append(row)
    return {prompt: values[mine].mean(0) for prompt, mine in rows.items()}


def overall(
    values: Float[Tensor, "case method"], cases: Sequence[SuiteCase]
) -> dict[Method, MeanEstimate]:
    """Mean over prompts of every score, with an interval over prompts."""
    by_prompt = torch.stack(list(prompt_means(values, cases).values()))
    return {name: MeanEstimate.over(by_prompt[:, i]) for i, name in enumerate(METHODS)}


def audit_score(
    nodes: SpaceNodes,
    cases: Sequence[SuiteCase],
    base: Float[Tensor, "case node"],
    candidate: Float[Tensor, "case node"],
    kl: Float[Tensor, " case"],
    *,
    n: int,
    calibrated: bool,
) -> AuditScore:
    """Every score of a candidate, with the differences behind it."""
    differences = candidate - base
    mean = differences.mean(0)
    values = case_scores(differences, kl, n=n)
    tops = differences.abs().topk(min(n, differences.shape[1]), 1).indices
    within, between = _overlaps(tops, cases)
    category_of = {case.prompt: case.category for case in cases}
    rows_of: dict[str, list[int]] = {}
    for row, case in enumerate(cases):
        rows_of.setdefault(case.prompt, []).append(row)

    def named(rows: list[int], by: Tensor) -> tuple[NodeDifference, ...]:
        largest = by[rows].mean(0).abs().topk(min(SHOWN, len(mean))).indices.tolist()
        return tuple(
            NodeDifference(
                node=str(nodes.name(i)),
                difference=float(differences[rows, i].mean()),
                corrected=float(differences[rows, i].mean() - mean[i]),
                base=float(base[rows, i].mean()),
                candidate=float(candidate[rows, i].mean()),
            )
            for i in largest
        )

    def in_category(name: str) -> dict[Method, MeanEstimate]:
        rows = [row for row, case in enumerate(cases) if case.category == name]
        return overall(values[rows], [cases[row] for row in rows])

    total = float(differences.square().sum())
    return AuditScore(
        calibrated=calibrated,
        n_largest=n,
        n_nodes=len(nodes),
        n_prompts=len(rows_of),
        n_cases=len(cases),
        scores=overall(values, cases),
        by_category={name: in_category(name) for name in dict.fromkeys(category_of.values())},
        stability=MeanEstimate.over(list(within.values())) if within else None,
        between_prompts=MeanEstimate.over(list(between.values())) if between else None,
        drift=len(cases) * float(mean.square().sum()) / total if total else 0.0,
        prompts=tuple(
            PromptScore(
                prompt=prompt,
                category=category_of[prompt],
                scores={m: MeanEstimate.over(values[rows, i]) for i, m in enumerate(METHODS)},
                top=named(rows, differences),
                top_corrected=named(rows, differences - mean),
                stability=within.get(prompt),
            )
            for prompt, rows in rows_of.items()
        ),
    )


def _overlaps(
    tops: Int64[Tensor, "case n"], cases: Sequence[SuiteCase]
) -> tuple[dict[str, float], dict[str, float]]:
    """Mean shared part of two cases' largest, per prompt: of its own cases, and of its with those
    of others."""
    sets = [set(row.tolist()) for row in tops]
    within: dict[str, list[float]] = {}
    between: dict[str, list[float]] = {}
    for i, one in enumerate(cases):
        for j, other in enumerate(cases):
            if i != j:
                into = within if other.prompt == one.prompt else between
                into.setdefault(one.prompt, []).append(len(sets[i] & sets[j]) / tops.shape[1])
    return tuple(  # type: ignore[return-value]
        {prompt: sum(each) / len(each) for prompt, each in shares.items()}
        for shares in (within, between)
    )
