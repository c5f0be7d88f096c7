"""Would any other features have done the same?

A control draw replaces each chosen feature by another one of the same layer (where there is one)
with a similar activation and a similar decoder norm: one of the nearest `NEAREST` in

    |log a_i - log a_j| + |log norm_i - log norm_j|

drawn at random, without repetition within a draw and never a chosen one.

    draws = matched_draws(pool, chosen, n_draws=20, seed=0)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pivotal_tokens.errors import RequestError

MIN_DRAWS = 20
"""Fewer draws do not make a band."""
NEAREST = 32
"""Candidates that count as similar."""
_KNOWN = 256
"""Neighbours looked at before any feature of the layer, then any at all, will do."""
_OTHER_LAYER = 1e6


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
    """Per chosen feature the most similar candidates, most similar first."""
    places, found = pool.places(), []
    for part in chosen.split(1024):
        distance = torch.cdist(places[part], places[candidates], p=1)
        distance += _OTHER_LAYER * (pool.layer[part, None] != pool.layer[candidates])
        known = min(_KNOWN, len(candidates))
        found.append(distance.topk(known, largest=False).indices)
    return torch.cat(found)


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
