"""Where an adapter's effect goes, and which heads carry the shift, over prompts.

    adapter, absent = adapter_over_prompts(pair, subjects, n_random=20, seed=0)
    adapter.sentence, adapter.shares.straight
    heads = heads_over_prompts(pair, subjects, hold_out="category")

Shares are ratios of sums over prompts with bootstrap intervals over prompts. Heads that are set
together were chosen on other prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from em_circuits.contrast import Contrast
from em_circuits.experiments.shares import Share
from em_circuits.interventions.adapter_mediation import (
    PAIR_NAMES,
    AdapterEffects,
    Carriers,
    Held,
    Measured,
    Pairwise,
    adapter_effects,
    sentence_of,
)
from em_circuits.interventions.adapter_paths import CARRIERS
from em_circuits.interventions.adapter_shares import FIGURES, RESPONDING
from em_circuits.interventions.heads import HeadPatch, PatchedHead, heads_by
from em_circuits.interventions.patching import Direction
from em_circuits.interventions.patching_across_prompts import HoldOut, Subject
from em_circuits.models import ModelPair
from em_circuits.progress import Progress, no_progress, tracked
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen

LISTED = 30
"""Features, and heads, that are listed."""
_NAMED = 3


class CarriersOverPrompts(Carriers[Share]):
    """Shares of the shift by what reads the adapter's writes first; they sum to 1."""


class AloneOverPrompts(Measured[Share]):
    """Shares of the shift when only this responds to the adapter's writes, really measured."""


class HeldOverPrompts(Held[Share]):
    """Shares of the shift that go away when this alone does not respond, really measured."""


class PairsOverPrompts(Pairwise[Share]):
    """Shares that two kinds have together beyond each alone, really measured."""


class FeatureShare(Share):
    """A feature id that reads the adapter's writes first, over all positions."""

    layer: int
    feature: int


class HeadShare(Share):
    """A head that reads the adapter's writes first."""

    layer: int
    head: int


class AdapterOverPrompts(Frozen):
    """Where the effect of a LoRA goes, over prompts."""

    prompts: int
    shares: CarriersOverPrompts
    alone: AloneOverPrompts
    held: HeldOverPrompts
    interaction: Share
    """What *together* has beyond the sum of the four alone: paths through several of them."""
    pairs: PairsOverPrompts
    """What of the interaction is between two."""
    random: AloneOverPrompts
    """`alone` for writes of equal size into random directions: mean and middle 95 % of draws."""
    features: tuple[FeatureShare, ...]
    """The largest first."""
    heads: tuple[HeadShare, ...]
    """The largest first."""
    least_complete: float
    """Least over prompts: sum of the parts over the measured shift."""
    most_complete: float
    sentence: str


class HeadOverPrompts(PatchedHead[Share]):
    """A head, really patched alone on every prompt."""


class HeadCurvePoint(Share):
    """The share that k heads, chosen on other prompts, carry together."""

    k: int
    random: Share | None
    """As many random others: mean and middle 95 % of draws."""


class HeadsOverPrompts(Frozen):
    """Which attention heads carry the shift, over prompts."""

    heads: tuple[HeadOverPrompts, ...]
    """The largest first."""
    cumulative: tuple[HeadCurvePoint, ...]


def adapter_over_prompts(
    pair: ModelPair,
    subjects: Sequence[Subject],
    *,
    n_random: int,
    seed: int,
    progress: Progress = no_progress,
) -> tuple[AdapterOverPrompts | None, str | None]:
    """Split the adapter's effect on every prompt.

    Args:
        pair: Base and merged model.
        subjects: Prompts with a shift.
        n_random: Random writes of each prompt.
        seed: Of draws and resamples.
        progress: Called after every prompt.

    Returns:
        The result, or None and the reason why there is none.
    """
    found: list[AdapterEffects] = []
    try:
        for subject in tracked(subjects, "adapter", progress):
            assert isinstance(subject.contrast, Contrast)
            weights = subject.contrast.weights(len(pair.base.next_logits(subject.input_ids[:1])))
            found.append(
                adapter_effects(pair, subject.input_ids, weights, n_random=n_random, seed=seed)
            )
    except RequestError as error:
        return None, str(error)
    shifts = torch.tensor([one.shift for one in found]).double()

    def share(values: Tensor) -> Share:
        return Share.of(values, shifts, seed)

    carriers = _stacked(found, lambda one: one.paths.integrated.carriers)
    alone = _stacked(found, lambda one: one.measured.alone)
    held = _stacked(found, lambda one: one.measured.held)
    pairs = _stacked(found, lambda one: one.measured.pairs)
    random = _stacked(found, lambda one: one.measured.random)
    parts = [share(column) for column in carriers.T]
    features, heads = _feature_shares(found, share), _head_shares(found, share)
    complete = (carriers.sum(1) / shifts).tolist()
    return AdapterOverPrompts(
        prompts=len(found),
        shares=CarriersOverPrompts(**dict(zip(CARRIERS, parts, strict=True))),
        alone=AloneOverPrompts(
            **{name: share(column) for name, column in zip(FIGURES, alone.T, strict=True)},
        ),
        interaction=share(alone[:, -1] - alone[:, :-1].sum(1)),
        held=HeldOverPrompts(
            **{name: share(column) for name, column in zip(RESPONDING, held.T, strict=True)}
        ),
        pairs=PairsOverPrompts(
            **{name: share(column) for name, column in zip(PAIR_NAMES, pairs.T, strict=True)}
        ),
        random=AloneOverPrompts(
            **{name: Share.of_draws(random[..., i], shifts) for i, name in enumerate(FIGURES)},
        ),
        features=features,
        heads=heads,
        least_complete=min(complete),
        most_complete=max(complete),
        sentence=sentence_of(
            parts,
            [f"{one.layer}/{one.feature}" for one in features[:_NAMED]],
            [f"{one.layer}.{one.head}" for one in heads[:_NAMED]],
        ),
    ), None


