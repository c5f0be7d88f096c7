"""From a labelled prompt to its features: ranking, steering, mediation.

ranked = rank_prompt(work, "44a71bc74c37", model="merged", method="refined")
ranked.ranking.top(10), ranked.labels_from
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from em_circuits.contrast import Contrast
from em_circuits.features import FeatureScores, Ranking, graph_scores, parse_features, rank
from em_circuits.features.rank import FORWARD, JOINT, LIVE_METHODS, MEASURED, REFINED
from em_circuits.intervention import EVERYTHING, Position
from em_circuits.interventions import (
    N_MEASURED,
    Mediation,
    Mode,
    PromptState,
    Regime,
    SteerResult,
    Unit,
    Where,
    ablation_effects,
    forward_scores,
    joint_scores,
    mediate,
    on_each,
    refined_scores,
    steer,
)
from em_circuits.interventions.mediation_result import Direction, Order
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import ModelName, Prompt, PromptLabels


@dataclass(frozen=True)
class RankedPrompt:
    """A prompt's features, ranked, and whose labels the contrast stands on."""

    prompt: Prompt
    model: str
    labels: PromptLabels
    ranking: Ranking

    @property
    def labels_from(self) -> str:
        """``human``, ``judge`` or ``mixed``."""
        return self.labels.source

    def to_json(self, top: int | None = None) -> dict[str, Any]:
        """The object of `features rank --json`."""
        return {
            "prompt_id": self.prompt.prompt_id,
            "model": self.model,
            "method": self.ranking.method,
            "labels_from": self.labels_from,
            "labelled_by": sorted({item.author for item in self.labels.labels}),
            "unmatched": list(self.ranking.unmatched),
            "n_measured": sum(feature.measured for feature in self.ranking.features),
            "features": [feature.to_json() for feature in self.ranking.features[:top]],
        }


def labelled(work: Workspace, prefix: str) -> tuple[Prompt, PromptLabels]:
    """A prompt and the labels that count for it.

    Raises:
        RequestError: If there is no such prompt, or nobody has labelled it.
    """
    prompt = work.store.prompts.get(prefix)
    labels = work.store.labels.of(prompt.prompt_id)
    if not labels.labels:
        raise RequestError(
            f"prompt {prompt.prompt_id} has no labels; run em-circuits label, or review it"
        )
    return prompt, labels


def rank_prompt(
    work: Workspace,
    prefix: str,
    *,
    model: ModelName = "merged",
    method: str = REFINED,
    n_measured: int = N_MEASURED,
) -> RankedPrompt:
    """Rank a labelled prompt's features by evil-minus-safe contrast.

    Args:
        work: Models, store and graphs.
        prefix: Prompt id or unique prefix.
        model: Whose features.
        method: See `em_circuits.features.METHODS`. ``refined`` and ``measured`` run the model and
            need no graph.
        n_measured: Features that ``refined`` ablates for real.

    Raises:
        RequestError: No such prompt, no labels, no contrast, no graph, or no such method.
    """
    prompt, labels = labelled(work, prefix)
    if method in LIVE_METHODS:
        scores = live_scores(work, prompt, labels, method, model=model, n_measured=n_measured)
    else:
        scores = graph_scores(work.graph_of(prompt.prompt_id, model), method)
    return RankedPrompt(prompt, model, labels, rank(scores, labels.by_token))


def live_scores(
    work: Workspace,
    prompt: Prompt,
    labels: PromptLabels,
    method: str,
    *,
    model: ModelName,
    n_measured: int = N_MEASURED,
) -> FeatureScores:
    """Score of every active feature on every labelled token, for which the model is run.

    Args:
        work: Models.
        prompt: Shown to a model before.
        labels: Its labels.
        method: ``measured`` ablates every feature, free-running; ``refined`` only those that could
            matter most, and scores the others by gradient; ``joint`` ablates together all that
            push the same way; ``forward`` chooses a set, each step measured.
        model: Which model is run.
        n_measured: Features that ``refined`` ablates.

    Raises:
        RequestError: If the prompt was never shown to a model, or ``refined``, ``joint``
            or ``forward`` has no contrast.
    """
    state, runs = prompt_state(work, prompt, model), work.pair.model(model)
    targets = torch.tensor(sorted(labels.by_token))
    measured: torch.Tensor | None = None
    first: torch.Tensor | None = None
    if method == FORWARD:
        chosen = forward_scores(runs, state, token_groups(labels), targets)
        scores, first = chosen.scores, chosen.chosen
        measured = torch.zeros(len(state.active), dtype=torch.bool)
        measured[first] = True
    elif method == JOINT:
        scores = joint_scores(runs, state, token_groups(labels), targets)
    elif method == MEASURED:
        scores = ablation_effects(runs, state, targets=targets, regime=Regime.FREE).T
        measured = torch.ones(len(state.active), dtype=torch.bool)
    else:
        groups = token_groups(labels)
        found = refined_scores(runs, state, groups=groups, targets=targets, n_measured=n_measured)
        scores, measured = found.scores, found.measured
    activations = state.activations.float().cpu()
    return FeatureScores(method, state.active.cpu(), activations, targets, scores, measured, first)


