"""Matched controls: random features like the steered ones, under the same treatment.

A draw replaces each chosen feature by another one of the same layer (where there is one) with a
similar activation and a similar decoder norm: one of the nearest `NEAREST` in

    |log a_i - log a_j| + |log norm_i - log norm_j|

drawn at random, without repetition within a draw and never a chosen one, nor a chosen feature id at
another position. It gets the very same treatment.

    places = random_places(model, cache, interventions, n_draws=20, seed=0)
    rows = [apply_to(interventions, draw) for draw in places.tolist()]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from em_circuits.activation_cache import ActivationCache
from em_circuits.coordinates import unique_rows
from em_circuits.intervention import MIN_DRAWS, Intervention, Where
from em_circuits.interventions.feature_rows import decoder_norms
from em_circuits.models import Model
from pivotal_tokens.errors import RequestError

NEAREST = 32
"""Candidates that count as similar."""
_KNOWN = 256
"""Neighbours looked at before any feature of the layer, then any at all, will do."""
_OTHER_LAYER = 1e6
_DISTANCES = 1 << 24
"""Distances that are held at a time."""


@dataclass(frozen=True)
class Pool:
    """What control features are drawn from, the chosen ones included."""

    layer: Int64[Tensor, " candidate"]
    amount: Float[Tensor, " candidate"]
    """Activation, or change of activation; its magnitude counts."""
    norm: Float[Tensor, " candidate"]
    """Length of the decoder row."""

    def places(self) -> Float[Tensor, "candidate 2"]:
        """Coordinates in which distance means dissimilarity."""
        tiny = 1e-6
        return torch.stack([(x.abs().double() + tiny).log() for x in (self.amount, self.norm)], 1)


def check_draws(n_draws: int) -> None:
    """Refuse a control that is too small to be one.

    Raises:
        RequestError: Below `MIN_DRAWS`.
    """
    if n_draws < MIN_DRAWS:
        raise RequestError(f"{n_draws} random draws are too few for a control; use {MIN_DRAWS}")


def matched_draws(
    pool: Pool,
    chosen: Int64[Tensor, " chosen"],
    *,
    n_draws: int = MIN_DRAWS,
    seed: int = 0,
    barred: Int64[Tensor, " barred"] | None = None,
) -> Int64[Tensor, "draw chosen"] | None:
    """Draw control features for a set of chosen ones.

    Args:
        pool: Candidates.
        chosen: Their indices in the pool.
        n_draws: Independent draws.
        seed: Same seed, same draws.
        barred: Further candidates that no draw may contain.

    Returns:
        Pool indices, column j standing for ``chosen[j]``; None if there are fewer candidates than
        chosen features.
    """
    allowed = torch.ones(len(pool.layer), dtype=torch.bool)
    allowed[chosen] = False
    if barred is not None:
        allowed[barred] = False
    candidates = allowed.nonzero()[:, 0]
    if len(candidates) < len(chosen) or not len(chosen):
        return None
    neighbours = candidates[_neighbours(pool, chosen, candidates)].numpy()
    generator = np.random.default_rng(seed)
    draws = [
        _draw(chosen.numpy(), neighbours, candidates.numpy(), pool.layer.numpy(), generator)
        for _ in range(n_draws)
    ]
    return torch.from_numpy(np.stack(draws))


def _neighbours(pool: Pool, chosen: Tensor, candidates: Tensor) -> Int64[Tensor, "chosen known"]:
    """Per chosen feature the most similar candidates, most similar first, those of its own layer
    before any others."""
    from scipy.spatial import KDTree

    places, known = pool.places(), min(_KNOWN, len(candidates))
    found = torch.empty((len(chosen), known), dtype=torch.int64)
    layers, of = pool.layer[candidates], pool.layer[chosen]
    for layer in of.unique():
        mine, own = (of == layer).nonzero()[:, 0], (layers == layer).nonzero()[:, 0]
        if len(own) < known:
            for part in mine.split(max(1, _DISTANCES // len(candidates))):
                found[part] = _by_distance(pool, chosen[part], candidates)[:, :known]
            continue
        # Of a million neurons only those nearby are looked at.
        tree = KDTree(places[candidates[own]].numpy(), compact_nodes=False, balanced_tree=False)
        _, nearest = tree.query(places[chosen[mine]].numpy(), k=range(1, known + 1), p=1)
        found[mine] = own[torch.from_numpy(nearest)]
    return found


def _by_distance(pool: Pool, chosen: Tensor, candidates: Tensor) -> Int64[Tensor, "chosen every"]:
    """Per chosen feature all candidates, by distance."""
    places = pool.places()
    distance = torch.cdist(places[chosen], places[candidates], p=1)
    distance += _OTHER_LAYER * (pool.layer[chosen, None] != pool.layer[candidates])
    return distance.argsort(dim=1, stable=True)


def _draw(
    chosen: np.ndarray,
    neighbours: np.ndarray,
    candidates: np.ndarray,
    layer: np.ndarray,
    generator: np.random.Generator,
) -> np.ndarray:
    """One substitute per chosen feature, in random order, so that none has the first pick."""
    draw, taken = np.empty(len(chosen), dtype=np.int64), np.zeros(len(layer), dtype=bool)
    for j in generator.permutation(len(chosen)):
        free = neighbours[j][~taken[neighbours[j]]]
        if not len(free):
            free = candidates[~taken[candidates]]
        own = free[layer[free] == layer[chosen[j]]]
        near = (own if len(own) else free)[:NEAREST]
        draw[j] = near[generator.integers(len(near))]
        taken[draw[j]] = True
    return draw


_EVERYWHERE = -1


def random_places(
    model: Model,
    state: ActivationCache,
    interventions: Sequence[Intervention],
    *,
    n_draws: int,
    seed: int,
) -> Int64[Tensor, "draw chosen 3"]:
    """Matched random features for a set of interventions.

    For an intervention at a class of positions the candidates are features at the same class,
    compared by their largest activation in magnitude.

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


