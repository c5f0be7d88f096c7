"""Patching across prompts: features that carry the shift where they were not chosen.

Features are keyed by (layer, feature id) and set wherever they differ between the models. On
each prompt the ids are ranked by their mean share over the *other* prompts (or those of other
categories): integrated effect, summed over positions, divided by that prompt's shift. Then the top
k ids are really set to the other model's values, beside matched random ids. Over prompts a share is
a ratio of sums, its interval a bootstrap over prompts.

    results, left_out = patch_across_prompts(pair, subjects, hold_out="category")
    pooled(results, [r.share(20) for r in results], seed=0)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from em_circuits.contrast import Contrast
from em_circuits.feature import FeatureId
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
from em_circuits.models import ModelPair
from em_circuits.progress import Progress, no_progress, tracked
from em_circuits.statistics import ratio_interval
from em_circuits.target import Target
from pivotal_tokens.errors import WorkFailed

HoldOut = Literal["prompt", "category"]
SIZES = (1, 2, 5, 10, 20, 50, 100, 200)
"""Feature ids set together; all of a prompt's are the last point."""


@dataclass(frozen=True)
class Subject:
    """One prompt, and what is measured on it: the contrast of its labels, or a target."""

    prompt_id: str
    category: str | None
    input_ids: Int[Tensor, " pos"]
    contrast: Contrast | Target


@dataclass(frozen=True)
class Effects:
    """What a prompt says about feature ids, before anything is set."""

    subject: Subject
    contrast: InModels
    evil_mass: InModels | None
    """None for a target that has none."""
    share: dict[FeatureId, float]
    """Integrated effect of an id at all positions, as a share of the shift."""
    scan_pearson: float | None
    """Of the gradient with really setting each feature alone; None if that was not asked for."""


@dataclass(frozen=True)
class PromptResult:
    """What setting ids that other prompts chose does on one prompt."""

    effects: Effects
    sizes: tuple[int, ...]
    """Ids set together; the last is every changed one."""
    back: Float64[Tensor, " size"]
    """Logits of the contrast that came back (or went away)."""
    random: Float64[Tensor, "size draw"]
    """The same for matched random ids; NaN where there were too few."""
    mass: Float64[Tensor, " size"]
    """Evil mass of the treated model; NaN for a target that has none."""
    own: float
    """Logits that came back by the prompt's own top 20 (layer, position, id): in-sample."""
    layers: tuple[float | None, ...]
    shares: Shares

    @property
    def shift(self) -> float:
        return self.effects.contrast.change

    def at(self, k: int | None) -> int | None:
        """Index of a size; None stands for all ids, and None comes where there are not so many."""
        if k is None:
            return len(self.sizes) - 1
        return self.sizes.index(k) if k in self.sizes[:-1] else None

    def share(self, k: int | None) -> float | None:
        """Share of the shift that k ids bring back."""
        i = self.at(k)
        return None if i is None else float(self.back[i]) / self.shift

    def random_shares(self, k: int | None) -> Float64[Tensor, " draw"] | None:
        """The same for each random draw."""
        i = self.at(k)
        return None if i is None or self.random[i].isnan().any() else self.random[i] / self.shift


def patch_across_prompts(
    pair: ModelPair,
    subjects: Sequence[Subject],
    *,
    hold_out: HoldOut = "prompt",
    direction: Direction = "sufficiency",
    scan: bool = False,
    sizes: Sequence[int] = SIZES,
    n_random: int = MIN_DRAWS,
    seed: int = 0,
    progress: Progress = no_progress,
) -> tuple[tuple[PromptResult, ...], tuple[Subject, ...]]:
    """Measure every prompt with ids that others chose.

    Args:
        pair: Base and merged model.
        subjects: Labelled prompts with a contrast.
        hold_out: Ids are chosen on the other prompts, or on prompts of other categories.
        direction: Which model is treated.
        scan: Really set each feature alone too, to see how well the gradient predicts that.
        sizes: Feature ids set together; all of them are measured in any case.
        n_random: Matched random draws per size.
        seed: Of the draws.
        progress: Called after every prompt of a pass, with the name of the pass.

    Returns:
        One result per prompt whose shift is large enough, and the subjects left out.

    Raises:
        WorkFailed: If fewer than two prompts have a shift, or none of another category.
    """
    check_draws(n_random)
    known: list[Effects] = []
    left_out: list[Subject] = []
    for subject in tracked(subjects, "effects", progress):
        effects = effects_of(pair, subject, direction, scan=scan)
        if effects is None:
            left_out.append(subject)
        else:
            known.append(effects)
    chosen = {item.subject.prompt_id: _ranked(item, known, hold_out) for item in known}
    if len(known) < 2 or not any(chosen.values()):
        other = "prompts" if hold_out == "prompt" else "categories with prompts"
        raise WorkFailed(
            f"{len(known)} of {len(subjects)} prompts have a shift of {MIN_SHIFT} or more: "
            f"choosing features elsewhere takes at least two {other}"
        )
    usable = [item for item in known if chosen[item.subject.prompt_id]]
    results = [
        _measured(
            ActivationPatch.of(pair, item.subject.input_ids, item.subject.contrast, direction),
            item,
            chosen[item.subject.prompt_id],
            sizes=sizes,
            n_random=n_random,
            seed=seed,
        )
        for item in tracked(usable, "patches", progress)
    ]
    return tuple(results), tuple(left_out)