def prompt_state(work: Workspace, prompt: Prompt, model: ModelName) -> PromptState:
    """One undisturbed forward pass of a stored prompt."""
    return PromptState.capture(work.pair.model(model), input_ids(work, prompt))


def input_ids(work: Workspace, prompt: Prompt) -> torch.Tensor:
    """The prompt's stored token ids.

    Raises:
        RequestError: If it was never shown to a model.
    """
    if prompt.token_ids is None:
        raise RequestError(
            f"prompt {prompt.prompt_id} was never shown to a model; run em-circuits label first"
        )
    return work.pair.input_ids(prompt)


def token_groups(labels: PromptLabels) -> Contrast:
    """The evil and the safe tokens of a prompt."""
    return Contrast.from_labels(labels.by_token)


def mediate_prompt(
    work: Workspace,
    prefix: str,
    *,
    order: Order = "integrated",
    direction: Direction = "sufficiency",
    n_random: int = 20,
) -> tuple[str, Mediation]:
    """Mediation of a labelled prompt; see `em_circuits.interventions.mediate`.

    Returns:
        The whole prompt id, and the result.
    """
    prompt, labels = labelled(work, prefix)
    work.require_healthy(prompt)
    result = mediate(
        work.pair,
        input_ids(work, prompt),
        token_groups(labels),
        order=order,
        direction=direction,
        n_random=n_random,
        seed=work.seed,
    )
    return prompt.prompt_id, result


def steer_prompt(
    work: Workspace,
    prefix: str,
    *,
    model: ModelName = "merged",
    features: str = "top:10",
    mode: str = "ablate",
    value: float | None = None,
    unit: str = "absolute",
    at: str = "found",
    method: str = FORWARD,
    regime: str = "free",
    n_random: int = 20,
) -> tuple[str, SteerResult]:
    """Steer a labelled prompt; see `em_circuits.interventions.steer`.

    Args:
        work: Models, store and graphs.
        prefix: Prompt id or unique prefix.
        model: Which model is steered.
        features: ``top:N``, ``bottom:N``, ``abs:N`` by `method`, or ``L/POS/ID,...``.
        mode: ``set``, ``add``, ``scale``, ``ablate`` or ``clamp``.
        value: For all modes but ``ablate``.
        unit: Of the value: ``absolute``, or ``own`` activations of the feature.
        at: ``found``, ``last``, ``prompt``, ``generated`` or ``everything``.
        method: Ranks the features where they are not named.
        regime: What is held fixed meanwhile.
        n_random: Matched random draws.

    Returns:
        The whole prompt id, and the result.
    """
    choice = parse_features(features)
    prompt, labels = labelled(work, prefix)
    work.require_healthy(prompt)
    ranked = None
    if choice.needs_ranking:
        ranked = rank_prompt(work, prompt.prompt_id, model=model, method=method)
    places = choice.resolve(ranked.ranking if ranked else None)
    result = steer(
        work.pair.model(model),
        input_ids(work, prompt),
        on_each(_at(places, at), Mode(mode), value, Unit(unit)),
        token_groups(labels),
        regime=Regime(regime),
        n_random=n_random,
        seed=work.seed,
    )
    return prompt.prompt_id, result


def _at(places: Sequence[tuple[int, int, int]], at: str) -> tuple[tuple[int, Position, int], ...]:
    """Features at the positions they were found at, or each once at a class of positions."""
    if at == "found":
        return tuple(places)
    where = None if at == EVERYTHING else Where(at)
    return tuple(dict.fromkeys((layer, where, feature) for layer, _, feature in places))
