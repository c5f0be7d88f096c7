"""Benchmark of the default ranking: agreement with real ablations on held-out prompts.

python scripts/bench_ranking.py --out results/bench_ranking.json
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from measure import Row, benchmark, lexicon, organism
from pydantic import Field

from em_circuits.cli.options import Options
from em_circuits.experiments.analyse import LabelledCase
from em_circuits.interventions import N_MEASURED
from em_circuits.labelling.result import LabelSettings
from em_circuits.labelling.run import label_prompts
from em_circuits.labelling.sources import template_prompts
from em_circuits.scoring import TO_RANK, Scoring
from em_circuits.statistics import Agreement, agreement
from em_circuits.table import FeatureTable
from em_circuits.workspace import Workspace
from pivotal_tokens.schema import ModelName

PEARSON, SPEARMAN = 0.97, 0.95
"""Targets of the default ranking against the free-running scan."""


class Plan(Options):
    """What is measured."""

    prompts: int = Field(default=8, ge=1)
    """Held-out prompts of the embedded organism."""
    measure: int = N_MEASURED
    """Features that the default ranking ablates for real."""
    seed: int = 0


def measure(plan: Plan) -> list[Row]:
    """Mean agreement with the scan, of the default ranking and of the gradient alone."""
    with tempfile.TemporaryDirectory() as root, organism(Path(root)) as work:
        prompts = template_prompts(plan.prompts, seed=plan.seed)
        settings = LabelSettings(graphs_for="none")
        judge = lexicon(work)
        ids = [result.prompt_id for result in label_prompts(work, prompts, judge, settings)]
        return [row for model in ("base", "merged") for row in rows_of(work, ids, model, plan)]


def rows_of(work: Workspace, prompt_ids: list[str], model: ModelName, plan: Plan) -> Iterator[Row]:
    """Rows of one model."""
    found: dict[str, list[Agreement]] = {"default ranking (gradient+ablation)": [], "gradient": []}
    for prompt_id in prompt_ids:
        prompt = LabelledCase.get(work, prompt_id)
        if not prompt.contrast.is_defined:
            continue
        scan = contrasts(prompt.scores(work, Scoring.MEASURED, model), prompt)
        for name, n in zip(found, (plan.measure, 0), strict=True):
            scores = prompt.scores(work, TO_RANK, model, n)
            found[name].append(agreement(contrasts(scores, prompt), scan))
    for name, each in found.items():
        for statistic, least in (("pearson", PEARSON), ("spearman", SPEARMAN)):
            values = [getattr(one, statistic) for one in each]
            work_name = f"{name} against the scan, {model}, {len(each)} prompts: {statistic}"
            target = least if name.startswith("default") else None
            yield Row(work_name, None, statistics.mean(values), "", value_at_least=target)
            yield Row(f"{work_name}, least prompt", None, min(values), "")


def contrasts(scores: FeatureTable, prompt: LabelledCase) -> torch.Tensor:
    """Evil-minus-safe contrast of every feature, in an order that all methods share."""
    return torch.from_numpy(scores.contrasted(prompt.contrast)["contrast"])


if __name__ == "__main__":
    benchmark(Plan, measure, __doc__)
