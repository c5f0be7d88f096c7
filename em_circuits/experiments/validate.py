"""Validation of rankings by real interventions, over stored prompts.

Every feature node of a prompt's graph is ablated for real under each regime, and the scores of
every method are compared with the measured effects on the evil-minus-safe contrast.

    validation = validate(work, prompt_ids, model="merged")
    validation.rows[0].spearman, validation.rows[0].intervals["spearman"]
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float, Int64
from pydantic import Field, InstanceOf
from torch import Tensor

from em_circuits.contrast import Contrast
from em_circuits.experiments.analyse import LabelledCase
from em_circuits.experiments.validate_edges import EdgeValidation
from em_circuits.features import stored_scores
from em_circuits.graphs import AttributionGraph
from em_circuits.influence import Method, Targets, influence
from em_circuits.interventions import (
    ActivationCache,
    Regime,
    agreement_by_method,
    compare_with_ablations,
    live_scores,
)
from em_circuits.interventions.validate import Comparison, ValidationRow
from em_circuits.models import Model
from em_circuits.progress import tracked
from em_circuits.scoring import Scoring
from em_circuits.table import FeatureTable
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen, ModelName


class Validation(Frozen):
    """Agreement of every method with real ablations, over prompts."""

    prompts: tuple[str, ...]
    model: ModelName
    rows: tuple[ValidationRow, ...]
    comparisons: tuple[InstanceOf[Comparison], ...] = Field(exclude=True)
    """What the rows sum up."""
    graphs: tuple[str, ...] = Field(exclude=True)
    """Key of each prompt's graph."""


class ValidationOutput(Validation):
    """The object of `steer validate --json`."""

    files: dict[str, str]
    """`html` and `json`."""


class EdgeValidationOutput(EdgeValidation):
    """The object of `steer validate --edges --json`."""

    files: dict[str, str]
    """`html` and `json`."""


AnyValidation = ValidationOutput | EdgeValidationOutput


def validate(
    work: Workspace,
    prompts: Sequence[str],
    *,
    model: ModelName = "merged",
    regimes: Sequence[Regime] = tuple(Regime),
) -> Validation:
    """Compare every method's scores with real ablations.

    Raises:
        RequestError: If a prompt has no labels, no contrast or no graph.
    """
    comparisons: list[Comparison] = []
    ids, keys = [], []
    for prefix in tracked(prompts, "validate", work.progress):
        labelled = LabelledCase.get(work, prefix)
        graph = work.graph_of(labelled.prompt.prompt_id, model)
        if graph.has_adapter_nodes:
            raise RequestError(
                f"graph {graph.header.short_key} has ranks of the adapter among its nodes; "
                f"build one of features alone: em-circuits graphs build {graph.header.prompt_id}"
            )
        groups, state = labelled.contrast, labelled.cache(work, model)
        scores = method_scores(graph, groups)
        runs = work.pair.model(model)
        scores[str(Scoring.GRADIENT_ABLATION)] = live_contrasts(
            runs, state, groups, graph.selected_features
        )
        comparisons += compare_with_ablations(
            runs, state, scores, features=graph.selected_features, contrast=groups, regimes=regimes
        )
        ids.append(labelled.prompt.prompt_id)
        keys.append(graph.header.key)
    rows = agreement_by_method(comparisons, seed=work.seed)
    return Validation(
        prompts=tuple(ids),
        model=model,
        rows=rows,
        comparisons=tuple(comparisons),
        graphs=tuple(keys),
    )


def method_scores(graph: AttributionGraph, contrast: Contrast) -> dict[str, Tensor]:
    """Evil-minus-safe score of every feature node, by method.

    ``absolute_influence`` has no sign and takes no contrast: it stands here as what unsigned
    influence on the probable tokens predicts.
    """
    methods = [by for by in Scoring if by.from_graph]
    if graph.gradient is not None:
        methods.insert(0, Scoring.GRADIENT)
    scores = {}
    for by in methods:
        table = stored_scores(graph, by).contrasted(contrast).take(graph.selected)
        scores[str(by)] = torch.from_numpy(table["contrast"]).float()
    unsigned = influence(graph, Targets.probabilities(graph), Method.ABSOLUTE)
    scores[str(Method.ABSOLUTE)] = unsigned.values[0, graph.layout.features].float()
    return scores


def live_contrasts(
    model: Model, state: ActivationCache, contrast: Contrast, features: Int64[Tensor, "feature 3"]
) -> Float[Tensor, " feature"]:
    """Contrasts of some features by `gradient+ablation`; 0 for one that does not fire.

    The features of the largest bound are measured, so they agree with a scan by construction.
    """
    table = live_scores(model, state, contrast, Scoring.GRADIENT_ABLATION).contrasted(contrast)
    wanted = FeatureTable.of(features, by="node")
    scores = table.frame.set_index(table.keys)["contrast"]
    found = scores.reindex(pd.MultiIndex.from_frame(wanted.frame), fill_value=0.0)
    return torch.from_numpy(found.to_numpy(copy=True)).float()
