"""What is a value worth that is given in units of a feature's own activation?

The own activation is that on the undisturbed prompt: at the position where one is named (or the
last), else the largest over the prompt. It is 0 where the feature is inactive, and so is every
multiple of it.

    resolved = absolute(state, interventions)
    asleep(state, interventions)          # those that multiply nothing
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from em_circuits.intervention import FIRST_POSITION, Intervention, Mode, Unit, Where
from em_circuits.interventions.state import PromptState


def own_activation(state: PromptState, item: Intervention) -> float:
    """Activation of an intervention's feature on the undisturbed prompt."""
    if isinstance(item.position, int) or item.position is Where.LAST:
        positions = item.positions(state.n_pos)
    else:
        positions = range(FIRST_POSITION, state.n_pos)
    asked = torch.tensor([[item.layer, p, item.feature] for p in positions]).reshape(-1, 3)
    values = state.activation_of(asked)
    return float(values.float().max()) if len(values) else 0.0


def absolute(state: PromptState, interventions: Sequence[Intervention]) -> tuple[Intervention, ...]:
    """The same interventions with every value absolute."""
    return tuple(
        item
        if item.unit is Unit.ABSOLUTE
        else item.model_copy(
            update={
                "value": (item.value or 0.0) * own_activation(state, item),
                "unit": Unit.ABSOLUTE,
            }
        )
        for item in interventions
    )


def asleep(state: PromptState, interventions: Sequence[Intervention]) -> tuple[Intervention, ...]:
    """Those that multiply, remove or cap a feature that is inactive: nothing can come of them."""
    still = (Mode.SCALE, Mode.ABLATE, Mode.CLAMP)
    return tuple(
        item
        for item in interventions
        if (item.mode in still or item.unit is Unit.RELATIVE) and own_activation(state, item) == 0
    )
