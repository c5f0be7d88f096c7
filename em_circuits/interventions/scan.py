"""What happens to the targets when each feature is really removed?

    effect[s, t] = demeaned logit of t undisturbed - the same with feature s ablated

Positive = the feature's presence raises the target. One row per feature in batched forward
passes: the ground truth of every score, and a ranking in its own right.

    effects = ablation_effects(model, state, targets=token_ids)

Several features may be removed together; see `em_circuits.interventions.pairs`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from em_circuits.contrast import Contrast, demeaned
from em_circuits.interventions.engine import default_batch, iter_rows
from em_circuits.interventions.plan import Plan
from em_circuits.interventions.regimes import Regime
from em_circuits.interventions.state import PromptState
from em_circuits.models import Model


def ablation_effects(
    model: Model,
    state: PromptState,
    *,
    targets: Int[Tensor, " target"] | Contrast,
    features: Int[Tensor, "feature 3"] | None = None,
    regime: Regime = Regime.FREE,
    batch_size: int | None = None,
) -> Float[Tensor, "feature target"]:
    """Measured effect of the presence of each feature.

    Args:
        model: The model that is run.
        state: The prompt, captured on it.
        targets: Token ids, or groups whose evil-minus-safe contrast is the one target.
        features: (layer, position, feature id) rows; None scans every active feature.
        regime: What is frozen meanwhile.
        batch_size: Features per forward pass; None fits them into memory.

    Returns:
        Float32 in logits, on the CPU.

    Raises:
        RequestError: If the groups have no contrast.
    """
    coordinates = (state.active if features is None else features).cpu().long()
    return set_effects(
        model, state, coordinates[:, None], targets=targets, regime=regime, batch_size=batch_size
    )


def set_effects(
    model: Model,
    state: PromptState,
    sets: Int[Tensor, "set member 3"],
    *,
    targets: Int[Tensor, " target"] | Contrast,
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
        RequestError: If the groups have no contrast.
    """
    if isinstance(targets, Contrast):
        targets.weights(len(state.logits))  # refuses groups without a contrast
    n_targets = 1 if isinstance(targets, Contrast) else len(targets)
    size = max(2, batch_size or default_batch(model, state, regime))
    members = sets.cpu().long()
    effects, done = torch.empty((len(members), n_targets)), 0
    if not len(members):
        return effects
    # Late positions first: a batch runs nothing before the first position that it changes.
    order = members[:, :, 1].amin(1).argsort(descending=True, stable=True)
    plan = _with_undisturbed(members[order], size)
    for _, logits in iter_rows(model, state, plan, regime, batch_size=size):
        values = _values(logits, targets)
        found = (values[:1] - values[1:]).cpu()
        effects[order[done : done + len(found)]] = found
        done += len(found)
    return effects


def _with_undisturbed(sets: Int[Tensor, "set member 3"], size: int) -> Plan:
    """One row per set, its members ablated, and an empty row at the head of every `size` rows.

    Effects are differences within a batch: in bfloat16 two batch shapes differ by more than many
    an effect.
    """
    number = torch.arange(len(sets))
    row = number + 1 + number // (size - 1)
    each = row.repeat_interleave(sets.shape[1])
    return Plan.setting(int(row[-1]) + 1, each, sets.reshape(-1, 3), torch.zeros(len(each)))


def _values(
    logits: Float[Tensor, "row vocab"], targets: Int[Tensor, " target"] | Contrast
) -> Float[Tensor, "row target"]:
    if isinstance(targets, Contrast):
        values = targets.value(logits)
        assert values is not None
        return values[:, None]
    return demeaned(logits)[:, targets.to(logits.device).long()]
