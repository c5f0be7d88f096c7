"""Transfer: features found on some prompts, tried on others, in other domains, and in the base.

On every prompt that is tried, for its own top k features (in-sample) and for the top k feature ids
of the other prompts:

    ablate in merged     the features chosen by greedy selection, every step really ablated on the
                         prompts they are found on, removed
    set in base, x m     the features by integrated mediation effect, set to m times their merged
                         activation

each beside matched random features under the very same change. Prompts of domains that features
were found on and of unseen ones are reported apart.

    experiment = run_transfer(Cases(work, judge), plan, LabelJudge())
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from em_circuits.experiments.cases import Case, Cases
from em_circuits.experiments.experiment import Cell, Experiment, Piece
from em_circuits.experiments.measure import (
    RANDOM,
    STEERED,
    UNSTEERED,
    Arm,
    Bench,
    Trial,
    random_arms,
)
from em_circuits.experiments.plan import TransferPlan
from em_circuits.experiments.summary import PromptLine, SteeringSummary, carry_out
from em_circuits.feature import Feature, FeatureId
from em_circuits.intervention import on_each
from em_circuits.interventions import (
    Intervention,
    Mode,
    Treatment,
    Where,
    greedy_ids,
    joint_scores,
)
from em_circuits.interventions.greedy_selection import ID_CANDIDATES
from em_circuits.interventions.matched_controls import Pool, matched_draws
from em_circuits.interventions.patching import ActivationDiff
from em_circuits.models import Model
from pivotal_tokens.errors import WorkFailed
from pivotal_tokens.judge.continuations import ContinuationJudge
from pivotal_tokens.schema import Prompt

FORMULA = 3
CHOSEN_ON = 16
"""Most prompts on which a greedy selection of ids measures its steps."""

From = Literal["own", "others"]
"""Features of the prompt itself (in-sample), or feature ids pooled over other prompts."""


@dataclass(frozen=True, eq=False)
class PairedCase:
    """A prompt under both models."""

    merged: Case
    base: Case
    changed: ActivationDiff
    effects: Float[Tensor, " changed"]
    """Integrated mediation effect of each changed feature, in logits of the contrast."""
    ablation: Float[Tensor, " active"]
    """Joint score of each feature active in merged: its part of the contrast when all that push
    towards evil are ablated together."""

    @property
    def prompt_id(self) -> str:
        return self.merged.prompt.prompt_id

    def to_set(self, k: int, ids: Sequence[FeatureId], where: From) -> Int64[Tensor, " chosen"]:
        """Which changed features are set: the k largest effects, or those of some ids."""
        if where == "own":
            return self.effects.argsort(descending=True, stable=True)[:k]
        wanted = set(ids)
        places = self.changed.coordinates.tolist()
        chosen = [i for i, (layer, _, feature) in enumerate(places) if (layer, feature) in wanted]
        return torch.tensor(chosen, dtype=torch.int64)


def run_transfer(
    cases: Cases, plan: TransferPlan, judge: ContinuationJudge
) -> Experiment[SteeringSummary]:
    """Carry out a transfer experiment, or what is left of it, and store its tables.

    Raises:
        RequestError: If the plan does not fit models and prompts, or its folder holds another.
        WorkFailed: If no prompt has a contrast.
    """
    sources, targets = cases.prompts(plan.found_on), cases.prompts(plan.tried_on)
    usable, left_out = cases.usable([*sources, *targets], partial(paired_case, cases))
    found_on, tried = (
        [usable[p.prompt_id] for p in prompts if p.prompt_id in usable]
        for prompts in (sources, targets)
    )
    if not found_on or not tried:
        raise WorkFailed(f"no prompt can be measured: {left_out[0].reason}")
    bench = Bench(cases.pair, judge, plan.rollouts)
    seen = {case.merged.domain for case in found_on}
    ablated: dict[tuple[str, ...], tuple[FeatureId, ...]] = {}

    def measured(case: PairedCase) -> Piece:
        others = [other for other in found_on if other.prompt_id != case.prompt_id]
        chosen_on = tuple(other.prompt_id for other in others)
        if chosen_on not in ablated:
            ablated[chosen_on] = ids_to_ablate(cases.pair.merged, others, plan.k)
        domain = "seen" if case.merged.domain in seen else "unseen"
        parts = [
            # Continuations of the un-steered, the steered and the first random arm.
            bench.measure(one, trial, every, sampled=range(min(3, len(every))))
            for one, trial, every in transfer_trials(
                cases, plan, case, others, ids=ablated[chosen_on], domain=domain
            )
        ]
        return Piece(
            rows=tuple(row for part in parts for row in part.rows),
            rollouts=tuple(row for part in parts for row in part.rollouts),
        )

    return carry_out(
        cases,
        plan,
        judge,
        [(case.prompt_id, partial(measured, case)) for case in tried],
        kind="transfer",
        formula=FORMULA,
        labels={prompt_id: case.merged.labels_key for prompt_id, case in usable.items()},
        detectors={},
        not_shown="that 'own' features, chosen on the very prompt, hold elsewhere ('others' "
        "were chosen on other prompts)",
        model="merged and base",
        features=f"top:{plan.k}",
        by="greedy (ablated in merged), integrated (set in base)",
        selected_on=f"the same prompt (own) or {len(found_on)} others",
        found_on=tuple(PromptLine.of(case.merged) for case in found_on),
        prompts=tuple(PromptLine.of(case.merged) for case in tried),
        left_out=left_out,
    )


def transfer_trials(
    cases: Cases,
    plan: TransferPlan,
    case: PairedCase,
    others: Sequence[PairedCase],
    *,
    ids: Sequence[FeatureId],
    domain: str,
) -> Iterator[tuple[Case, Trial, list[Arm]]]:
    """Every trial on one prompt, with its arms."""
    merged = cases.pair.merged

    def trial(
        source: From, name: str, value: float | None, features: str, items: tuple[Intervention, ...]
    ) -> Trial:
        cell = Cell(
            condition=f"{source}, {name}, {domain} domain",
            combination=source,
            mode=str(Mode.ABLATE if value is None else Mode.SET),
            value=value,
            unit="absolute" if value is None else "merged activation",
            place="found" if source == "own" else "prompt",
        )
        return Trial(cell, features, items)

    own = case.merged.choose(merged, f"top:{plan.k}")
    removed: dict[From, tuple[str, tuple[Intervention, ...]]] = {
        "own": (",".join(map(str, own)), on_each(own, Mode.ABLATE)),
        "others": (
            ",".join(f"{layer}/*/{feature}" for layer, feature in ids),
            on_each([(a, None, b) for a, b in ids], Mode.ABLATE, where=Where.PROMPT),
        ),
    }
    for source, (shown, items) in removed.items():
        if items:
            random = random_arms(
                merged, case.merged.state, items, draws=plan.random, seed=plan.seed
            )
            one = trial(source, "ablate in merged", None, shown, items)
            yield case.merged, one, [*_plain_arms(items), *random]
    pooled_ids = strongest_ids([(c.changed.coordinates, c.effects) for c in others], plan.k)
    norms = case.changed.decoder_norms(cases.pair.base)
    pool = Pool(case.changed.coordinates[:, 0], case.changed.change, norms)
    for source in get_args(From):
        chosen = case.to_set(plan.k, pooled_ids, source)
        draws = matched_draws(pool, chosen, n_draws=plan.random, seed=plan.seed)
        if draws is None:
            continue
        shown = ",".join(str(Feature(*p)) for p in case.changed.coordinates[chosen].tolist())
        for multiple in plan.multiples:
            items = _set(case.changed, chosen, multiple)
            random = [
                Arm(RANDOM, i, Treatment(interventions=_set(case.changed, draw, multiple)))
                for i, draw in enumerate(draws)
            ]
            one = trial(source, f"set in base x{multiple:g}", multiple, shown, items)
            yield case.base, one, [*_plain_arms(items), *random]


def ids_to_ablate(merged: Model, others: Sequence[PairedCase], k: int) -> tuple[FeatureId, ...]:
    """Ids by greedy selection on prompts, at most `CHOSEN_ON` of them, evenly spaced."""
    chosen_on = others[:: max(1, -(-len(others) // CHOSEN_ON))]
    scored = [(case.merged.state.active.cpu(), case.ablation) for case in others]
    prompts = [(case.merged.state, case.merged.contrast) for case in chosen_on]
    return greedy_ids(merged, prompts, strongest_ids(scored, ID_CANDIDATES), k=k)


def strongest_ids(
    scored: Sequence[tuple[Int64[Tensor, "_ 3"], Float[Tensor, " _"]]], k: int
) -> tuple[FeatureId, ...]:
    """The k feature ids with the largest mean over prompts of their summed scores."""
    totals: dict[FeatureId, float] = {}
    for places, scores in scored:
        for (layer, _, feature), score in zip(places.tolist(), scores.tolist(), strict=True):
            key = FeatureId(layer, feature)
            totals[key] = totals.get(key, 0.0) + score
    return tuple(sorted(totals, key=lambda key: (-totals[key], key))[:k])


def _plain_arms(items: tuple[Intervention, ...]) -> list[Arm]:
    return [Arm(UNSTEERED, 0, Treatment()), Arm(STEERED, 0, Treatment(interventions=items))]


def _set(
    changed: ActivationDiff, which: Int64[Tensor, " _"], multiple: float
) -> tuple[Intervention, ...]:
    return tuple(
        Intervention(
            layer=layer, position=position, feature=feature, mode=Mode.SET, value=multiple * value
        )
        for (layer, position, feature), value in zip(
            changed.coordinates[which].tolist(), changed.other[which].tolist(), strict=True
        )
    )


def paired_case(cases: Cases, prompt: Prompt) -> PairedCase:
    """A prompt under both models, with the figures that choose its features.

    Raises:
        RequestError: If it has no contrast.
    """
    merged, base = cases.of(prompt, "merged"), cases.of(prompt, "base")
    changed = ActivationDiff.between(base.state, merged.state)
    weights = merged.contrast.weights(len(base.state.logits))
    effects = changed.integrated_effects(cases.pair.base, base.state, weights)
    targets = torch.tensor(merged.contrast.token_ids)
    scores = joint_scores(cases.pair.merged, merged.state, merged.contrast, targets)
    ablation = (merged.contrast.over(targets) @ scores.double()).float()
    return PairedCase(merged, base, changed, effects, ablation)
