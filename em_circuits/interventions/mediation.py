"""Mediation: the share of the shift from base to merged that runs through features.

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

    mediation = mediate(pair, input_ids, words)
    mediation.cumulative, mediation.shares

Candidates are all (layer, position, feature id) whose activation differs, whether active in the
base, in merged, or in both. Position 0 has no features (circuit-tracer zeroes them), so whatever
the MLPs change there counts as error.

Beside it stands where the effect of a LoRA goes (`interventions.adapter_mediation`) and, if asked
for, which attention heads carry the shift (`interventions.heads`).
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Int64
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from em_circuits.contrast import Contrast
from em_circuits.feature import Feature
from em_circuits.interventions.adapter_mediation import AdapterMediation, adapter_effects
from em_circuits.interventions.heads import HeadMediation, mediate_heads
from em_circuits.interventions.matched_controls import (
    MIN_DRAWS,
    Pool,
    check_draws,
    matched_draws,
)
from em_circuits.interventions.patching import (
    MIN_SHIFT,
    ActivationPatch,
    Direction,
    InModels,
    Shares,
)
from em_circuits.models.pair import ModelPair, PromptLike, id_of
from em_circuits.spread import Spread
from em_circuits.table import FeatureTable
from em_circuits.target import Target
from pivotal_tokens.errors import RequestError

Order = Literal["integrated", "gradient", "scan"]
"""By which score features are taken."""

STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
"""Sizes of the cumulative curve; all changed features are its last point."""


class CumulativePoint(BaseModel, frozen=True):
    """The first k features, set together, beside matched random changed features.

    The random figures are None where fewer than k others are left.
    """

    k: int
    share: float | None
    evil_mass: float | None
    random_share: float | None
    random_low: float | None
    random_high: float | None
    random_evil_mass: float | None
    contrast: float = Field(exclude=True)
    """In logits."""
    random_contrast: Spread | None = Field(exclude=True)


class FeatureEffect(BaseModel, frozen=True):
    """A feature and its effect."""

    layer: int
    position: int
    feature: int
    effect: float
    """Change of the contrast by it alone, in logits."""


class MediatedFeature(FeatureEffect, frozen=True):
    """A feature whose activation differs between the models, and its effect in the treated one."""

    integrated: float
    """Its part of the change while all changed features move together, in logits."""


class Mediation(BaseModel, frozen=True):
    """What carries the shift of one prompt; the object of `features mediate --json`."""

    model_config = ConfigDict(ser_json_inf_nan="null")

    prompt_id: str = ""
    shift: InModels
    """Evil minus safe, in logits."""
    evil_mass: InModels | None
    """None for a target without evil continuations."""
    target: str | None = None
    """What stands for the contrast, where it is not one of next tokens."""
    unit: str = "logits"
    """Of the contrast: ``logits``, ``nats``, or ``activation`` along a direction."""
    features: tuple[MediatedFeature, ...]
    """In the order in which the curve takes them, up to its last step before all (10,000)."""
    direction: Direction
    effects_by: Literal["gradient", "scan"]
    ordered_by: Order
    n_changed: int
    cumulative: tuple[CumulativePoint, ...]
    layers: tuple[float | None, ...]
    """Share of each layer's changed features, set together."""
    shares: Shares
    adapter: AdapterMediation | None = None
    """Where the effect of the LoRA goes; null where `adapter_absent` says why."""
    adapter_absent: str | None = None
    heads: HeadMediation | None = None
    """Only if asked for."""

    @property
    def table(self) -> FeatureTable:
        """The features with their effects, in the order of the curve, up to 10,000: sums over it
        (``by_id``) leave out the rest. `patch_across_prompts` sums over all of them."""
        return FeatureTable.of(
            [Feature(f.layer, f.position, f.feature) for f in self.features],
            by=self.ordered_by,
            score="integrated" if self.ordered_by == "integrated" else "effect",
            effect=[f.effect for f in self.features],
            integrated=[f.integrated for f in self.features],
        )

    def __repr__(self) -> str:
        last = self.cumulative[-1].share if self.cumulative else None
        share = "no share" if last is None else f"all {self.n_changed} recover {last:.2f}"
        return (
            f"Mediation({self.direction}, shift {self.shift.base:.2f} -> {self.shift.merged:.2f} "
            f"{self.unit}, {share})"
        )

    def __str__(self) -> str:
        return repr(self)  # pydantic's prints every field

    def _repr_html_(self) -> str:
        def cell(value: float | None) -> str:
            return "" if value is None else f"{value:.3f}"

        head = "<tr><th>features set</th><th>share</th><th>random</th><th>evil mass</th></tr>"
        body = "".join(
            f"<tr><td>{p.k}</td><td>{cell(p.share)}</td><td>{cell(p.random_share)}</td>"
            f"<td>{cell(p.evil_mass)}</td></tr>"
            for p in self.cumulative
        )
        return f"<p>{html.escape(repr(self))}</p><table>{head}{body}</table>"