def effects_of(
    pair: ModelPair, subject: Subject, direction: Direction, *, scan: bool = False
) -> Effects | None:
    """Shares of the feature ids of one prompt; None if its shift is too small to have any."""
    patch = ActivationPatch.of(pair, subject.input_ids, subject.contrast, direction)
    shift = patch.shift
    if shift is None:
        return None
    model, cache, diff = patch.models[0], patch.caches[0], patch.diff
    integrated = diff.integrated_effects(model, cache, patch.measured) * patch.sign
    pearson = None
    if scan and len(diff) > 1:
        both = (
            diff.gradient_effects(model, cache, patch.measured),
            diff.scanned_effects(model, cache, subject.contrast),
        )
        pearson = float(torch.corrcoef(torch.stack(both))[0, 1])
    share: dict[FeatureId, float] = {}
    for key, value in zip(_keys(patch), integrated.tolist(), strict=True):
        share[key] = share.get(key, 0.0) + value / shift
    return Effects(subject, patch.contrasts, patch.evil_mass, share, pearson)


def mean_shares(effects: Sequence[Effects]) -> dict[FeatureId, float]:
    """Mean over prompts of each id's share; 0 where it does not change."""
    total: dict[FeatureId, float] = {}
    for item in effects:
        for key, value in item.share.items():
            total[key] = total.get(key, 0.0) + value / len(effects)
    return total


def pooled(
    results: Sequence[PromptResult], values: Sequence[float | None], *, seed: int
) -> tuple[float, tuple[float, float] | None] | None:
    """Ratio of sums of what came back, given per prompt as shares, and its interval."""
    known = [(r, v) for r, v in zip(results, values, strict=True) if v is not None]
    if not known:
        return None
    shift: Float[Tensor, " prompt"] = torch.tensor([r.shift for r, _ in known]).double()
    back = torch.tensor([v for _, v in known]).double() * shift
    return float(back.sum() / shift.sum()), ratio_interval(back, shift, seed=seed)


def _keys(patch: ActivationPatch) -> list[FeatureId]:
    return [FeatureId(layer, feature) for layer, _, feature in patch.diff.coordinates.tolist()]


def _ranked(item: Effects, known: Sequence[Effects], hold_out: HoldOut) -> list[FeatureId]:
    """Ids by their mean share over prompts that this one may learn from."""
    mine = item.subject
    others = [
        other
        for other in known
        if other.subject.prompt_id != mine.prompt_id
        and (hold_out == "prompt" or other.subject.category != mine.category)
    ]
    means = mean_shares(others)
    return sorted(means, key=lambda key: (-means[key], key))


def _measured(
    patch: ActivationPatch,
    effects: Effects,
    ranked: Sequence[FeatureId],
    *,
    sizes: Sequence[int],
    n_random: int,
    seed: int,
) -> PromptResult:
    """Every size and draw of one prompt, in one run."""
    keys = _keys(patch)
    ids = sorted(set(keys))
    number = {key: i for i, key in enumerate(ids)}
    # of[c]: number of the id that changed feature c has; rank[i]: place of id i among the ranked.
    of = torch.tensor([number[key] for key in keys])
    rank = torch.full((len(ids),), len(ranked))
    for place, key in enumerate(ranked):
        if key in number:
            rank[number[key]] = place
    pool = _pool(patch, of, len(ids))
    sizes = [*(k for k in sizes if k < len(ids)), len(ids)]
    subsets: list[Tensor] = []
    spans: list[tuple[int, int]] = []
    for k in sizes:
        every = k == len(ids)
        chosen = torch.arange(len(ids)) if every else (rank < k).nonzero()[:, 0]
        random = None
        if not every:
            random = matched_draws(pool, chosen, n_draws=n_random, seed=seed + k)
        spans.append((len(subsets), 0 if random is None else n_random))
        for part in (chosen, *(random if random is not None else ())):
            subsets.append(torch.isin(of, part).nonzero()[:, 0])
    own = patch.sign * patch.diff.integrated_effects(
        patch.models[0], patch.caches[0], patch.measured
    )
    logits = patch.run([*subsets, own.argsort(descending=True, stable=True)[:20]])
    back = patch.recovered(logits).double()
    masses = patch.masses(logits)
    mass = torch.full_like(back, torch.nan) if masses is None else masses.double()
    random_back = torch.full((len(spans), n_random), torch.nan, dtype=torch.float64)
    for i, (start, count) in enumerate(spans):
        random_back[i, :count] = back[start + 1 : start + 1 + count]
    first = torch.tensor([start for start, _ in spans])
    return PromptResult(
        effects=effects,
        sizes=tuple(sizes),
        back=back[first],
        random=random_back,
        mass=mass[first],
        own=float(back[-1]),
        layers=patch.layer_shares(),
        shares=patch.component_shares(),
    )


def _pool(patch: ActivationPatch, of: Int64[Tensor, " changed"], n_ids: int) -> Pool:
    """Ids to draw from: alike are those of one layer, sum of |change| over positions and norm."""
    amount = torch.zeros(n_ids).index_add_(0, of, patch.diff.change.abs())
    norms = torch.zeros(n_ids)
    norms[of] = patch.diff.decoder_norms(patch.models[0])
    layers = torch.zeros(n_ids, dtype=torch.int64)
    layers[of] = patch.diff.coordinates[:, 0]
    return Pool(layers, amount, norms)
