"""Does a ranking predict what interventions do, on stored prompts?

Every feature node of a prompt's graph is ablated for real under each regime, and the scores of
every method are compared with the measured effects on the evil-minus-safe contrast.

    validation = validate(work, prompt_ids, model="merged")
    validation.to_json()
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from em_circuits.contrast import Contrast
from em_circuits.experiments.analyse import labelled, prompt_state, token_groups
from em_circuits.features import graph_scores
from em_circuits.features.rank import GRADIENT, GRAPH_METHODS, REFINED
from em_circuits.graphs import AttributionGraph
from em_circuits.influence import Method, Targets, influence
from em_circuits.interventions import PromptState, Regime, compare, refined_scores, summarise
from em_circuits.interventions.validate import Comparison, ValidationRow
from em_circuits.models import Model
from em_circuits.progress import tracked
from em_circuits.workspace import Workspace
from pivotal_tokens.schema import ModelName


@dataclass(frozen=True)
class Validation:
    """Agreement of every method with real ablations, over prompts."""

    prompts: tuple[str, ...]
    model: str
    rows: tuple[ValidationRow, ...]
    comparisons: tuple[Comparison, ...]
    """What the rows sum up."""
    graphs: tuple[str, ...]
    """Key of each prompt's graph."""

    def to_json(self) -> dict[str, Any]:
        """The object of `steer validate --json`."""
        return {
            "prompts": list(self.prompts),
            "model": self.model,
            "rows": [row.to_json() for row in self.rows],
        }


def validate(
    work: Workspace,
    prompts: Sequence[str],
    *,
    model: ModelName = "merged",
    regimes: Sequence[Regime] = tuple(Regime),
) -> Validation:
    """Compare every method's scores with real ablations.

    Args:
        work: Models, store and graphs.
        prompts: Ids or unique prefixes of labelled prompts with graphs.
        model: Which model is ablated.
        regimes: What is held fixed meanwhile.

    Raises:
        RequestError: If a prompt has no labels, no contrast or no graph.
    """
    comparisons: list[Comparison] = []
    ids, keys = [], []
    for prefix in tracked(prompts, "validate", work.progress):
        prompt, labels = labelled(work, prefix)
        graph = work.graph_of(prompt.prompt_id, model)
        groups, state = token_groups(labels), prompt_state(work, prompt, model)
        scores = method_scores(graph, groups)
        runs = work.pair.model(model)
        scores[REFINED] = refined_contrast(runs, state, groups, graph.selected_features)
        comparisons += compare(
            runs, state, scores, features=graph.selected_features, groups=groups, regimes=regimes
        )
        ids.append(prompt.prompt_id)
        keys.append(graph.header.key)
    rows = summarise(comparisons, seed=work.seed)
    return Validation(tuple(ids), model, rows, tuple(comparisons), tuple(keys))


def method_scores(graph: AttributionGraph, groups: Contrast) -> dict[str, Tensor]:
    """Evil-minus-safe score of every feature node, by method.

    ``absolute_influence`` has no sign and takes no contrast: it stands here as what unsigned
    influence on the probable tokens predicts.
    """
    scores = {}
    if graph.gradient is not None:
        scores[GRADIENT] = _contrast(graph, groups, graph.gradient)[graph.selected]
    for method in GRAPH_METHODS:
        values = graph_scores(graph, method).scores
        scores[str(method)] = _contrast(graph, groups, values)
    unsigned = influence(graph, Targets.probabilities(graph), Method.ABSOLUTE)
    scores[str(Method.ABSOLUTE)] = unsigned.values[0, graph.layout.features].float()
    return scores


def refined_contrast(
    model: Model, state: PromptState, groups: Contrast, features: Int64[Tensor, "feature 3"]
) -> Float[Tensor, " feature"]:
    """Evil-minus-safe `refined` scores of some features; 0 for one that does not fire.

    The features of the largest bound are measured, so they agree with a scan by construction.
    """
    targets = torch.tensor([*groups.evil, *groups.safe])
    scores = refined_scores(model, state, groups=groups, targets=targets).scores
    n_evil = len(groups.evil)
    contrasts = torch.zeros(len(features))
    known, asked = state.keys(state.active).cpu(), state.keys(features)
    contrast = scores[:n_evil].double().mean(0) - scores[n_evil:].double().mean(0)
    at = torch.searchsorted(known, asked).clamp(max=max(len(known) - 1, 0))
    fires = torch.isin(asked, known)
    contrasts[fires] = contrast[at[fires]].float()
    return contrasts


def _contrast(
    graph: AttributionGraph, groups: Contrast, values: Float[Tensor, "logit feature"]
) -> Float[Tensor, " feature"]:
    ids = graph.targets.token_ids
    evil, safe = (torch.isin(ids, torch.tensor(side)) for side in (groups.evil, groups.safe))
    return (values[evil].double().mean(0) - values[safe].double().mean(0)).float()
