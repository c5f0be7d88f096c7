"""Which features carry the shift from base to merged?

In the base model features are set to the activation they have in the merged model, everything
else running free, and the share of the shift of the evil-minus-safe contrast that comes back is

    share = (contrast with the features set - contrast of base) / (contrast of merged - of base)

Single features are ranked by their first-order effect
``(a_merged - a_base) * W_dec . d contrast / d mlp_out`` in the base, or by really setting each.

    mediation = mediate(pair, input_ids, groups)
    mediation.cumulative, mediation.shares

Candidates are all (layer, position, feature id) whose activation differs, whether active in the
base, in merged, or in both. Position 0 has no features (circuit-tracer zeroes them), so whatever
the MLPs change there counts as error.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from em_circuits.graphs.gradient import feature_scores, mlp_output_gradients
from em_circuits.models import ModelPair
from em_circuits.steering.changed import ChangedFeatures
from em_circuits.steering.components import component_logits
from em_circuits.steering.contrast import TokenGroups, contrast, evil_mass
from em_circuits.steering.controls import MIN_DRAWS, Pool, Spread, check_draws, matched_draws
from em_circuits.steering.engine import run_rows
from em_circuits.steering.mediation_result import (
    MIN_SHIFT,
    CumulativePoint,
    InModel,
    Mediation,
    Shares,
)
from em_circuits.steering.state import PromptState

STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
"""Sizes of the cumulative curve; all changed features are its last point."""


def mediate(
    pair: ModelPair,
    input_ids: Int[Tensor, " pos"],
    groups: TokenGroups,
    *,
    scan: bool = False,
    n_random: int = MIN_DRAWS,
    seed: int = 0,
) -> Mediation:
    """Set features of the base to their merged values and see what comes back.

    Args:
        pair: Base and merged model.
        input_ids: One prompt, with its beginning-of-sequence token.
        groups: Evil and safe tokens.
        scan: Rank by really setting each feature alone instead of by the gradient.
        n_random: Matched random draws per point of the curve, at least 20.
        seed: Of the draws.

    Raises:
        RequestError: If no token is evil or none is safe ("no contrast").
    """
    check_draws(n_random)
    weights = groups.weights(pair.base.hf.config.vocab_size)  # type: ignore[union-attr,arg-type]
    base = PromptState.capture(pair.base, input_ids)
    merged = PromptState.capture(pair.merged, input_ids)
    changed = ChangedFeatures.between(base, merged)
    if scan:
        effects = scanned_effects(pair, base, changed, groups)
    else:
        effects = gradient_effects(pair, base, changed, weights)
    order = torch.argsort(effects, descending=True, stable=True)
    measure = _Measure(base, merged, groups)
    pool = Pool(changed.coordinates[:, 0], changed.change, changed.decoders(pair.base).norm(dim=1))
    return Mediation(
        contrast=measure.contrast,
        evil_mass=measure.evil_mass,
        changed=_ordered(changed, order),
        effects=effects[order],
        effects_by="scan" if scan else "gradient",
        cumulative=_cumulative(pair, measure, changed, order, pool, (n_random, seed)),
        layers=_layers(pair, measure, changed),
        shares=_shares(pair, measure, changed),
    )


def gradient_effects(
    pair: ModelPair,
    base: PromptState,
    changed: ChangedFeatures,
    weights: Float[Tensor, " vocab"],
) -> Float[Tensor, " changed"]:
    """First-order change of the base's weighted logits by each feature's merged value."""
    gradients = mlp_output_gradients(pair.base, base.input_ids, weights[None])
    outputs = changed.change[:, None] * changed.decoders(pair.base)
    return feature_scores(gradients, changed.coordinates, outputs)[0]


def scanned_effects(
    pair: ModelPair, base: PromptState, changed: ChangedFeatures, groups: TokenGroups
) -> Float[Tensor, " changed"]:
    """Change of the base's contrast when each feature alone is put at its merged value."""
    alone = [torch.arange(0), *torch.arange(len(changed)).split(1)]
    values = contrast(run_rows(pair.base, base, changed.plan(alone)), groups)
    assert values is not None
    return (values[1:] - values[0]).cpu()


