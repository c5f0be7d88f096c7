"""Features that push a prompt towards its evil tokens and away from its safe ones.

    contrast[s] = mean over evil targets of score[t, s] - mean over safe targets of score[t, s]

Positive = the feature's presence raises evil over safe. Scores come from a stored graph
(`stored_scores`) or from running the model (`interventions.live_scores`), and every table names its
method (`em_circuits.scoring`).

    stored_scores(graph, "gradient").ranked(words).top(10)
    choose_features("top:10", model, state, words)         # the set that does most together
"""

from __future__ import annotations

import numpy as np
import torch

from em_circuits.contrast import Contrast
from em_circuits.feature import Feature, FeatureChoice, FeatureId
from em_circuits.graphs.graph import AttributionGraph
from em_circuits.influence import Method, Targets, influence
from em_circuits.interventions import CHOSEN, N_MEASURED, ActivationCache, live_scores
from em_circuits.models.pair import Model, PromptLike
from em_circuits.scoring import TO_RANK, TO_STEER, Scoring
from em_circuits.table import FeatureTable
from em_circuits.target import Target
from pivotal_tokens.errors import RequestError


def stored_scores(graph: AttributionGraph, by: Scoring | str) -> FeatureTable:
    """Scores of a stored graph's features on each of its targets.

    Args:
        graph: With its gradient scores for `gradient`, with its edges for the others.
        by: A method that a stored graph can answer.

    Returns:
        One row an active feature, in logits (normalised shares for `signed_influence`); NaN for
        those that are no nodes of the graph. Ranks of an adapter are no features and left out.

    Raises:
        RequestError: If the model would have to be run, or the graph does not hold what it takes.
    """
    by = Scoring(by)
    if by is Scoring.GRADIENT:
        if graph.gradient is None:
            raise RequestError(
                f"graph {graph.header.key[:12]} has no gradient scores (an imported graph?); "
                "use --method total_effect"
            )
        scores = graph.gradient
    elif by.from_graph:
        values = influence(graph, Targets.each(graph), Method(by)).values
        scores = torch.full((len(graph.targets), len(graph.active)), torch.nan)
        scores[:, graph.selected] = values[:, graph.layout.features].float()
    else:
        raise RequestError(f"--method {by} runs the model; no stored graph can answer it")
    features, rows = graph.features
    return FeatureTable.of(
        features,
        by=str(by),
        targets=graph.targets.token_ids,
        per_target=scores[:, rows],
        about={"n_pos": len(graph.input_ids)},
        activation=graph.activations[rows],
        measured=torch.zeros(len(features), dtype=torch.bool),
    )


def rank(
    model: Model,
    prompt: PromptLike,
    contrast: Contrast | Target,
    *,
    by: Scoring | str = TO_RANK,
    n_measured: int = N_MEASURED,
) -> FeatureTable:
    """Every active feature of a prompt by evil minus safe, most positive first.

    Under a target, features at the prompt's positions are ranked by their effect on it.

    Args:
        model: The model that is run.
        prompt: A text as the model is to see it, a prompt, or token ids.
        contrast: Evil and safe tokens, or any target.
        by: A method that runs the model (`Scoring`); graphs answer the others (`stored_scores`).
        n_measured: Features that `gradient+ablation` ablates for real.

    Raises:
        RequestError: If there is no contrast, the method reads a graph, or a continuation is too
            long for the model.
    """
    by = Scoring(by)
    if by.from_graph:
        raise RequestError(f"method {by} reads a graph: influence(attribute(...), contrast)")
    ids = model.input_ids(prompt)
    if isinstance(contrast, Target):
        contrast.check_length(len(ids), model.max_tokens)
    state = ActivationCache.capture(model, ids)
    return live_scores(model, state, contrast, by, n_measured=n_measured).ranked(contrast)


def choose_features(
    choice: FeatureChoice | str,
    model: Model,
    state: ActivationCache,
    contrast: Contrast | Target,
    *,
    by: Scoring | str = TO_STEER,
    graph: AttributionGraph | None = None,
    n_measured: int = N_MEASURED,
) -> FeatureTable:
    """The features that ``top:10``, ``bottom:5``, ``abs:20`` or names mean on a prompt.

    The only meaning of these words: the first N, the N most negative or the N largest of all active
    features, ranked by the method that the table names.

    Args:
        choice: What is wanted. ``L/ID`` names a feature at every position at which it fires.
        model: The model that is to be changed.
        state: The prompt, captured on it.
        contrast: Evil and safe tokens, or any target; not needed for names.
        by: The method.
        graph: Of the prompt on this model, for methods that read one.
        n_measured: Features that `gradient+ablation` ablates for real.

    Returns:
        The features in order, with their scores; by ``name`` those that are named.

    Raises:
        RequestError: If there is no contrast to rank by, no graph where one is read, or a named
            feature has no position.
    """
    choice = FeatureChoice.parse(choice) if isinstance(choice, str) else choice
    if not choice.needs_ranking:
        return _named(choice, state)
    by = Scoring(by)
    if by.from_graph:
        if isinstance(contrast, Target):
            raise RequestError(f"method {by} reads a graph of next tokens, not of {contrast.name}")
        if graph is None:
            raise RequestError(f"method {by} reads a graph; build one (em-circuits graphs build)")
        scores = stored_scores(graph, by)
    else:
        # The first N of a greedy ranking are the same however many are chosen after them.
        n_chosen = min(choice.count, CHOSEN) if choice.by == "top" else CHOSEN
        scores = live_scores(model, state, contrast, by, n_measured=n_measured, n_chosen=n_chosen)
    return scores.ranked(contrast).choose(choice)


def _named(choice: FeatureChoice, state: ActivationCache) -> FeatureTable:
    active = state.active.cpu()
    found: dict[Feature, None] = {}
    for feature in choice.named:
        if isinstance(feature, FeatureId):
            here = active[(active[:, 0] == feature.layer) & (active[:, 2] == feature.feature)]
            if not len(here):
                raise RequestError(
                    f"feature {feature} fires nowhere on this prompt; write LAYER/POSITION/ID"
                )
            found |= dict.fromkeys(Feature(*row) for row in here.tolist())
        else:
            found[feature.at(state.n_pos)] = None
    features = torch.tensor(list(found))
    activation = state.activation_of(features).float().cpu()
    return FeatureTable.of(
        features,
        by="name",
        score="activation",
        unit="activation",
        about={"n_pos": state.n_pos},
        activation=np.asarray(activation),
    )