def apply_to(
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


def _place(item: Intervention, state: ActivationCache) -> int:
    """The position that is meant, or -1 for a class of several."""
    if isinstance(item.position, int):
        return item.position
    return state.n_pos - 1 if item.position is Where.LAST else _EVERYWHERE


def _pool(
    model: Model, state: ActivationCache, own: Int64[Tensor, "chosen 3"], *, everywhere: bool
) -> tuple[Int64[Tensor, "candidate 3"], Pool]:
    """Every active feature as a candidate, the chosen ones (active or not) in front."""
    coordinates, amounts = _candidates(state, everywhere=everywhere)
    other = ~(coordinates[:, None] == own).all(-1).any(1)
    coordinates = torch.cat([own, coordinates[other]])
    amounts = torch.cat([_amounts(state, own), amounts[other]])
    norms = decoder_norms(model, coordinates[:, 0], coordinates[:, 2])
    return coordinates, Pool(coordinates[:, 0], amounts, norms)


def _candidates(state: ActivationCache, *, everywhere: bool) -> tuple[Tensor, Tensor]:
    active, amounts = state.active.cpu(), state.activations.float().cpu()
    if not everywhere:
        return active, amounts
    ids, inverse = unique_rows(active[:, ::2])
    largest = torch.zeros(len(ids)).scatter_reduce(0, inverse, amounts.abs(), "amax")
    positions = torch.full_like(ids[:, 0], _EVERYWHERE)
    return torch.stack([ids[:, 0], positions, ids[:, 1]], dim=1), largest


def _amounts(state: ActivationCache, own: Int64[Tensor, "chosen 3"]) -> Float[Tensor, " chosen"]:
    values = []
    for layer, position, feature in own.tolist():
        everywhere = range(state.first_position, state.n_pos)
        positions = everywhere if position == _EVERYWHERE else (position,)
        asked = torch.tensor([[layer, p, feature] for p in positions])
        values.append(state.activation_of(asked).float().abs().max().cpu())
    return torch.stack(values)