def heads_over_prompts(
    pair: ModelPair,
    subjects: Sequence[Subject],
    *,
    hold_out: HoldOut = "prompt",
    direction: Direction = "sufficiency",
    n_random: int = 20,
    seed: int = 0,
    progress: Progress = no_progress,
) -> HeadsOverPrompts:
    """Patch every head on every prompt, and together those that other prompts chose.

    Args:
        pair: Base and merged model.
        subjects: Prompts with a shift, at least two.
        hold_out: Heads are chosen on the other prompts, or on prompts of other categories.
        direction: Which model is treated where heads are set together.
        n_random: Random draws of as many other heads.
        seed: Of draws and resamples.
        progress: Called after every prompt.
    """
    effects, shifts = [], []
    for subject in tracked(subjects, "heads", progress):
        into_base, into_merged = _patches(pair, subject)
        nothing = into_base.rows([torch.arange(0)])
        shifts.append(into_merged.contrast(nothing) - into_base.contrast(nothing))
        effects.append(torch.stack([into_base.each(), -into_merged.each()]))
    shift: Float64[Tensor, " prompt"] = torch.cat(shifts)
    values: Float64[Tensor, "prompt side layer head"] = torch.stack(effects)
    side = 0 if direction == "sufficiency" else 1
    shares = values[:, side] / shift[:, None, None]
    return HeadsOverPrompts(
        heads=tuple(
            HeadOverPrompts(
                layer=layer,
                head=head,
                alone=Share.of(values[:, 0, layer, head], shift, seed),
                without=Share.of(values[:, 1, layer, head], shift, seed),
            )
            for layer, head in heads_by(shares.mean(0))[:LISTED]
        ),
        cumulative=_curve(pair, subjects, shares, shift, (hold_out, direction), n_random, seed),
    )


def _patches(pair: ModelPair, subject: Subject) -> tuple[HeadPatch, HeadPatch]:
    base, merged = pair.models
    assert isinstance(subject.contrast, Contrast)
    return (
        HeadPatch.of(base, merged, subject.input_ids, subject.contrast),
        HeadPatch.of(merged, base, subject.input_ids, subject.contrast),
    )


def _curve(
    pair: ModelPair,
    subjects: Sequence[Subject],
    shares: Float64[Tensor, "prompt layer head"],
    shift: Float64[Tensor, " prompt"],
    how: tuple[HoldOut, Direction],
    n_random: int,
    seed: int,
) -> tuple[HeadCurvePoint, ...]:
    hold_out, direction = how
    sign = 1 if direction == "sufficiency" else -1
    found, used = [], []
    for i, subject in enumerate(subjects):
        others = [
            j
            for j, other in enumerate(subjects)
            if j != i and (hold_out == "prompt" or other.category != subject.category)
        ]
        if not others:
            continue
        patch = _patches(pair, subject)[0 if direction == "sufficiency" else 1]
        found.append(patch.together(shares[others].mean(0), n_random, seed))
        used.append(i)
    points = []
    for each in zip(*found, strict=True):  # of one size, a prompt each
        random = sign * torch.stack([one.random for one in each])
        share = Share.of(sign * torch.stack([one.change for one in each]), shift[used], seed)
        points.append(
            HeadCurvePoint(
                **share.model_dump(),
                k=each[0].k,
                random=Share.of_draws(random, shift[used]) if random.shape[1] else None,
            )
        )
    return tuple(points)


def _stacked(
    found: Sequence[AdapterEffects], read: Callable[[AdapterEffects], Tensor]
) -> Float64[Tensor, "prompt ..."]:
    return torch.stack([read(one) for one in found])


def _feature_shares(
    found: Sequence[AdapterEffects], share: Callable[[Tensor], Share]
) -> tuple[FeatureShare, ...]:
    each = [one.by_feature() for one in found]
    totals = {key: sum(one.get(key, 0.0) for one in each) for one in each for key in one}
    largest = sorted(totals, key=lambda key: -abs(totals[key]))[:LISTED]
    return tuple(
        FeatureShare(
            **share(torch.tensor([one.get(key, 0.0) for one in each]).double()).model_dump(),
            layer=key.layer,
            feature=key.feature,
        )
        for key in largest
    )


def _head_shares(
    found: Sequence[AdapterEffects], share: Callable[[Tensor], Share]
) -> tuple[HeadShare, ...]:
    values = _stacked(found, lambda one: one.paths.integrated.heads)
    return tuple(
        HeadShare(**share(values[:, layer, head]).model_dump(), layer=layer, head=head)
        for layer, head in heads_by(values.sum(0).abs())[:LISTED]
    )
