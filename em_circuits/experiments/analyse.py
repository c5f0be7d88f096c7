"""Analysis of one labelled prompt: ranking, choice, steering and mediation of its features.

table = rank_prompt(work, "44a71bc74c37", model="merged", by="gradient+ablation")
table.top(10), table.about["labels_from"]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel

from em_circuits.contrast import Contrast
from em_circuits.feature import Feature, FeatureChoice, FeatureId
from em_circuits.features import choose_features, stored_scores
from em_circuits.features.rank import rank
from em_circuits.intervention import Interventions
from em_circuits.interventions import (
    N_MEASURED,
    ActivationCache,
    Mediation,
    Mode,
    Regime,
    SteerResult,
    Unit,
    Where,
    live_scores,
    mediate,
    steer,
)
from em_circuits.interventions.mediation import Order
from em_circuits.interventions.patching import Direction
from em_circuits.scoring import TO_RANK, TO_STEER, Scoring
from em_circuits.table import FeatureTable
from em_circuits.target import Target
from em_circuits.target_request import NO_TARGET, TargetRequest
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import ModelName, Prompt, PromptLabels


class RankedFeature(BaseModel):
    """One feature of one prompt with its contrast."""

    layer: int
    position: int
    feature: int
    contrast: float
    """Effect on evil minus safe, in logits; on a target, in its unit."""
    evil_mean: float
    """On the evil side alone."""
    safe_mean: float | None
    """On the safe side alone; None for a target that has none."""
    activation: float
    welch_t: float | None
    """Descriptive, as are the next two; None where there is no spread to measure by."""
    welch_df: float | None
    hedges_g: float | None
    measured: bool
    """Its scores are effects of really ablating it."""


class PromptRanking(BaseModel):
    """The object of `features rank --json`."""

    prompt_id: str
    model: ModelName
    method: str
    labels_from: str
    """``human``, ``judge`` or ``mixed``; ``none`` for a target that needs no labels."""
    labelled_by: tuple[str, ...]
    unmatched: tuple[int, ...]
    """Labelled token ids that are no targets."""
    target: str | None = None
    """What `contrast` is an effect on, where it is not the labelled next tokens."""
    unit: str = "logits"
    """Of `contrast`: ``logits``, ``nats``, or ``activation`` along a direction."""
    n_measured: int
    """Of all features, listed or not."""
    features: tuple[RankedFeature, ...]

    @classmethod
    def of(cls, table: FeatureTable, top: int | None = None) -> PromptRanking:
        """A ranking's first rows; all of them without a number."""
        return cls(**_ranking(table, top))


def _ranking(table: FeatureTable, top: int | None) -> dict[str, Any]:
    about = {name: table.about[name] for name in PromptRanking.model_fields if name in table.about}
    n = len(table) if top is None else top
    return {
        **about,
        "method": table.by,
        "unit": table.unit,
        "n_measured": int(table["measured"].sum()),
        "features": table.top(n).records(),
    }


