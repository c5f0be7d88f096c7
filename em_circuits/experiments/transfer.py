"""Do features found on some prompts work on others, in other domains, and in the base?

On every prompt that is tried, for its own top k features (in-sample) and for the top k feature ids
of the other prompts:

    ablate in merged     the features chosen by forward selection, every step really ablated on the
                         prompts they are found on, removed
    set in base, x m     the features by integrated mediation effect, set to m times their merged
                         activation

each beside matched random features under the very same treatment. Prompts of domains that features
were found on and of unseen ones are reported apart.

    experiment = run_transfer(Cases(work, judge), plan, LabelJudge())
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from em_circuits.experiments.cases import Case, Cases
from em_circuits.experiments.conditions import RANDOM, STEERED, UNSTEERED, Arm
from em_circuits.experiments.journal import Journal
from em_circuits.experiments.next_token import figures
from em_circuits.experiments.records import Experiment, keep
from em_circuits.experiments.rollouts import SteeredRollout, rates, rollout_line, rollouts
from em_circuits.experiments.summary import summarise
from em_circuits.experiments.sweep import labels_key, prompt_line
from em_circuits.experiments.transfer_plan import Selection, TransferPlan
from em_circuits.intervention import on_each
from em_circuits.interventions import (
    Intervention,
    Mode,
    Treatment,
    Where,
    forward_ids,
    forward_scores,
    joint_scores,
    run_rows,
)
from em_circuits.interventions.changed import ChangedFeatures
from em_circuits.interventions.controls import Pool, matched_draws
from em_circuits.interventions.forward import ID_CANDIDATES, FeatureId
from em_circuits.interventions.mediation import joint_effects
from em_circuits.interventions.substitutes import moved, random_places
from em_circuits.models import Model
from em_circuits.progress import tracked
from pivotal_tokens.errors import RequestError, WorkFailed
from pivotal_tokens.judge.continuations import ContinuationJudge

FORMULA = 3
CHOSEN_ON = 16
"""Most prompts on which a forward selection of ids measures its steps."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A prompt under both models."""

    merged: Case
    base: Case
    changed: ChangedFeatures
    effects: Float[Tensor, " changed"]
    """Integrated mediation effect of each changed feature, in logits of the contrast."""
    ablation: Float[Tensor, " active"]
    """Joint score of each feature active in merged: its part of the contrast when all that push
    towards evil are ablated together."""

    def to_ablate(self, model: Model, k: int) -> list[tuple[int, int, int]]:
        """k features of merged, chosen on this prompt by forward selection."""
        groups = self.merged.groups
        targets = torch.tensor([*groups.evil, *groups.safe])
        chosen = forward_scores(model, self.merged.state, groups, targets, k=k).chosen
        return [(a, b, c) for a, b, c in self.merged.state.active.cpu()[chosen].tolist()]


@dataclass(frozen=True)
class Trial:
    """One treatment of a prompt, its control draws, and what it is called."""

    model: str
    name: str
    selection: Selection
    mode: Mode
    value: float | None
    features: str
    steered: tuple[Intervention, ...]
    random: tuple[tuple[Intervention, ...], ...]


