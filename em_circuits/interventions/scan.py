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

from collections.abc import Sequence
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

_LONGER, _ALSO = 1.5, 8
"""Positions that a row of a batch may run: so many times those it must, and so many more."""


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
    beside: Int[Tensor, "feature 3"] | None = None,
    regime: Regime = Regime.FREE,
    batch_size: int | None = None,
) -> Float[Tensor, "set target"]:
    """Measured effect of the presence of each set of features, its members ablated together.

    Args:
        model: The model that is run.
        state: The prompt, captured on it.
        sets: (layer, position, feature id) of each set's members, all different.
        targets: As for `ablation_effects`, which this is for sets of one.
        beside: Other features, ablated all the while: what the sets add to that.
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
    held = members.new_zeros(0, 3) if beside is None else beside.cpu().long()
    # Late positions first, of those high layers: a batch runs nothing before what it changes.
    first = members[:, :, 1].amin(1) * model.sites.n_layers + members[:, :, 0].amin(1)
    order = first.argsort(descending=True, stable=True)
    lengths = (state.n_pos - members[order, :, 1].amin(1)).tolist()
    sizes = _batches(lengths, size - 1)
    edits = _with_reference(members[order], held, sizes)
    rows = [1 + n for n in sizes]
    for _, values in iter_values(model, state, edits, columns, regime, batch_size=rows):
        found = values[:1] - values[1:]
        found = found if weights is None else (found @ weights)[:, None]
        effects[order[done : done + len(found)]] = found
        done += len(found)
    return effects


def _batches(lengths: Sequence[int], most: int) -> list[int]:
    """How many rows go together: none is run much longer than it need be, at ascending lengths."""
    sizes, shortest = [0], lengths[0]
    for length in lengths:
        if sizes[-1] == most or length > _LONGER * shortest + _ALSO:
            sizes.append(0)
            shortest = length
        sizes[-1] += 1
    return sizes


def _with_reference(
    sets: Int[Tensor, "set member 3"], beside: Int[Tensor, "feature 3"], sizes: Sequence[int]
) -> EditBatch:
    """One row per set, its members ablated, and a row without at the head of each batch of so many
    sets; in all of them `beside`.

    Effects are differences within a batch: in bfloat16 two batch shapes differ by more than many
    an effect.
    """
    number = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    row = torch.arange(len(sets)) + number + 1
    n_rows = len(sets) + len(sizes)
    each = row.repeat_interleave(sets.shape[1])
    every = torch.arange(n_rows).repeat_interleave(len(beside))
    order = torch.cat([each, every]).argsort(stable=True)
    places = torch.cat([sets.reshape(-1, 3), beside.repeat(n_rows, 1)])[order]
    row = torch.cat([each, every])[order]
    return EditBatch.setting(n_rows, row, places, torch.zeros(len(row)))


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