@dataclass(frozen=True)
class LabelledCase:
    """A stored prompt with the labels that count for it."""

    prompt: Prompt
    labels: PromptLabels

    @classmethod
    def get(cls, work: Workspace, prefix: str) -> LabelledCase:
        """The prompt whose id begins with `prefix`.

        Raises:
            RequestError: If there is no such prompt, or nobody has labelled it.
        """
        prompt = work.store.prompts.get(prefix)
        labels = work.store.labels.of(prompt.prompt_id)
        if not labels.labels:
            raise RequestError(
                f"prompt {prompt.prompt_id} has no labels; run em-circuits label, or review it"
            )
        return cls(prompt, labels)

    @property
    def contrast(self) -> Contrast:
        return Contrast.from_labels(self.labels.by_token)

    @property
    def shown(self) -> Prompt:
        """The prompt, whose token ids are stored.

        Raises:
            RequestError: If it was never shown to a model.
        """
        if self.prompt.token_ids is None:
            raise RequestError(
                f"prompt {self.prompt.prompt_id} was never shown to a model; "
                "run em-circuits label first"
            )
        return self.prompt

    def cache(self, work: Workspace, model: ModelName) -> ActivationCache:
        """One undisturbed forward pass."""
        return ActivationCache.capture(work.pair.model(model), work.pair.input_ids(self.shown))

    def scores(
        self, work: Workspace, by: Scoring, model: ModelName, n_measured: int = N_MEASURED
    ) -> FeatureTable:
        """Scores of its features on each labelled token, from its graph or by running a model.

        Raises:
            RequestError: If it has no graph, was never shown to a model, or has no contrast.
        """
        if by.is_stored:
            return stored_scores(work.graph_of(self.prompt.prompt_id, model), by)
        return live_scores(
            work.pair.model(model),
            self.cache(work, model),
            self.contrast,
            by,
            targets=torch.tensor(sorted(self.labels.by_token)),
            n_measured=n_measured,
        )

    def ranked(self, scores: FeatureTable, model: ModelName) -> FeatureTable:
        """Its scores by contrast, with what an output says of them."""
        about = {
            "prompt_id": self.prompt.prompt_id,
            "model": model,
            "labels_from": self.labels.source,
            "labelled_by": sorted({item.author for item in self.labels.labels}),
            "unmatched": self.unmatched(scores),
        }
        table = scores.ranked(self.contrast)
        return replace(table, about={**table.about, **about})

    def unmatched(self, scores: FeatureTable) -> list[int]:
        """Labelled token ids that are no targets."""
        assert scores.targets is not None
        return sorted(set(self.labels.by_token) - set(scores.targets.tolist()))


def rank_prompt(
    work: Workspace,
    prefix: str,
    *,
    model: ModelName = "merged",
    by: Scoring | str = TO_RANK,
    n_measured: int = N_MEASURED,
    target: TargetRequest = NO_TARGET,
) -> FeatureTable:
    """Rank a labelled prompt's features by evil-minus-safe contrast, or any prompt's by a target.

    Returns:
        A table that knows prompt, model and whose labels the contrast stands on.

    Raises:
        RequestError: No such prompt, no labels, no contrast, no graph, or no such method.
    """
    if target.is_given:
        return _rank_by_target(work, prefix, target, Scoring(by), model, n_measured)
    chosen = LabelledCase.get(work, prefix)
    return chosen.ranked(chosen.scores(work, Scoring(by), model, n_measured), model)


def _rank_by_target(
    work: Workspace,
    prefix: str,
    request: TargetRequest,
    by: Scoring,
    model: ModelName,
    n_measured: int,
) -> FeatureTable:
    prompt = work.store.prompts.get(prefix)
    target = request.build(work, prompt)
    assert target is not None
    table = rank(work.pair.model(model), prompt, target, by=by, n_measured=n_measured)
    about: dict[str, Any] = {
        "prompt_id": prompt.prompt_id,
        "model": model,
        "labels_from": "judge" if request.rollouts_judged else "none",
        "labelled_by": [],
        "unmatched": [],
    }
    return replace(table, about={**table.about, **about})


def choose_on_prompt(
    work: Workspace,
    prefix: str,
    choice: FeatureChoice | str,
    *,
    model: ModelName = "merged",
    by: Scoring | str = TO_STEER,
) -> FeatureTable:
    """What ``top:N`` and the like mean on a stored prompt; see `features.choose_features`.

    Raises:
        RequestError: No such prompt, no labels, no contrast, or no graph where one is read.
    """
    choice = FeatureChoice.parse(choice) if isinstance(choice, str) else choice
    prompt = LabelledCase.get(work, prefix)
    graph = None
    if choice.needs_ranking and Scoring(by).from_graph:
        graph = work.graph_of(prompt.prompt.prompt_id, model)
    runs, cache = work.pair.model(model), prompt.cache(work, model)
    return choose_features(choice, runs, cache, prompt.contrast, by=by, graph=graph)


def _each_value(
    choice: FeatureChoice, chosen: FeatureTable, value: float | None
) -> Iterator[tuple[FeatureTable, float | None]]:
    """The chosen features with the value of each."""
    if not choice.values:
        yield chosen, value
        return
    taken: set[int] = set()
    for name, own in zip(choice.named, choice.values, strict=True):
        rows = [
            i
            for i, feature in enumerate(chosen.features)
            if i not in taken and name in (feature, getattr(feature, "id", None))
        ]
        if isinstance(name, Feature) and name.position < 0:
            place = name.at(chosen.about["n_pos"])
            rows = [i for i, feature in enumerate(chosen.features) if feature == place]
        taken.update(rows)
        yield chosen.take(np.array(rows)), value if own is None else own