@dataclass(frozen=True)
class _Measure:
    """Turns logits of the treated base into shares of the shift."""

    base_state: PromptState
    merged_state: PromptState
    groups: TokenGroups

    @property
    def contrast(self) -> InModel:
        return InModel(*(float(self.contrasts(s.logits[None])[0]) for s in self._states))

    @property
    def evil_mass(self) -> InModel:
        return InModel(*(float(evil_mass(s.logits, self.groups)) for s in self._states))

    @property
    def _states(self) -> tuple[PromptState, PromptState]:
        return self.base_state, self.merged_state

    def contrasts(self, logits: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"]:
        values = contrast(logits, self.groups)
        assert values is not None
        return values.cpu()

    def shares(self, logits: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"] | None:
        measured = self.contrast
        if measured.change < MIN_SHIFT:
            return None
        return (self.contrasts(logits) - measured.base) / measured.change


def _ordered(changed: ChangedFeatures, order: Int64[Tensor, " changed"]) -> ChangedFeatures:
    return ChangedFeatures(*(getattr(changed, f.name)[order] for f in fields(changed)))


def _cumulative(
    pair: ModelPair,
    measure: _Measure,
    changed: ChangedFeatures,
    order: Int64[Tensor, " changed"],
    pool: Pool,
    draws: tuple[int, int],
) -> tuple[CumulativePoint, ...]:
    """The curve, each point beside its random draws; all rows in one run."""
    n_random, seed = draws
    sizes = [k for k in STEPS if k < len(changed)] + [len(changed)] * bool(len(changed))
    subsets: list[Tensor] = []
    spans: list[tuple[int, int]] = []
    for k in sizes:
        random = matched_draws(pool, order[:k], n_draws=n_random, seed=seed + k)
        subsets += [order[:k], *(random if random is not None else ())]
        spans.append((len(subsets) - (0 if random is None else n_random), len(subsets)))
    logits = run_rows(pair.base, measure.base_state, changed.plan(subsets))
    contrasts, mass = measure.contrasts(logits), evil_mass(logits, measure.groups).cpu()
    shares = measure.shares(logits)

    def spread(values: Tensor | None, span: tuple[int, int]) -> Spread | None:
        return None if values is None or span[0] == span[1] else Spread.of(values[slice(*span)])

    return tuple(
        CumulativePoint(
            k=k,
            contrast=float(contrasts[span[0] - 1]),
            evil_mass=float(mass[span[0] - 1]),
            share=None if shares is None else float(shares[span[0] - 1]),
            random_contrast=spread(contrasts, span),
            random_share=spread(shares, span),
            random_evil_mass=spread(mass, span),
        )
        for k, span in zip(sizes, spans, strict=True)
    )


def _layers(
    pair: ModelPair, measure: _Measure, changed: ChangedFeatures
) -> tuple[float | None, ...]:
    layers = range(pair.base.sites.n_layers)
    subsets = [(changed.coordinates[:, 0] == layer).nonzero()[:, 0] for layer in layers]
    shares = measure.shares(run_rows(pair.base, measure.base_state, changed.plan(subsets)))
    return tuple(None for _ in layers) if shares is None else tuple(shares.tolist())


def _shares(pair: ModelPair, measure: _Measure, changed: ChangedFeatures) -> Shares:
    treated = component_logits(pair, measure.base_state, measure.merged_state, changed)
    names = [f.name for f in fields(treated)]
    shares = measure.shares(torch.stack([getattr(treated, name) for name in names]))
    values = [None] * len(names) if shares is None else shares.tolist()
    return Shares(**dict(zip(names, values, strict=True)))
