"""What does every feature of a prompt really do, alone and two by two?

Each active feature is ablated; its effect is measured on every labelled token. The features that
push most towards evil may then be ablated in pairs.

    scanned = scan_prompt(work, "44a71bc74c37", n_pairs=10)
    scanned.ranking.top(10), scanned.effects, scanned.pairs
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from em_circuits.experiments.analyse import RankedPrompt, labelled, prompt_state, token_groups
from em_circuits.features import FeatureScores, Ranking, rank
from em_circuits.features.rank import MEASURED
from em_circuits.interventions import PairEffects, Regime, ablation_effects, pair_effects
from em_circuits.models.text import decode_token
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Label, ModelName


@dataclass(frozen=True)
class Target:
    """A labelled token, whose logit is measured."""

    token_id: int
    text: str
    label: Label


@dataclass(frozen=True)
class ScannedPrompt:
    """Measured effects of every active feature of one prompt."""

    ranked: RankedPrompt
    regime: Regime
    targets: tuple[Target, ...]
    effects: Float[Tensor, "feature target"]
    """In the order of the ranking: demeaned logit undisturbed minus ablated."""
    pairs: PairEffects | None
    """Of the most positive contrasts; None where not asked for."""

    @property
    def ranking(self) -> Ranking:
        return self.ranked.ranking

    def to_json(self, top: int | None = None) -> dict[str, Any]:
        """The object of `steer scan --json`."""
        record = self.ranked.to_json(top)
        for line, effects in zip(record["features"], self.effects.tolist(), strict=False):
            line["effects"] = effects
        targets = [dict(target.__dict__) for target in self.targets]
        pairs = None if self.pairs is None else _pairs_json(self.pairs)
        return {**record, "regime": str(self.regime), "targets": targets, "pairs": pairs}


def scan_prompt(
    work: Workspace,
    prefix: str,
    *,
    model: ModelName = "merged",
    n_pairs: int = 0,
    regime: Regime = Regime.FREE,
) -> ScannedPrompt:
    """Ablate every active feature of a labelled prompt, and pairs of the first ones.

    Args:
        work: Models and store.
        prefix: Prompt id or unique prefix.
        model: Which model is run.
        n_pairs: So many features, the most positive ones, are ablated two by two; 0 for none.
        regime: What is held fixed meanwhile.

    Raises:
        RequestError: No such prompt, no labels, no contrast, or fewer active features than that.
    """
    prompt, labels = labelled(work, prefix)
    groups, by_token = token_groups(labels), labels.by_token
    runs, state = work.pair.model(model), prompt_state(work, prompt, model)
    n_active = len(state.active)
    if n_pairs > n_active:
        raise RequestError(f"--pairs {n_pairs}: the prompt has {n_active} active features")
    token_ids = torch.tensor(sorted(by_token))
    effects = ablation_effects(runs, state, targets=token_ids, regime=regime)
    everywhere = torch.ones(n_active, dtype=torch.bool)
    places, activations = state.active.cpu(), state.activations.float().cpu()
    ranking = rank(
        FeatureScores(MEASURED, places, activations, token_ids, effects.T, everywhere), by_token
    )
    pairs = None
    if n_pairs:
        first = _places(ranking)[:n_pairs]
        pairs = pair_effects(runs, state, first, groups, regime=regime)
    tokenizer = work.pair.tokenizer
    return ScannedPrompt(
        ranked=RankedPrompt(prompt, model, labels, ranking),
        regime=regime,
        targets=tuple(
            Target(t, decode_token(tokenizer, t), by_token[t]) for t in token_ids.tolist()
        ),
        effects=effects[_rows(places.tolist(), _places(ranking).tolist())],
        pairs=pairs,
    )


def _places(ranking: Ranking) -> Int64[Tensor, "feature 3"]:
    return torch.tensor([(f.layer, f.position, f.feature) for f in ranking.features])


def _rows(places: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> list[int]:
    """Where each of the wanted places stands."""
    number = {tuple(place): row for row, place in enumerate(places)}
    return [number[tuple(place)] for place in wanted]


def _pairs_json(pairs: PairEffects) -> dict[str, Any]:
    interaction: list[list[float | None]] = [list(row) for row in pairs.interaction.tolist()]
    for i, row in enumerate(interaction):
        row[i] = None
    return {
        "features": [
            {"layer": layer, "position": position, "feature": feature, "effect": effect}
            for (layer, position, feature), effect in zip(
                pairs.features.tolist(), pairs.single.tolist(), strict=True
            )
        ],
        "joint": pairs.joint.tolist(),
        "interaction": interaction,
    }