def run_transfer(cases: Cases, plan: TransferPlan, judge: ContinuationJudge) -> Experiment:
    """Carry out a transfer experiment, or what is left of it, and keep its tables.

    Raises:
        RequestError: If the plan does not fit models and prompts, or its folder holds another.
        WorkFailed: If no prompt has a contrast.
    """
    sources = cases.prompts(plan.found_on)
    subjects, left_out = _subjects(cases, [*sources, *cases.prompts(plan.tried_on)])
    found_on = [subjects[p.prompt_id] for p in sources if p.prompt_id in subjects]
    tried_ids = [p.prompt_id for p in cases.prompts(plan.tried_on) if p.prompt_id in subjects]
    if not found_on or not tried_ids:
        raise WorkFailed(f"no prompt can be measured: {left_out[0]['reason']}")
    tried = [subjects[i] for i in tried_ids]
    cases.work.require_healthy(tried[0].merged.prompt)
    folder = cases.work.results / "experiments" / plan.name
    record = {
        "kind": "transfer",
        "formula": FORMULA,
        "plan": plan.model_dump(mode="json"),
        "pair": cases.pair.key,
        "judge": judge.id,
        "labels": {i: labels_key(s.merged) for i, s in subjects.items()},
    }
    journal = Journal.open(folder, record)
    ablated: dict[tuple[str, ...], tuple[FeatureId, ...]] = {}
    seen = {subject.merged.domain for subject in found_on}
    for subject in tracked(tried, plan.name, cases.work.progress):
        key = subject.merged.prompt.prompt_id
        if key not in journal:
            others = [s for s in found_on if s.merged.prompt.prompt_id != key]
            where = "seen" if subject.merged.domain in seen else "unseen"
            rows, told = [], []
            chosen_by = tuple(s.merged.prompt.prompt_id for s in others)
            if chosen_by not in ablated:
                ablated[chosen_by] = ids_to_ablate(cases.pair.merged, others, plan.k)
            for trial in trials(cases, plan, subject, others, ablated[chosen_by]):
                made = _tried(cases, plan, subject, trial, judge, where)
                rows += made["rows"]
                told += made["rollouts"]
            journal.add(key, {"rows": rows, "rollouts": told})
    done = list(journal.values(tried_ids))
    rows = [row for value in done for row in value["rows"]]
    summary = {
        "name": plan.name,
        "kind": "transfer",
        "model": "merged and base",
        "features": f"top:{plan.k}",
        "selected_on": f"the same prompt (own) or {len(found_on)} others",
        "found_on": [prompt_line(s.merged) for s in found_on],
        "prompts": [prompt_line(s.merged) for s in tried],
        "left_out": left_out,
        "judge": judge.id,
        **summarise(
            rows,
            {},
            not_shown="that 'own' features, chosen on the very prompt, hold elsewhere ('others' "
            "were chosen on other prompts)",
            seed=plan.seed,
        ),
    }
    told = [row for value in done for row in value["rollouts"]]
    return keep(folder, record, rows=rows, rollouts=told, summary=summary)


def trials(
    cases: Cases,
    plan: TransferPlan,
    subject: Subject,
    others: Sequence[Subject],
    ids: Sequence[FeatureId],
) -> Iterator[Trial]:
    """Everything that is tried on one prompt; `ids` are those that others chose for ablation."""
    merged = cases.pair.merged
    own: Sequence[tuple[int, Any, int]] = subject.to_ablate(merged, plan.k)
    everywhere = [(layer, Where.PROMPT, feature) for layer, feature in ids]
    for selection, places in ((Selection.OWN, own), (Selection.OTHERS, everywhere)):
        if places:
            items = on_each(places, Mode.ABLATE)
            draws = random_places(
                merged, subject.merged.state, items, n_draws=plan.random, seed=plan.seed
            )
            random = tuple(tuple(moved(items, draw)) for draw in draws.tolist())
            name = "ablate in merged"
            shown = ",".join(f"{a}/{_shown(b)}/{c}" for a, b, c in places)
            yield Trial("merged", name, selection, Mode.ABLATE, None, shown, items, random)
    carriers = pooled([(s.changed.coordinates, s.effects) for s in others], plan.k)
    for selection in Selection:
        chosen = _chosen(subject, plan.k, None if selection is Selection.OWN else carriers)
        matched = _matched(cases, subject, chosen, plan)
        if matched is None:
            continue
        for multiple in plan.multiples:
            steered = _set(subject.changed, chosen, multiple)
            others_set = tuple(_set(subject.changed, draw, multiple) for draw in matched)
            places = subject.changed.coordinates[chosen].tolist()
            yield Trial(
                "base",
                f"set in base x{multiple:g}",
                selection,
                Mode.SET,
                multiple,
                ",".join("/".join(map(str, place)) for place in places),
                steered,
                others_set,
            )


