"""Causal scan of a prompt: every active feature ablated, alone and in pairs.

Each active feature is ablated; its effect is measured on every labelled token. The features that
push most towards evil may then be ablated in pairs.

    found = scan_prompt(work, "44a71bc74c37", n_pairs=10)
    found.features[:10], found.pairs
"""

from __future__ import annotations

import torch
from pydantic import BaseModel

from em_circuits.experiments.analyse import LabelledCase, PromptRanking, RankedFeature
from em_circuits.interventions import PairEffects, Regime, live_scores, pair_effects
from em_circuits.interventions.mediation import FeatureEffect
from em_circuits.models.text import decode_token
from em_circuits.scoring import Scoring
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Label, ModelName


class ScannedToken(BaseModel):
    """A labelled token, whose logit is measured."""

    token_id: int
    text: str
    label: Label


class ScannedFeature(RankedFeature):
    """A ranked feature with its effect on every target, in their order."""

    effects: tuple[float, ...]
    """Demeaned logit undisturbed minus ablated."""


class Pairs(BaseModel):
    """Effects on the contrast of ablating two features together."""

    features: tuple[FeatureEffect, ...]
    joint: tuple[tuple[float, ...], ...]
    interaction: tuple[tuple[float | None, ...], ...]
    """Joint minus both alone; None on the diagonal."""

    @classmethod
    def of(cls, pairs: PairEffects) -> Pairs:
        """As the measurement gives them."""
        interaction = [list(row) for row in pairs.interaction.tolist()]
        for i, row in enumerate(interaction):
            row[i] = None
        places = zip(pairs.features.tolist(), pairs.single.tolist(), strict=True)
        return cls(
            features=tuple(
                FeatureEffect(layer=layer, position=position, feature=feature, effect=effect)
                for (layer, position, feature), effect in places
            ),
            joint=tuple(map(tuple, pairs.joint.tolist())),
            interaction=tuple(map(tuple, interaction)),
        )

    def largest(self, n: int) -> list[tuple[int, int, float]]:
        """(i, j, interaction) of the n largest by magnitude, i < j."""
        k = len(self.features)
        found = [(i, j, self.interaction[i][j] or 0.0) for i in range(k) for j in range(i + 1, k)]
        return sorted(found, key=lambda pair: -abs(pair[2]))[:n]


class PromptScan(PromptRanking):
    """The object of `steer scan --json`."""

    features: tuple[ScannedFeature, ...]
    regime: Regime
    targets: tuple[ScannedToken, ...]
    pairs: Pairs | None
    """Of the most positive contrasts; None where not asked for."""


def scan_prompt(
    work: Workspace,
    prefix: str,
    *,
    model: ModelName = "merged",
    n_pairs: int = 0,
    regime: Regime = Regime.FREE,
) -> PromptScan:
    """Ablate every active feature of a labelled prompt, and the most positive `n_pairs` in pairs.

    Raises:
        RequestError: No such prompt, no labels, no contrast, or fewer active features than that.
    """
    prompt = LabelledCase.get(work, prefix)
    contrast, labels = prompt.contrast.require(), prompt.labels.by_token
    runs, state = work.pair.model(model), prompt.cache(work, model)
    if n_pairs > len(state.active):
        raise RequestError(f"--pairs {n_pairs}: the prompt has {len(state.active)} active features")
    token_ids = sorted(labels)
    scores = live_scores(
        runs, state, contrast, Scoring.MEASURED, targets=torch.tensor(token_ids), regime=regime
    )
    table = prompt.ranked(scores, model)
    pairs = None
    if n_pairs:
        first = table.top(n_pairs).coordinates
        pairs = Pairs.of(pair_effects(runs, state, first, contrast, regime=regime))
    ranking = PromptRanking.of(table)
    assert table.per_target is not None
    effects = table.per_target.T.tolist()
    return PromptScan(
        **ranking.model_dump(exclude={"features"}),
        features=tuple(
            ScannedFeature(**feature.model_dump(), effects=row)
            for feature, row in zip(ranking.features, effects, strict=True)
        ),
        regime=regime,
        targets=tuple(
            ScannedToken(token_id=t, text=decode_token(work.pair.tokenizer, t), label=labels[t])
            for t in token_ids
        ),
        pairs=pairs,
    )
