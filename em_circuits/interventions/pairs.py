"""Do two features do more together than one and the other, or less?

    interaction[i, j] = effect of both - effect of i - effect of j

in logits of the evil-minus-safe contrast; every effect is that of really ablating. Above 0 the two
need each other (synergy); below 0 each does part of the other's work (they stand in for each
other), or one undoes what the other does.

    pairs = pair_effects(model, state, features, groups)
    pairs.largest(5)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from em_circuits.contrast import Contrast
from em_circuits.interventions.regimes import Regime
from em_circuits.interventions.scan import ablation_effects, set_effects
from em_circuits.interventions.state import PromptState
from em_circuits.models import Model
from pivotal_tokens.errors import RequestError


@dataclass(frozen=True)
class PairEffects:
    """Effects of some features alone and two by two, on the CPU."""

    features: Int64[Tensor, "feature 3"]
    single: Float[Tensor, " feature"]
    joint: Float[Tensor, "feature feature"]
    """Of both; symmetric, on the diagonal that of the one."""

    @property
    def interaction(self) -> Float[Tensor, "feature feature"]:
        """Joint minus the sum of both; a feature does not interact with itself: 0."""
        found = self.joint - self.single[:, None] - self.single[None]
        return found.fill_diagonal_(0.0)

    def largest(self, n: int) -> list[tuple[int, int, float]]:
        """(i, j, interaction) of the n largest by magnitude, i < j."""
        upper = torch.triu_indices(len(self.single), len(self.single), offset=1)
        values = self.interaction[upper[0], upper[1]]
        order = values.abs().argsort(descending=True, stable=True)[:n].tolist()
        return [(int(upper[0, k]), int(upper[1, k]), float(values[k])) for k in order]


def pair_effects(
    model: Model,
    state: PromptState,
    features: Int[Tensor, "feature 3"],
    groups: Contrast,
    *,
    regime: Regime = Regime.FREE,
    batch_size: int | None = None,
) -> PairEffects:
    """Ablate each feature, and every two of them together.

    Args:
        model: The model that is run.
        state: The prompt, captured on it.
        features: (layer, position, feature id), all different.
        groups: Tokens whose contrast is measured.
        regime: What is frozen meanwhile.
        batch_size: Rows per forward pass; None fits them into memory.

    Raises:
        RequestError: If there are fewer than two features, or no contrast.
    """
    features = features.cpu().long()
    n = len(features)
    if n < 2:
        raise RequestError(f"{n} feature has no pairs; give at least two")
    single = ablation_effects(
        model, state, targets=groups, features=features, regime=regime, batch_size=batch_size
    )[:, 0]
    first, second = torch.triu_indices(n, n, offset=1)
    both = torch.stack([features[first], features[second]], 1)
    found = set_effects(model, state, both, targets=groups, regime=regime, batch_size=batch_size)[
        :, 0
    ]
    joint = torch.diag(single)
    joint[first, second] = joint[second, first] = found
    return PairEffects(features, single, joint)
