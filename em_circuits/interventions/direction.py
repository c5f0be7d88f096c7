"""Directions: many features that act as one vector per layer.

A direction gives each of some features a weight. Steering along it by a strength adds

    strength * weight[i] * W_dec[i]

at each feature's layer: one vector per layer. Weights follow from a difference per feature (evil
minus safe, merged minus base, ...):

    mean_diff    the difference itself
    sign         +1 or -1
    normalised   the difference, scaled so that all written vectors together have length 1

    direction = Direction.of(model, places, differences, Weighting.SIGN)
    run_rows(model, state, [direction.interventions(4.0)])
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

import torch

from em_circuits.intervention import Intervention, Mode, Position
from em_circuits.interventions.feature_rows import decoder_vectors
from em_circuits.models import Model
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen


class Weighting(StrEnum):
    """How a difference becomes a weight."""

    MEAN_DIFF = "mean_diff"
    SIGN = "sign"
    NORMALISED = "normalised"


class Direction(Frozen):
    """Features of one model and the weight of each."""

    features: tuple[tuple[int, int], ...]
    """(layer, feature id)."""
    weights: tuple[float, ...]
    weighting: Weighting

    @classmethod
    def of(
        cls,
        model: Model,
        features: Sequence[tuple[int, int]],
        differences: Sequence[float],
        weighting: Weighting = Weighting.MEAN_DIFF,
    ) -> Direction:
        """Weigh features by their differences.

        Args:
            model: Whose transcoders write; `normalised` asks how long the vectors are.
            features: (layer, feature id), each once.
            differences: One per feature.
            weighting: How a difference becomes a weight.

        Raises:
            RequestError: If a feature stands there twice, the numbers do not fit, or nothing
                would be written.
        """
        if len(features) != len(differences) or not features:
            raise RequestError(
                f"a direction of {len(features)} features has {len(differences)} differences; "
                "give one for each of at least one feature"
            )
        if len(set(features)) < len(features):
            raise RequestError("a direction names a feature twice; sum its differences first")
        if not all(math.isfinite(d) for d in differences):
            raise RequestError("a direction's differences must be finite")
        weights = torch.tensor(differences, dtype=torch.float64)
        if weighting is Weighting.SIGN:
            weights = weights.sign()
        plain = cls(features=tuple(features), weights=tuple(weights.tolist()), weighting=weighting)
        if weighting is not Weighting.NORMALISED:
            return plain
        length = plain.length(model)
        if length == 0:
            raise RequestError("a direction of zero differences cannot be normalised")
        scaled = tuple(weight / length for weight in plain.weights)
        return plain.model_copy(update={"weights": scaled})

    def length(self, model: Model) -> float:
        """Norm of what strength 1 writes at one position, over all layers."""
        layers, ids = torch.tensor(self.features, dtype=torch.int64).unbind(1)
        vectors = decoder_vectors(model, layers, ids).double()
        written = vectors * torch.tensor(self.weights, dtype=torch.float64)[:, None]
        sums = [written[layers == layer].sum(0) for layer in layers.unique()]
        return float(torch.stack(sums).norm())

    def interventions(self, strength: float, position: Position = None) -> tuple[Intervention, ...]:
        """Adding the direction, `strength` times, at a position or a class of them."""
        return tuple(
            Intervention(
                layer=layer,
                feature=feature,
                position=position,
                mode=Mode.ADD,
                value=strength * weight,
            )
            for (layer, feature), weight in zip(self.features, self.weights, strict=True)
        )
