"""Which features carry the shift from base to merged?

*Sufficiency*: in the base, features are set to the activation they have in the merged model,
everything else running free, and the share of the shift of the evil-minus-safe contrast that comes
back is

    share = (contrast with the features set - contrast of base) / (contrast of merged - of base)

*Necessity*: in the merged model they are set to the base's values, and the share is what goes away.
Features are taken in the order of one of three scores:

* `integrated`: what each contributes while all changed features move together
  (`interventions.integrated`), the default: a feature may do its work only beside others;
* `gradient`: ``(a_merged - a_base) * W_dec . d contrast / d mlp_out``, the undisturbed model's;
* `scan`: each is really set alone.

    mediation = mediate(pair, input_ids, groups)
    mediation.cumulative, mediation.shares

Candidates are all (layer, position, feature id) whose activation differs, whether active in the
base, in merged, or in both. Position 0 has no features (circuit-tracer zeroes them), so whatever
the MLPs change there counts as error.
"""

from __future__ import annotations

from dataclasses import fields
from typing import get_args

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from em_circuits.contrast import Contrast
from em_circuits.graphs.gradient import feature_scores, mlp_output_gradients
from em_circuits.interventions.changed import ChangedFeatures
from em_circuits.interventions.controls import MIN_DRAWS, Pool, check_draws, matched_draws
from em_circuits.interventions.engine import run_rows
from em_circuits.interventions.integrated import integrated_effects
from em_circuits.interventions.mediation_result import (
    CumulativePoint,
    Direction,
    Mediation,
    Order,
)
from em_circuits.interventions.state import PromptState
from em_circuits.interventions.transplant import Transplant, component_shares, layer_shares
from em_circuits.models import Model, ModelPair
from em_circuits.statistics import Spread
from pivotal_tokens.errors import RequestError

STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
"""Sizes of the cumulative curve; all changed features are its last point."""


def mediate(
    pair: ModelPair,
    input_ids: Int[Tensor, " pos"],
    groups: Contrast,
    *,
    order: Order = "integrated",
    direction: Direction = "sufficiency",
    n_random: int = MIN_DRAWS,
    seed: int = 0,
) -> Mediation:
    """Set features of one model to the other's values and see what comes back, or goes away.

    Args:
        pair: Base and merged model.
        input_ids: One prompt, with its beginning-of-sequence token.
        groups: Evil and safe tokens.
        order: By which score features are taken.
        direction: ``sufficiency`` treats the base, ``necessity`` the merged model.
        n_random: Matched random draws per point of the curve, at least 20.
        seed: Of the draws.

    Raises:
        RequestError: If no token is evil or none is safe ("no contrast"), or there is no such
            order or direction.
    """
    for given, known in ((order, Order), (direction, Direction)):
        if given not in get_args(known):
            raise RequestError(f"{given!r}: choose one of {', '.join(get_args(known))}")
    check_draws(n_random)
    measure = Transplant.of(pair, input_ids, groups, direction)
    model, own, changed = measure.models[0], measure.states[0], measure.changed
    weights = groups.weights(len(own.logits))
    if order == "scan":
        effects = scanned_effects(model, own, changed, groups)
    else:
        effects = gradient_effects(model, own, changed, weights)
    joint = joint_effects(model, own, changed, weights)
    rank_by = joint if order == "integrated" else effects
    # What lowers the merged model's contrast counts as much as what raises the base's.
    ranks = torch.argsort(rank_by * measure.sign, descending=True, stable=True)
    norms = changed.decoders(model).norm(dim=1)
    pool = Pool(changed.coordinates[:, 0], changed.change, norms)
    return Mediation(
        direction=direction,
        contrast=measure.contrast,
        evil_mass=measure.evil_mass,
        changed=_ordered(changed, ranks),
        effects=effects[ranks],
        effects_by="scan" if order == "scan" else "gradient",
        integrated=joint[ranks],
        ordered_by=order,
        cumulative=_cumulative(measure, ranks, pool, (n_random, seed)),
        layers=layer_shares(measure),
        shares=component_shares(measure),
    )


def gradient_effects(
    model: Model, state: PromptState, changed: ChangedFeatures, weights: Float[Tensor, " vocab"]
) -> Float[Tensor, " changed"]:
    """First-order change of the weighted logits by each feature's value in the other model."""
    gradients = mlp_output_gradients(model, state.input_ids, weights[None])
    outputs = changed.change[:, None] * changed.decoders(model)
    return feature_scores(gradients, changed.coordinates, outputs)[0]


def joint_effects(
    model: Model, state: PromptState, changed: ChangedFeatures, weights: Float[Tensor, " vocab"]
) -> Float[Tensor, " changed"]:
    """Change of the weighted logits by each feature while all move to the other model's values."""
    return integrated_effects(
        model, state.input_ids, changed.coordinates, changed.own, changed.other, weights[None]
    )[0]


def scanned_effects(
    model: Model, state: PromptState, changed: ChangedFeatures, groups: Contrast
) -> Float[Tensor, " changed"]:
    """Change of the contrast when each feature alone is put at the other model's value."""
    alone = [torch.arange(0), *torch.arange(len(changed)).split(1)]
    values = groups.value(run_rows(model, state, changed.plan(alone)))
    assert values is not None
    return (values[1:] - values[0]).cpu()


def _ordered(changed: ChangedFeatures, order: Int64[Tensor, " changed"]) -> ChangedFeatures:
    return ChangedFeatures(*(getattr(changed, f.name)[order] for f in fields(changed)))


def _cumulative(
    measure: Transplant,
    order: Int64[Tensor, " changed"],
    pool: Pool,
    draws: tuple[int, int],
) -> tuple[CumulativePoint, ...]:
    """The curve, each point beside its random draws; all rows in one run."""
    n_random, seed = draws
    n = len(order)
    sizes = [k for k in STEPS if k < n] + [n] * bool(n)
    subsets: list[Tensor] = []
    spans: list[tuple[int, int]] = []
    for k in sizes:
        random = matched_draws(pool, order[:k], n_draws=n_random, seed=seed + k)
        subsets += [order[:k], *(random if random is not None else ())]
        spans.append((len(subsets) - (0 if random is None else n_random), len(subsets)))
    logits = measure.run(subsets)
    contrasts, mass = measure.contrasts(logits), measure.groups.evil_mass(logits).cpu()
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
