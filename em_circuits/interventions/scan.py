"""Ablation effects of features, one by one, in sets, or in pairs.

    effect[s, t] = target t undisturbed - the same with feature s ablated

where a target is a demeaned logit, a contrast, or any term of `em_circuits.target`.

Positive = the feature's presence raises the target. One row per feature in batched forward
passes: the ground truth of every score, and a ranking in its own right.

    effects = ablation_effects(model, state, targets=token_ids)

Several features may be removed together. Of two,

    interaction[i, j] = effect of both - effect of i - effect of j

on the evil-minus-safe contrast: above 0 the two need each other (synergy); below 0 each does part
of the other's work, or one undoes what the other does.

    pair_effects(model, cache, features, words).largest(5)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from em_circuits.activation_cache import ActivationCache
from em_circuits.contrast import Contrast
from em_circuits.intervention import Regime
from em_circuits.interventions.edits import EditBatch
from em_circuits.interventions.run import default_batch, iter_values
from em_circuits.models import Model
from em_circuits.target import Columns, Target, WordContrast, terms_of
from pivotal_tokens.errors import RequestError


def ablation_effects(
    model: Model,
    state: ActivationCache,
    *,
    targets: Columns | Contrast | Target,
    features: Int[Tensor, "feature 3"] | None = None,
    regime: Regime = Regime.FREE,
    batch_size: int | None = None,
) -> Float[Tensor, "feature target"]:
    """Measured effect of the presence of each feature.

    Args:
        model: The model that is run.
        state: The prompt, captured on it.
        targets: Token ids or terms; or a contrast or a target, which is then the only one.
        features: (layer, position, feature id) rows; None scans every active feature.
        regime: What is frozen meanwhile.
        batch_size: Features per forward pass; None fits them into memory.

    Returns:
        Float32 in the targets' units, on the CPU.

    Raises:
        RequestError: If the contrast have no contrast.
    """
    coordinates = (state.active if features is None else features).cpu().long()
    return set_effects(
        model, state, coordinates[:, None], targets=targets, regime=regime, batch_size=batch_size
    )


def set_effects(
    model: Model,
    state: ActivationCache,
    sets: Int[Tensor, "set member 3"],
    *,
    targets: Columns | Contrast | Target,
    regime: Regime = Regime.FREE,
    batch_size: int | None = None,
) -> Float[Tensor, "set target"]:
    """Measured effect of the presence of each set of features, its members ablated together.

    Args:
        model: The model that is run.
        state: The prompt, captured on it.
        sets: (layer, position, feature id) of each set's members, all different.
        targets: As for `ablation_effects`, which this is for sets of one.
        regime: What is frozen meanwhile.
        batch_size: Sets per forward pass; None fits them into memory.

    Raises:
        RequestError: If the contrast have no contrast.
    """
    weights: Tensor | None = None
    if isinstance(targets, Contrast):
        columns: Columns = (WordContrast(targets.require()),)
    elif isinstance(targets, Target):
        columns, weights = targets.terms, targets.over().float()
    else:
        columns = terms_of(targets)
    size = max(2, batch_size or default_batch(model, state, regime, targets=columns))
    members = sets.cpu().long()
    n_targets = len(columns) if weights is None else 1
    effects, done = torch.empty((len(members), n_targets)), 0
    if not len(members):
        return effects
    # Late positions first: a batch runs nothing before the first position that it changes.
    order = members[:, :, 1].amin(1).argsort(descending=True, stable=True)
    edits = _with_undisturbed(members[order], size)
    for _, values in iter_values(model, state, edits, columns, regime, batch_size=size):
        found = values[:1] - values[1:]
        found = found if weights is None else (found @ weights)[:, None]
        effects[order[done : done + len(found)]] = found
        done += len(found)
    return effects


def _with_undisturbed(sets: Int[Tensor, "set member 3"], size: int) -> EditBatch:
    """One row per set, its members ablated, and an empty row at the head of every `size` rows.

    Effects are differences within a batch: in bfloat16 two batch shapes differ by more than many
    an effect.
    """
    number = torch.arange(len(sets))
    row = number + 1 + number // (size - 1)
    each = row.repeat_interleave(sets.shape[1])
    return EditBatch.setting(int(row[-1]) + 1, each, sets.reshape(-1, 3), torch.zeros(len(each)))


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
    state: ActivationCache,
    features: Int[Tensor, "feature 3"],
    contrast: Contrast | Target,
    *,
    regime: Regime = Regime.FREE,
    batch_size: int | None = None,
) -> PairEffects:
    """Ablate each feature, and every two of them together.

    Args:
        model: The model that is run.
        state: The prompt, captured on it.
        features: (layer, position, feature id), all different.
        contrast: Tokens whose contrast is measured, or a target.
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
        model, state, targets=contrast, features=features, regime=regime, batch_size=batch_size
    )[:, 0]
    first, second = torch.triu_indices(n, n, offset=1)
    both = torch.stack([features[first], features[second]], 1)
    found = set_effects(model, state, both, targets=contrast, regime=regime, batch_size=batch_size)[
        :, 0
    ]
    joint = torch.diag(single)
    joint[first, second] = joint[second, first] = found
    return PairEffects(features, single, joint)
