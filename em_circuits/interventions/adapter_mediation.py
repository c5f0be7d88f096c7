"""Where an adapter's effect goes: straight to the logits, through features, heads, or the rest.

Two answers that stand side by side, of one prompt:

* `integrated`: the shift split by what reads each of the adapter's writes *first*
  (`interventions.adapter_paths`): the parts are signed, sum to the shift, and name the features,
  heads and adapter ranks;
* `alone`, `held`: really measured runs of the base with the adapter's writes, in which one kind of
  response is let happen alone, or alone does not (`interventions.adapter_shares`), beside writes of
  equal size into random directions. What goes through several kinds in turn is in none of the
  `alone` and is called interaction.

Features are those of the transcoders that are active somewhere in the base or the merged model;
what others do where only some things respond belongs to the remainder.

    effects = adapter_effects(pair, input_ids, weights)
    AdapterMediation.of(effects).sentence
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from em_circuits.activation_cache import ActivationCache
from em_circuits.bases import own_parts
from em_circuits.feature import FeatureId
from em_circuits.interventions.adapter_paths import CARRIERS, AdapterPaths, adapter_paths
from em_circuits.interventions.adapter_shares import (
    FIGURES,
    PAIRS,
    RESPONDING,
    MeasuredShares,
    measured_shares,
)
from em_circuits.interventions.adapter_writes import AdapterWrites
from em_circuits.interventions.heads import heads_by
from em_circuits.interventions.patching import MIN_SHIFT
from em_circuits.interventions.patching_across_prompts import by_id
from em_circuits.models import ModelPair
from em_circuits.spread import Spread
from pivotal_tokens.schema import Frozen

Figure = TypeVar("Figure")

LISTED = 100
"""Features that are listed, the largest first."""
PAIR_NAMES = tuple("_".join(pair) for pair in PAIRS)
_NAMED = 3
"""Features and heads that the sentence names."""


class Carriers(Frozen, Generic[Figure]):
    """A figure for each thing that may read an adapter's write first."""

    straight: Figure
    """The final norm and the logits."""
    features: Figure
    attention: Figure
    remainder: Figure
    """What the transcoders leave out of the MLPs."""


class Measured(Carriers[Figure], Generic[Figure]):
    """A figure for each thing that alone responds to the writes, and for all of them."""

    together: Figure
    """When everything responds."""


class Held(Frozen, Generic[Figure]):
    """A figure for each thing that alone does not respond to the writes."""

    features: Figure
    attention: Figure
    remainder: Figure


class Pairwise(Frozen, Generic[Figure]):
    """What two kinds have together beyond each alone: paths through both."""

    features_attention: Figure
    features_remainder: Figure
    attention_remainder: Figure


class CarrierFigures(Carriers[float | None]):
    """What reads an adapter's write first, on one prompt."""


class AloneShares(Measured[float | None]):
    """Shares of the shift when only this responds to the writes; null below 0.5 logit."""


class HeldShares(Held[float | None]):
    """Shares of the shift that go away when this alone does not respond."""


class PairShares(Pairwise[float | None]):
    """Shares of the shift that two kinds have together beyond each alone."""


class RandomWrites(Measured[Spread | None]):
    """Shares of writes of equal size into random directions, each alone, over draws."""


class AdapterNode(Frozen):
    """One rank of one module: its part of the shift over all positions, in logits."""

    module: str
    layer: int
    rank: int
    part: float
    carriers: CarrierFigures


class FirstFeature(Frozen):
    """A feature that reads the adapter's writes first."""

    layer: int
    position: int
    feature: int
    part: float
    """Its part of the shift, in logits."""


class FirstHead(Frozen):
    """An attention head that reads the adapter's writes first."""

    layer: int
    head: int
    part: float
    """Its part of the shift, in logits."""


class AdapterMediation(Frozen):
    """Where the effect of a LoRA goes on one prompt."""

    shares: CarrierFigures
    """Of the shift, by first reader, integrated from base to merged; null below 0.5 logit."""
    integrated: CarrierFigures
    """The same in logits."""
    first_order: CarrierFigures
    """In logits: the derivative in the base, times the whole adapter."""
    completeness: float | None
    """Sum of the integrated parts over the measured shift."""
    points: int
    """Of the sum that stands for the integral."""
    alone: AloneShares
    held: HeldShares
    interaction: float | None
    """What *together* has beyond the sum of the four alone: paths through several of them."""
    pairs: PairShares
    """What of the interaction is between two."""
    random: RandomWrites
    nodes: tuple[AdapterNode, ...]
    """The largest first."""
    unranked: CarrierFigures
    """In logits: what modules write besides their ranks (DoRA's rescaling, rounding)."""
    features: tuple[FirstFeature, ...]
    """The hundred largest."""
    heads: tuple[FirstHead, ...]
    """The largest first."""
    sentence: str

    @classmethod
    def of(cls, effects: AdapterEffects) -> AdapterMediation:
        """The result of a measured prompt."""
        paths, measured = effects.paths, effects.measured
        first, integrated = paths.first_order, paths.integrated
        shares = _carriers([effects.share(v) for v in integrated.carriers.tolist()])
        total = integrated.total
        return cls(
            shares=shares,
            integrated=_carriers(integrated.carriers.tolist()),
            first_order=_carriers(first.carriers.tolist()),
            completeness=total / effects.shift if effects.shift else None,
            points=paths.points,
            alone=AloneShares(**effects.named(FIGURES, measured.alone)),
            held=HeldShares(**effects.named(RESPONDING, measured.held)),
            interaction=effects.share(float(measured.interaction)),
            pairs=PairShares(**effects.named(PAIR_NAMES, measured.pairs)),
            random=RandomWrites(**_spreads(effects)),
            nodes=_nodes(effects),
            unranked=_carriers(integrated.unranked.tolist()),
            features=_features(effects),
            heads=_heads(effects),
            sentence=_sentence(effects),
        )


