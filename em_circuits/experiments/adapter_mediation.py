"""Where an adapter's effect goes, and which heads carry the shift, over prompts.

    adapter, absent = adapter_over_prompts(pair, subjects, n_random=20, seed=0)
    adapter.sentence, adapter.shares.straight
    heads = heads_over_prompts(pair, subjects, hold_out="category")

Shares are ratios of sums over prompts with bootstrap intervals over prompts. Heads that are set
together were chosen on other prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float64
from torch import Tensor

from em_circuits.contrast import Contrast
from em_circuits.experiments.shares import Share
from em_circuits.interventions.adapter_mediation import (
    PAIR_NAMES,
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
from em_circuits.interventions.patching_across_prompts import (
    HoldOut,
    Subject,
    by_id,
    id_tensors,
)
from em_circuits.models import ModelPair
from em_circuits.pieces import KeepTensors, in_memory
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
    keep: KeepTensors = in_memory,
) -> tuple[AdapterOverPrompts | None, str | None]:
    """Split the adapter's effect on every prompt.

    Args:
        pair: Base and merged model.
        subjects: Prompts with a shift.
        n_random: Random writes of each prompt.
        seed: Of draws and resamples.
        keep: Does the prompts, each a piece of the work.

    Returns:
        The result, or None and the reason why there is none.
    """

    def effects(subject: Subject) -> dict[str, Tensor]:
        try:
            return _effects(pair, subject, n_random, seed)
        except RequestError:
            return {}  # said again below, by whoever comes to it

    found = keep("adapter", [(s.prompt_id, partial(effects, s)) for s in subjects])
    try:
        for subject in [s for s, one in zip(subjects, found, strict=True) if not one]:
            _effects(pair, subject, n_random, seed)
    except RequestError as error:
        return None, str(error)
    shifts = torch.cat([one["shift"] for one in found])

    def share(values: Tensor) -> Share:
        return Share.of(values, shifts, seed)

    carriers, alone, held, pairs, random = (
        torch.stack([one[name] for one in found])
        for name in ("carriers", "alone", "held", "pairs", "random")
    )
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
    keep: KeepTensors = in_memory,
) -> HeadsOverPrompts:
    """Patch every head on every prompt, and together those that other prompts chose.

    Args:
        pair: Base and merged model.
        subjects: Prompts with a shift, at least two.
        hold_out: Heads are chosen on the other prompts, or on prompts of other categories.
        direction: Which model is treated where heads are set together.
        n_random: Random draws of as many other heads.
        seed: Of draws and resamples.
        keep: Does the prompts, each a piece of the work.
    """

    def effects(subject: Subject) -> dict[str, Tensor]:
        into_base, into_merged = _patches(pair, subject)
        nothing = into_base.rows([torch.arange(0)])
        return {
            "shift": into_merged.contrast(nothing) - into_base.contrast(nothing),
            "effects": torch.stack([into_base.each(), -into_merged.each()]),
        }

    found = keep("heads", [(s.prompt_id, partial(effects, s)) for s in subjects])
    shift: Float64[Tensor, " prompt"] = torch.cat([one["shift"] for one in found])
    values: Float64[Tensor, "prompt side layer head"] = torch.stack([x["effects"] for x in found])
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
        cumulative=_curve(
            pair, subjects, shares, shift, (hold_out, direction), (n_random, seed), keep
        ),
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
    drawn: tuple[int, int],
    keep: KeepTensors,
) -> tuple[HeadCurvePoint, ...]:
    (hold_out, direction), (n_random, seed) = how, drawn
    sign = 1 if direction == "sufficiency" else -1

    def together(i: int, others: list[int]) -> dict[str, Tensor]:
        patch = _patches(pair, subjects[i])[0 if direction == "sufficiency" else 1]
        found: dict[str, Tensor] = {}
        for one in patch.together(shares[others].mean(0), n_random, seed):
            found |= {f"{one.k} change": one.change, f"{one.k} random": one.random}
        return found

    chosen_on = {
        i: [
            j
            for j, other in enumerate(subjects)
            if j != i and (hold_out == "prompt" or other.category != subject.category)
        ]
        for i, subject in enumerate(subjects)
    }
    used = [i for i, others in chosen_on.items() if others]
    found = keep(
        "heads-together",
        [(subjects[i].prompt_id, partial(together, i, chosen_on[i])) for i in used],
    )
    points = []
    for k in sorted({int(name.partition(" ")[0]) for one in found for name in one}):
        change = torch.stack([one[f"{k} change"] for one in found])
        random = sign * torch.stack([one[f"{k} random"] for one in found])
        share = Share.of(sign * change, shift[used], seed)
        points.append(
            HeadCurvePoint(
                **share.model_dump(),
                k=k,
                random=Share.of_draws(random, shift[used]) if random.shape[1] else None,
            )
        )
    return tuple(points)


def _effects(pair: ModelPair, subject: Subject, n_random: int, seed: int) -> dict[str, Tensor]:
    """What is said of the adapter's effect on one prompt."""
    assert isinstance(subject.contrast, Contrast)
    weights = subject.contrast.weights(len(pair.base.next_logits(subject.input_ids[:1])))
    found = adapter_effects(pair, subject.input_ids, weights, n_random=n_random, seed=seed)
    ids, values = id_tensors(found.by_feature())
    split, measured = found.paths.integrated, found.measured
    return {
        "shift": torch.tensor([found.shift]).double(),
        "ids": ids,
        "features": values,
        "carriers": split.carriers,
        "heads": split.heads,
        **{name: getattr(measured, name) for name in ("alone", "held", "pairs", "random")},
    }


def _feature_shares(
    found: Sequence[dict[str, Tensor]], share: Callable[[Tensor], Share]
) -> tuple[FeatureShare, ...]:
    each = [by_id(one["ids"], one["features"]) for one in found]
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
    found: Sequence[dict[str, Tensor]], share: Callable[[Tensor], Share]
) -> tuple[HeadShare, ...]:
    values = torch.stack([one["heads"] for one in found])
    return tuple(
        HeadShare(**share(values[:, layer, head]).model_dump(), layer=layer, head=head)
        for layer, head in heads_by(values.sum(0).abs())[:LISTED]
    )
