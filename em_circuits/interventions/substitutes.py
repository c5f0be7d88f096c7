"""Which active features stand in for the steered ones in a control?

A substitute has the same layer (where there is one), a similar activation and a similar decoder
norm, and gets the very same treatment. It never is a steered feature, nor a steered feature id at
another position.

    places = random_places(model, state, interventions, n_draws=20, seed=0)
    rows = [moved(interventions, draw) for draw in places.tolist()]
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from em_circuits.intervention import FIRST_POSITION, Intervention, Where
from em_circuits.interventions.controls import Pool, matched_draws
from em_circuits.interventions.feature_rows import decoder_vectors
from em_circuits.interventions.state import PromptState
from em_circuits.models import Model
from pivotal_tokens.errors import RequestError

_EVERYWHERE = -1


def random_places(
    model: Model,
    state: PromptState,
    interventions: Sequence[Intervention],
    *,
    n_draws: int,
    seed: int,
) -> Int64[Tensor, "draw chosen 3"]:
    """Matched random features for a set of interventions.

    For an intervention at a class of positions the candidates are features at the same class,
    compared by their largest activation.

    Args:
        model: The model that is steered.
        state: The prompt, captured on it; its active features are the candidates.
        interventions: At least one.
        n_draws: Independent draws.
        seed: Same seed, same draws.

    Returns:
        (layer, position or -1 for a class of them, feature id) of each substitute.

    Raises:
        RequestError: If the prompt has too few other active features.
    """
    own = torch.tensor([[i.layer, _place(i, state), i.feature] for i in interventions])
    places = torch.empty((n_draws, len(own), 3), dtype=torch.int64)
    avoid = own[:, ::2]
    for everywhere in (False, True):
        columns = ((own[:, 1] == _EVERYWHERE) == everywhere).nonzero()[:, 0]
        if not len(columns):
            continue
        coordinates, pool = _pool(model, state, own[columns], everywhere=everywhere)
        barred = (coordinates[:, None, ::2] == avoid).all(-1).any(1).nonzero()[:, 0]
        chosen = torch.arange(len(columns))
        draws = matched_draws(pool, chosen, n_draws=n_draws, seed=seed, barred=barred)
        if draws is None:
            raise RequestError(
                f"{len(own)} features are steered, only {len(coordinates) - len(barred)} others "
                "are active on this prompt; steer fewer, or there is no random control"
            )
        places[:, columns] = coordinates[draws]
        avoid = torch.cat([avoid, places[:, columns].reshape(-1, 3)[:, ::2]])
    return places


def moved(
    interventions: Sequence[Intervention], places: Sequence[Sequence[int]]
) -> list[Intervention]:
    """The same treatment of other features.

    Args:
        interventions: The treatment.
        places: (layer, position or -1 for a class of them, feature id) for each.
    """
    return [
        item.model_copy(
            update={
                "layer": layer,
                "position": item.position if position == _EVERYWHERE else position,
                "feature": feature,
            }
        )
        for item, (layer, position, feature) in zip(interventions, places, strict=True)
    ]


def decoder_norms(
    model: Model, coordinates: Int64[Tensor, "feature 3"]
) -> Float[Tensor, " feature"]:
    """Length of each feature's decoder row, in float32 on the CPU."""
    return decoder_vectors(model, coordinates[:, 0], coordinates[:, 2]).norm(dim=1)


def _place(item: Intervention, state: PromptState) -> int:
    """The position that is meant, or -1 for a class of several."""
    if isinstance(item.position, int):
        return item.position
    return state.n_pos - 1 if item.position is Where.LAST else _EVERYWHERE


def _pool(
    model: Model, state: PromptState, own: Int64[Tensor, "chosen 3"], *, everywhere: bool
) -> tuple[Int64[Tensor, "candidate 3"], Pool]:
    """Every active feature as a candidate, the chosen ones (active or not) in front."""
    coordinates, amounts = _candidates(state, everywhere=everywhere)
    other = ~(coordinates[:, None] == own).all(-1).any(1)
    coordinates = torch.cat([own, coordinates[other]])
    amounts = torch.cat([_amounts(state, own), amounts[other]])
    return coordinates, Pool(coordinates[:, 0], amounts, decoder_norms(model, coordinates))


def _candidates(state: PromptState, *, everywhere: bool) -> tuple[Tensor, Tensor]:
    active, amounts = state.active.cpu(), state.activations.float().cpu()
    if not everywhere:
        return active, amounts
    ids, inverse = active[:, ::2].unique(dim=0, return_inverse=True)
    largest = torch.zeros(len(ids)).scatter_reduce(0, inverse, amounts, "amax")
    positions = torch.full_like(ids[:, 0], _EVERYWHERE)
    return torch.stack([ids[:, 0], positions, ids[:, 1]], dim=1), largest


def _amounts(state: PromptState, own: Int64[Tensor, "chosen 3"]) -> Float[Tensor, " chosen"]:
    values = []
    for layer, position, feature in own.tolist():
        everywhere = range(FIRST_POSITION, state.n_pos)
        positions = everywhere if position == _EVERYWHERE else (position,)
        asked = torch.tensor([[layer, p, feature] for p in positions])
        values.append(state.activation_of(asked).float().max().cpu())
    return torch.stack(values)