@dataclass(frozen=True, eq=False)
class AdapterEffects:
    """What was computed and measured on one prompt; in logits."""

    shift: float
    writes: AdapterWrites
    paths: AdapterPaths
    measured: MeasuredShares

    def share(self, logits: float) -> float | None:
        """Of the shift; None where that is too small."""
        return None if self.shift < MIN_SHIFT else logits / self.shift

    def named(self, names: Sequence[str], logits: Tensor) -> dict[str, float | None]:
        """Shares under their names."""
        return {n: self.share(v) for n, v in zip(names, logits.tolist(), strict=True)}

    def by_feature(self) -> dict[FeatureId, float]:
        """Integrated part of each feature id, over positions."""
        return by_id(self.paths.integrated.coordinates, self.paths.integrated.features)


def adapter_effects(
    pair: ModelPair,
    input_ids: Int[Tensor, " pos"],
    weights: Float[Tensor, " vocab"],
    *,
    n_random: int = 20,
    seed: int = 0,
) -> AdapterEffects:
    """Split an adapter's effect on weighted logits, and measure its kinds of response.

    Args:
        pair: Base and merged model.
        input_ids: One prompt, with its beginning-of-sequence token.
        weights: The contrast is ``sum_v w[v] logit_v`` at the last position.
        n_random: Draws of random directions.
        seed: Of the draws.

    Raises:
        RequestError: If the fine-tune is no LoRA.
    """
    writes = AdapterWrites.of(pair, input_ids)
    if pair.base.transcoders is None:
        parts = own_parts(pair.base)
    else:
        caches = [ActivationCache.capture(model, input_ids) for model in pair.models]
        parts = own_parts(pair.base, torch.cat([cache.active for cache in caches]))
    paths = adapter_paths(pair, writes, input_ids, weights, parts=parts)
    base, merged = (model.next_logits(input_ids).double().cpu() for model in pair.models)
    measured = measured_shares(
        pair.base, writes, input_ids, weights, parts=parts, n_random=n_random, seed=seed
    )
    return AdapterEffects(float(weights.double() @ (merged - base)), writes, paths, measured)


def sentence_of(shares: Sequence[object], features: Sequence[str], heads: Sequence[str]) -> str:
    """The answer, from the shares of `CARRIERS` as text and the largest features and heads."""
    straight, through, attention, rest = shares
    return (
        f"the adapter writes {straight} of the shift straight to the logits, {through} through "
        f"features ({', '.join(features)}), {attention} through attention heads "
        f"({', '.join(heads)}), {rest} through what the transcoders leave out of the MLPs"
    )


def _carriers(values: Sequence[float | None]) -> CarrierFigures:
    return CarrierFigures(**dict(zip(CARRIERS, values, strict=True)))


def _spreads(effects: AdapterEffects) -> dict[str, Spread | None]:
    shown = effects.shift >= MIN_SHIFT
    columns = (effects.measured.random / (effects.shift or 1.0)).T
    return {n: Spread.of(c) if shown else None for n, c in zip(FIGURES, columns, strict=True)}


def _nodes(effects: AdapterEffects) -> tuple[AdapterNode, ...]:
    found = []
    for part, values in zip(effects.writes.parts, effects.paths.integrated.nodes, strict=True):
        for rank, by_carrier in enumerate(values.sum(1).T.tolist()):
            found.append(
                AdapterNode(
                    module=part.name,
                    layer=part.layer,
                    rank=rank,
                    part=sum(by_carrier),
                    carriers=_carriers(by_carrier),
                )
            )
    return tuple(sorted(found, key=lambda node: -abs(node.part)))


def _features(effects: AdapterEffects) -> tuple[FirstFeature, ...]:
    split = effects.paths.integrated
    order = split.features.abs().argsort(descending=True, stable=True)[:LISTED]
    rows = zip(split.coordinates[order].tolist(), split.features[order].tolist(), strict=True)
    return tuple(
        FirstFeature(layer=layer, position=position, feature=feature, part=part)
        for (layer, position, feature), part in rows
    )


def _heads(effects: AdapterEffects) -> tuple[FirstHead, ...]:
    values = effects.paths.integrated.heads
    return tuple(
        FirstHead(layer=layer, head=head, part=float(values[layer, head]))
        for layer, head in heads_by(values.abs())
    )


def _sentence(effects: AdapterEffects) -> str:
    if effects.shift < MIN_SHIFT:
        return "no share: the contrast moves by less than 0.5 logit"
    ids = effects.by_feature()
    largest = sorted(ids, key=lambda key: -abs(ids[key]))[:_NAMED]
    parts = effects.paths.integrated.carriers / effects.shift
    return sentence_of(
        [f"{share:.0%}" for share in parts.tolist()],
        [str(key) for key in largest],
        [f"{one.layer}.{one.head}" for one in _heads(effects)[:_NAMED]],
    )
