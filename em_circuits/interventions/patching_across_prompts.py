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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from em_circuits.contrast import Contrast
from em_circuits.coordinates import row_keys, unique_rows
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
from em_circuits.pieces import KeepTensors, in_memory
from em_circuits.statistics import ratio_interval
from em_circuits.target import Target
from pivotal_tokens.errors import WorkFailed

HoldOut = Literal["prompt", "category"]
SIZES = (1, 2, 5, 10, 20, 50, 100, 200)
"""Feature ids set together; all of a prompt's are the last point."""
OWN = 20
"""Features that are set together where a prompt's own are."""


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
    own: Int64[Tensor, "feature 3"]
    """The prompt's own top 20 (layer, position, id): in-sample."""
    scan_pearson: float | None
    """Of the gradient with really setting each feature alone; None if that was not asked for."""

    def tensors(self) -> dict[str, Tensor]:
        """All but the subject, exactly."""
        ids, values = id_tensors(self.share)
        mass = self.evil_mass
        return {
            "contrast": _numbers([self.contrast.base, self.contrast.merged]),
            "evil_mass": _numbers([] if mass is None else [mass.base, mass.merged]),
            "ids": ids,
            "share": values,
            "own": self.own,
            "scan_pearson": _numbers([self.scan_pearson]),
        }

    @classmethod
    def of_tensors(cls, subject: Subject, found: dict[str, Tensor]) -> Effects:
        """What `tensors` gave of a subject."""
        base, merged = found["contrast"].tolist()
        mass = found["evil_mass"].tolist()
        return cls(
            subject,
            InModels(base=base, merged=merged),
            InModels(base=mass[0], merged=mass[1]) if mass else None,
            by_id(found["ids"], found["share"]),
            found["own"],
            *_known(found["scan_pearson"]),
        )


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
    """Logits that came back by `Effects.own`."""
    layers: tuple[float | None, ...]
    shares: Shares

    def tensors(self) -> dict[str, Tensor]:
        """All but the effects, exactly."""
        shares = self.shares
        return {
            "sizes": torch.tensor(self.sizes),
            "back": self.back,
            "random": self.random,
            "mass": self.mass,
            "own": _numbers([self.own]),
            "layers": _numbers(self.layers),
            "shares": _numbers([getattr(shares, name) for name in Shares.model_fields]),
        }

    @classmethod
    def of_tensors(cls, effects: Effects, found: dict[str, Tensor]) -> PromptResult:
        """What `tensors` gave of a prompt with these effects."""
        return cls(
            effects=effects,
            sizes=tuple(found["sizes"].tolist()),
            back=found["back"],
            random=found["random"],
            mass=found["mass"],
            own=float(found["own"]),
            layers=tuple(_known(found["layers"])),
            shares=Shares(**dict(zip(Shares.model_fields, _known(found["shares"]), strict=True))),
        )

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
    keep: KeepTensors = in_memory,
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
        keep: Does the prompts of a pass, each a piece of the work.

    Returns:
        One result per prompt whose shift is large enough, and the subjects left out.

    Raises:
        WorkFailed: If fewer than two prompts have a shift, or none of another category.
    """
    check_draws(n_random)
    known: list[Effects] = []
    left_out: list[Subject] = []

    def effects(subject: Subject) -> dict[str, Tensor]:
        found = effects_of(pair, subject, direction, scan=scan)
        return {} if found is None else found.tensors()

    for subject, found in zip(
        subjects,
        keep("effects", [(s.prompt_id, partial(effects, s)) for s in subjects]),
        strict=True,
    ):
        if found:
            known.append(Effects.of_tensors(subject, found))
        else:
            left_out.append(subject)
    chosen = {item.subject.prompt_id: _ranked(item, known, hold_out) for item in known}
    if len(known) < 2 or not any(chosen.values()):
        other = "prompts" if hold_out == "prompt" else "categories with prompts"
        raise WorkFailed(
            f"{len(known)} of {len(subjects)} prompts have a shift of {MIN_SHIFT} or more: "
            f"choosing features elsewhere takes at least two {other}"
        )
    usable = [item for item in known if chosen[item.subject.prompt_id]]

    def measured(item: Effects) -> dict[str, Tensor]:
        subject = item.subject
        patch = ActivationPatch.of(pair, subject.input_ids, subject.contrast, direction)
        ranked = chosen[subject.prompt_id]
        result = _measured(patch, item, ranked, sizes=sizes, n_random=n_random, seed=seed)
        return result.tensors()

    pieces = [(item.subject.prompt_id, partial(measured, item)) for item in usable]
    results = map(PromptResult.of_tensors, usable, keep("patches", pieces))
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
    ids, of = _ids(diff.coordinates)
    values = torch.zeros(len(ids), dtype=torch.float64).index_add_(0, of, integrated.double())
    share = dict(zip(ids, (values / shift).tolist(), strict=True))
    own = diff.coordinates[integrated.argsort(descending=True, stable=True)[:OWN]]
    return Effects(subject, patch.contrasts, patch.evil_mass, share, own, pearson)


def id_tensors(
    by_feature: Mapping[FeatureId, float],
) -> tuple[Int64[Tensor, "id 2"], Float64[Tensor, " id"]]:
    """(layer, feature id) and value of each; `by_id` reads them back."""
    ids = torch.tensor([list(key) for key in by_feature], dtype=torch.int64).view(-1, 2)
    return ids, _numbers(list(by_feature.values()))


def by_id(
    coordinates: Int64[Tensor, "feature _"], values: Float64[Tensor, " feature"]
) -> dict[FeatureId, float]:
    """Sums over positions of features (layer, ..., feature id)."""
    ids, of = _ids(coordinates)
    sums = torch.zeros(len(ids), dtype=torch.float64).index_add_(0, of, values.double())
    return dict(zip(ids, sums.tolist(), strict=True))


def _numbers(values: Sequence[float | None]) -> Float64[Tensor, " _"]:
    """NaN stands for None."""
    return torch.tensor([torch.nan if v is None else v for v in values], dtype=torch.float64)


def _known(values: Float64[Tensor, " _"]) -> list[float | None]:
    return [None if v != v else v for v in values.tolist()]


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


def _ids(
    coordinates: Int64[Tensor, "feature _"],
) -> tuple[list[FeatureId], Int64[Tensor, " feature"]]:
    """The ids of features (layer, ..., feature id), sorted, and the number of each one's."""
    distinct, of = unique_rows(coordinates[:, [0, -1]])
    return [FeatureId(*one) for one in distinct.tolist()], of


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
    ids, of = _ids(patch.diff.coordinates)
    number = {key: i for i, key in enumerate(ids)}
    # Place of each id among the ranked.
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
            inside = torch.zeros(len(ids), dtype=torch.bool)
            inside[part] = True
            subsets.append(inside[of].nonzero()[:, 0])
    values, masses = patch.figures([*subsets, _places(patch.diff.coordinates, effects.own)])
    back = patch.back(values).double()
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


def _places(
    coordinates: Int64[Tensor, "changed 3"], wanted: Int64[Tensor, "feature 3"]
) -> Int64[Tensor, " _"]:
    """Rows of `coordinates` that are wanted; what another machine saw change may not have here."""
    here, there = row_keys(coordinates, wanted)
    return torch.isin(here, there).nonzero()[:, 0]


def _pool(patch: ActivationPatch, of: Int64[Tensor, " changed"], n_ids: int) -> Pool:
    """Ids to draw from: alike are those of one layer, sum of |change| over positions and norm."""
    amount = torch.zeros(n_ids).index_add_(0, of, patch.diff.change.abs())
    norms = torch.zeros(n_ids)
    norms[of] = patch.diff.decoder_norms(patch.models[0])
    layers = torch.zeros(n_ids, dtype=torch.int64)
    layers[of] = patch.diff.coordinates[:, 0]
    return Pool(layers, amount, norms)