def ids_to_ablate(merged: Model, others: Sequence[Subject], k: int) -> tuple[FeatureId, ...]:
    """Ids chosen by forward selection on prompts, at most `CHOSEN_ON` of them, evenly spaced."""
    step = max(1, -(-len(others) // CHOSEN_ON))
    chosen_on = others[::step]
    candidates = pooled([(s.merged.state.active.cpu(), s.ablation) for s in others], ID_CANDIDATES)
    subjects = [(s.merged.state, s.merged.groups) for s in chosen_on]
    return forward_ids(merged, subjects, candidates, k=k)


def pooled(
    scored: Sequence[tuple[Int64[Tensor, "_ 3"], Float[Tensor, " _"]]], k: int
) -> tuple[FeatureId, ...]:
    """The k (layer, feature id) with the largest mean over prompts of their summed scores."""
    totals: dict[FeatureId, float] = {}
    for places, scores in scored:
        for (layer, _, feature), score in zip(places.tolist(), scores.tolist(), strict=True):
            totals[layer, feature] = totals.get((layer, feature), 0.0) + score
    return tuple(sorted(totals, key=lambda key: (-totals[key], key))[:k])


def _chosen(subject: Subject, k: int, keys: Sequence[FeatureId] | None) -> Int64[Tensor, " chosen"]:
    """Changed features of a prompt: its k largest effects, or those of the given ids."""
    if keys is None:
        return subject.effects.argsort(descending=True, stable=True)[:k]
    wanted = set(keys)
    places = subject.changed.coordinates.tolist()
    found = [i for i, (layer, _, feature) in enumerate(places) if (layer, feature) in wanted]
    return torch.tensor(found, dtype=torch.int64)


def _matched(
    cases: Cases, subject: Subject, chosen: Int64[Tensor, " chosen"], plan: TransferPlan
) -> Int64[Tensor, "draw chosen"] | None:
    changed = subject.changed
    norms = changed.decoders(cases.pair.base).norm(dim=1)
    pool = Pool(changed.coordinates[:, 0], changed.change, norms)
    return matched_draws(pool, chosen, n_draws=plan.random, seed=plan.seed)


def _set(
    changed: ChangedFeatures, which: Int64[Tensor, " _"], multiple: float
) -> tuple[Intervention, ...]:
    return tuple(
        Intervention(
            layer=layer, position=position, feature=feature, mode=Mode.SET, value=multiple * value
        )
        for (layer, position, feature), value in zip(
            changed.coordinates[which].tolist(), changed.other[which].tolist(), strict=True
        )
    )


def _tried(
    cases: Cases,
    plan: TransferPlan,
    subject: Subject,
    trial: Trial,
    judge: ContinuationJudge,
    where: str,
) -> dict[str, Any]:
    """Rows and continuations of one trial."""
    case = subject.merged if trial.model == "merged" else subject.base
    every = [
        Arm(UNSTEERED, 0, Treatment()),
        Arm(STEERED, 0, Treatment(interventions=trial.steered)),
        *(Arm(RANDOM, i, Treatment(interventions=r)) for i, r in enumerate(trial.random)),
    ]
    model = cases.pair.model(case.model)
    logits = run_rows(model, case.state, [arm.treatment for arm in every])
    measured = [figures(case, cases.pair, row, logits[0]) for row in logits]
    head = {
        "prompt_id": case.prompt.prompt_id,
        "domain": case.domain,
        "condition": f"{trial.selection}, {trial.name}, {where} domain",
        "combination": str(trial.selection),
        "features": trial.features,
        "mode": str(trial.mode),
        "value": trial.value,
        "unit": "merged activation" if trial.value is not None else "absolute",
        "place": "found" if trial.selection is Selection.OWN else "prompt",
    }
    told: dict[int, list[SteeredRollout]] = {}
    if plan.rollouts is not None:
        first = [arm.treatment for arm in every[:3]]
        told = dict(enumerate(rollouts(cases.pair, case, first, plan.rollouts, judge)))
    rows, lines = [], []
    for i, arm in enumerate(every):
        row = {**head, "control": arm.control, "draw": arm.draw, **measured[i]}
        row |= {f"{name}_unsteered": measured[0][name] for name in ("evil_mass", "contrast")}
        row |= {"verdict_unsteered": measured[0]["verdict"]}
        row |= rates(told[i]) if i in told else {}
        rows.append(row)
        lines += [rollout_line(head, arm.control, arm.draw, rollout) for rollout in told.get(i, ())]
    return {"rows": rows, "rollouts": lines}


def _subjects(
    cases: Cases, prompts: Sequence[Any]
) -> tuple[dict[str, Subject], list[dict[str, str]]]:
    pair = cases.pair
    found: dict[str, Subject] = {}
    left_out: list[dict[str, str]] = []
    for prompt in {p.prompt_id: p for p in prompts}.values():
        try:
            merged, base = (cases.of(prompt, name) for name in ("merged", "base"))
        except RequestError as error:
            left_out.append({"prompt_id": prompt.prompt_id, "reason": str(error)})
            continue
        changed = ChangedFeatures.between(base.state, merged.state)
        weights = merged.groups.weights(len(base.state.logits))
        effects = joint_effects(pair.base, base.state, changed, weights)
        ablation = _contrast_scores(pair.merged, merged)
        found[prompt.prompt_id] = Subject(merged, base, changed, effects, ablation)
    return found, left_out


def _contrast_scores(model: Model, case: Case) -> Float[Tensor, " active"]:
    evil, safe = case.groups.evil, case.groups.safe
    scores = joint_scores(model, case.state, case.groups, torch.tensor([*evil, *safe]))
    return scores[: len(evil)].mean(0) - scores[len(evil) :].mean(0)


def _shown(position: Any) -> Any:
    return "*" if isinstance(position, Where) else position