def mediate(
    pair: ModelPair,
    prompt: PromptLike,
    contrast: Contrast | Target,
    *,
    order: Order = "integrated",
    direction: Direction = "sufficiency",
    heads: bool = False,
    n_random: int = MIN_DRAWS,
    seed: int = 0,
) -> Mediation:
    """Set features of one model to the other's values, everything else free.

    With ``c`` the contrast of a model and ``c_set`` that of the treated model,

        sufficiency = (c_set - c_base) / (c_merged - c_base)          the base treated
        necessity   = (c_merged - c_set) / (c_merged - c_base)        the merged model treated

    and None where base and merged differ by less than `patching.MIN_SHIFT`.

    Args:
        pair: Base and merged model.
        prompt: A text, a prompt, or token ids with the beginning-of-sequence token in front.
        contrast: Evil and safe tokens; or any target, whose features are at the prompt's positions.
        order: By which score features are taken.
        direction: ``sufficiency`` treats the base, ``necessity`` the merged model.
        heads: Patch every attention head too.
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
    if heads and isinstance(contrast, Target):
        raise RequestError("heads are patched under a contrast of tokens, not under a target")
    input_ids = pair.input_ids(prompt)
    patch = ActivationPatch.of(pair, input_ids, contrast, direction)
    model, own, diff = patch.models[0], patch.caches[0], patch.diff
    if order == "scan":
        effects = diff.scanned_effects(model, own, contrast)
    else:
        effects = diff.gradient_effects(model, own, patch.measured)
    integrated = diff.integrated_effects(model, own, patch.measured)
    rank_by = integrated if order == "integrated" else effects
    # What lowers the merged model's contrast counts as much as what raises the base's.
    ranks = torch.argsort(rank_by * patch.sign, descending=True, stable=True)
    listed = ranks[: STEPS[-1]]  # of neurons there are a million
    adapter, absent = _adapter(pair, patch, n_random=n_random, seed=seed)
    by_head = None
    if heads:
        assert isinstance(contrast, Contrast)
        by_head = mediate_heads(
            pair, input_ids, contrast, direction=direction, n_random=n_random, seed=seed
        )
    rows = zip(
        diff.coordinates[listed].tolist(),
        effects[listed].tolist(),
        integrated[listed].tolist(),
        strict=True,
    )
    return Mediation(
        prompt_id=id_of(prompt),
        shift=patch.contrasts,
        evil_mass=patch.evil_mass,
        target=contrast.name if isinstance(contrast, Target) else None,
        unit=contrast.unit if isinstance(contrast, Target) else "logits",
        features=tuple(
            MediatedFeature(
                layer=layer, position=position, feature=feature, effect=effect, integrated=joint
            )
            for (layer, position, feature), effect, joint in rows
        ),
        direction=direction,
        effects_by="scan" if order == "scan" else "gradient",
        ordered_by=order,
        n_changed=len(diff),
        cumulative=_cumulative(patch, ranks, n_random=n_random, seed=seed),
        layers=patch.layer_shares(),
        shares=patch.component_shares(),
        adapter=adapter,
        adapter_absent=absent,
        heads=by_head,
    )


def _adapter(
    pair: ModelPair, patch: ActivationPatch, *, n_random: int, seed: int
) -> tuple[AdapterMediation | None, str | None]:
    """Where the adapter's effect goes, or why that cannot be told of this pair."""
    ids = patch.caches[0].input_ids
    try:
        effects = adapter_effects(pair, ids, patch.weights, n_random=n_random, seed=seed)
    except RequestError as error:
        return None, str(error)
    return AdapterMediation.of(effects), None


def _cumulative(
    patch: ActivationPatch, order: Int64[Tensor, " changed"], *, n_random: int, seed: int
) -> tuple[CumulativePoint, ...]:
    """The curve, each point beside its random draws; all rows in one run."""
    diff = patch.diff
    pool = Pool(diff.coordinates[:, 0], diff.change, diff.decoder_norms(patch.models[0]))
    n = len(order)
    sizes = [k for k in STEPS if k < n] + [n] * bool(n)
    subsets: list[Tensor] = []
    spans: list[slice] = []
    for k in sizes:
        random = matched_draws(pool, order[:k], n_draws=n_random, seed=seed + k)
        subsets += [order[:k], *(random if random is not None else ())]
        spans.append(slice(len(subsets) - (0 if random is None else n_random), len(subsets)))
    contrasts, mass = patch.figures(subsets)
    shares = None if patch.shift is None else patch.back(contrasts) / patch.shift

    def spread(values: Tensor | None, draws: slice) -> Spread | None:
        return None if values is None or draws.start == draws.stop else Spread.of(values[draws])

    points = []
    for k, draws in zip(sizes, spans, strict=True):
        random_share, random_mass = spread(shares, draws), spread(mass, draws)
        first = draws.start - 1
        points.append(
            CumulativePoint(
                k=k,
                contrast=float(contrasts[first]),
                evil_mass=None if mass is None else float(mass[first]),
                share=None if shares is None else float(shares[first]),
                random_contrast=spread(contrasts, draws),
                random_share=None if random_share is None else random_share.mean,
                random_low=None if random_share is None else random_share.low,
                random_high=None if random_share is None else random_share.high,
                random_evil_mass=None if random_mass is None else random_mass.mean,
            )
        )
    return tuple(points)


def pooled_share(mediations: Sequence[Mediation], k: int | None = None) -> float | None:
    """Share over prompts: the sum of what came back over the sum of the shifts.

    Args:
        mediations: Of several prompts; those whose shift is too small take no part.
        k: Features set together; None is every changed one.

    Returns:
        None if no prompt has a shift, or none has k changed features.
    """
    back, shift = 0.0, 0.0
    for mediation in mediations:
        points = [p for p in mediation.cumulative if k is None or p.k == k]
        if mediation.shift.change >= MIN_SHIFT and points:
            if mediation.direction == "sufficiency":
                back += points[-1].contrast - mediation.shift.base
            else:
                back += mediation.shift.merged - points[-1].contrast
            shift += mediation.shift.change
    return back / shift if shift else None