def choose_ids(
    work: Workspace, features: str, prefix: str | None, *, model: ModelName = "merged"
) -> tuple[tuple[FeatureId, ...], str]:
    """Feature ids of ``LAYER/ID,...``, or of ``top:N`` on a prompt; and by which method.

    Raises:
        RequestError: If ``top:N`` comes without a prompt, or there is no such feature.
    """
    choice = FeatureChoice.parse(features)
    if choice.values:
        raise RequestError(f"--features {choice}: values are of steer run; leave them out here")
    if not choice.needs_ranking:
        ids = (f if isinstance(f, FeatureId) else f.id for f in choice.named)
        return tuple(dict.fromkeys(ids)), "name"
    if prefix is None:
        raise RequestError(f"{features!r} needs --prompt PROMPT")
    table = choose_on_prompt(work, prefix, choice, model=model)
    return tuple(dict.fromkeys(f.id for f in table.features)), table.by


def mediate_prompt(
    work: Workspace,
    prefix: str,
    *,
    order: Order = "integrated",
    direction: Direction = "sufficiency",
    heads: bool = False,
    n_random: int = 20,
    target: TargetRequest = NO_TARGET,
) -> Mediation:
    """Mediation of a labelled prompt, or of any under a target; see `interventions.mediate`."""
    wanted: Contrast | Target | None
    if target.is_given:
        prompt = work.store.prompts.get(prefix)
        work.require_healthy(prompt)
        wanted = target.build(work, prompt)
        assert wanted is not None
    else:
        case = LabelledCase.get(work, prefix)
        work.require_healthy(case.prompt)
        prompt, wanted = case.shown, case.contrast
    return mediate(
        work.pair,
        prompt,
        wanted,
        order=order,
        direction=direction,
        heads=heads,
        n_random=n_random,
        seed=work.seed,
    )


def steer_prompt(
    work: Workspace,
    prefix: str,
    *,
    target: TargetRequest = NO_TARGET,
    model: ModelName = "merged",
    features: str = "top:10",
    mode: str = "ablate",
    value: float | None = None,
    unit: str = "absolute",
    at: str = "found",
    by: Scoring | str = TO_STEER,
    regime: str = "free",
    n_random: int = 20,
) -> SteerResult:
    """Steer a labelled prompt, or any prompt under a target; see `em_circuits.interventions.steer`.

    Args:
        target: In place of the contrast of labelled next tokens, for the choice and the outcome.
        features: ``top:N``, ``bottom:N``, ``abs:N`` by a method, or ``L/POS/ID,...``.
        mode: ``set``, ``add``, ``scale``, ``ablate`` or ``clamp``.
        value: For all modes but ``ablate``.
        unit: Of the value: ``absolute``, or ``relative`` to the feature's own activation.
        at: ``found``, ``last``, ``prompt``, ``generated`` or ``everything``.
        by: Ranks the features where they are not named.
    """
    choice = FeatureChoice.parse(features)
    prompt: Prompt
    wanted: Contrast | Target | None
    if target.is_given:
        prompt = work.store.prompts.get(prefix)
        work.require_healthy(prompt)
        wanted, runs = target.build(work, prompt), work.pair.model(model)
        assert wanted is not None
        cache = ActivationCache.capture(runs, work.pair.input_ids(prompt))
        chosen = choose_features(choice, runs, cache, wanted, by=by)
    else:
        case = LabelledCase.get(work, prefix)
        work.require_healthy(case.prompt)
        chosen = choose_on_prompt(work, prefix, choice, model=model, by=by)
        prompt, wanted = case.shown, case.contrast
    changes = Interventions(
        (
            change
            for names, own in _each_value(choice, chosen, value)
            for change in names.interventions(Mode(mode), own, unit=Unit(unit), where=Where(at))
        ),
        by=chosen.by,
    )
    return steer(
        work.pair.model(model),
        prompt,
        changes,
        wanted,
        regime=Regime(regime),
        n_random=n_random,
        seed=work.seed,
        by=chosen.by,
    )
