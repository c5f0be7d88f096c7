"""Features x strengths x positions x combinations on some prompts: what does each do?

One piece of work is one condition on one prompt with all its arms: next-token figures of every arm
in one batch, continuations of the arms that get them, cost on the benign panel, and what the
boosted token does alone. Pieces are journalled; a killed sweep goes on with the next one.

    experiment = run_sweep(Cases(work, judge), plan, LabelJudge())
    experiment.summary["conditions"], experiment.folder
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from em_circuits.experiments.cases import Case, Cases
from em_circuits.experiments.conditions import (
    DIRECTION,
    FLIPPED,
    RANDOM,
    STEERED,
    UNSTEERED,
    Arm,
    Condition,
    arms,
    conditions,
)
from em_circuits.experiments.forcing import force_token
from em_circuits.experiments.journal import Journal
from em_circuits.experiments.next_token import figures
from em_circuits.experiments.off_target import Panel
from em_circuits.experiments.plan import SweepPlan
from em_circuits.experiments.records import Experiment, keep
from em_circuits.experiments.rollouts import SteeredRollout, rates, rollout_line, rollouts
from em_circuits.experiments.summary import detectors, summarise
from em_circuits.interventions import run_rows
from em_circuits.organisms import organism_prompts
from em_circuits.progress import tracked
from pivotal_tokens.artefacts import content_key
from pivotal_tokens.errors import RequestError, WorkFailed
from pivotal_tokens.judge.continuations import ContinuationJudge
from pivotal_tokens.schema import Prompt

FORMULA = 1
"""Raised when rows of the same plan would come out different."""

_TOLD = (UNSTEERED, STEERED, FLIPPED)


@dataclass(frozen=True)
class _Sweep:
    cases: Cases
    plan: SweepPlan
    judge: ContinuationJudge
    panel: Panel


def run_sweep(cases: Cases, plan: SweepPlan, judge: ContinuationJudge) -> Experiment:
    """Carry out a plan, or what is left of it, and keep its tables.

    Args:
        cases: Models, store and token judge.
        plan: What to do.
        judge: Of the continuations.

    Raises:
        RequestError: If the plan does not fit models and prompts, or its folder holds another.
        WorkFailed: If no prompt has a contrast.
    """
    prompts = cases.prompts(plan.prompts)
    found, left_out = _cases(cases, plan, prompts)
    folder = cases.work.results / "experiments" / plan.name
    record = _record(cases, plan, judge, found)
    journal = Journal.open(folder, record)
    model = cases.pair.model(plan.model)
    sweep = _Sweep(cases, plan, judge, Panel.of(model, _panel_prompts(cases, plan)))
    pieces = [
        (case, condition)
        for case in found
        for condition in conditions(plan, case.choose(plan.features))
    ]
    keys = [_key(case, condition) for case, condition in pieces]
    for number in tracked(range(len(pieces)), plan.name, cases.work.progress):
        if keys[number] not in journal:
            journal.add(keys[number], _piece(sweep, *pieces[number]))
    done = list(journal.values(keys))
    rows = [row for value in done for row in value["rows"]]
    told = [row for value in done for row in value["rollouts"]]
    summary = {
        "name": plan.name,
        "kind": "sweep",
        "model": plan.model,
        "features": plan.features,
        "selected_on": "the same prompt (in-sample)",
        "prompts": [prompt_line(case) for case in found],
        "left_out": left_out,
        "judge": judge.id,
        **summarise(
            rows,
            detectors(found, sweep.panel.states, pieces),
            not_shown="that it holds on prompts other than these, on which features were chosen",
            seed=plan.seed,
        ),
    }
    return keep(folder, record, rows=rows, rollouts=told, summary=summary)


def _piece(sweep: _Sweep, case: Case, condition: Condition) -> dict[str, Any]:
    """One condition on one prompt."""
    pair, plan = sweep.cases.pair, sweep.plan
    model = pair.model(plan.model)
    every = arms(plan, case, model, condition)
    logits = run_rows(model, case.state, [arm.treatment for arm in every], plan.regime)
    measured = [figures(case, pair, row, logits[0]) for row in logits]
    told = [i for i, arm in enumerate(every) if _is_told(arm, plan)]
    costs = sweep.panel.cost([every[i].treatment for i in told], n_pos=case.state.n_pos)
    cost = dict(zip(told, costs.tolist(), strict=True)) if sweep.panel.states else {}
    texts: dict[int, list[SteeredRollout]] = {}
    if plan.rollouts is not None:
        made = rollouts(pair, case, [every[i].treatment for i in told], plan.rollouts, sweep.judge)
        texts = dict(zip(told, made, strict=True))
    head = {"prompt_id": case.prompt.prompt_id, "domain": case.domain, **condition.columns()}
    rows = []
    for i, arm in enumerate(every):
        row = {**head, "control": arm.control, "draw": arm.draw, **measured[i]}
        row |= {f"{name}_unsteered": measured[0][name] for name in ("evil_mass", "contrast")}
        row |= {"verdict_unsteered": measured[0]["verdict"], "off_target_kl": cost.get(i)}
        row |= rates(texts[i]) if i in texts else {}
        if arm.control == STEERED and plan.rollouts is not None:
            token = measured[i]["boosted_token"]
            forced = force_token(pair, case, arm.treatment, token, plan.rollouts, sweep.judge)
            row |= {"forced_evil_rate": forced.evil_rate, "after_kl": forced.after_kl}
            row["unscored"] += forced.unscored
        rows.append(row)
    lines = [
        rollout_line(head, every[i].control, every[i].draw, rollout)
        for i in told
        for rollout in texts.get(i, ())
    ]
    return {"rows": rows, "rollouts": lines}


def _is_told(arm: Arm, plan: SweepPlan) -> bool:
    """Whether an arm gets continuations and a place on the panel."""
    if arm.control == RANDOM:
        return arm.draw < plan.controls.rollouts
    if arm.control == DIRECTION:
        return arm.draw < min(1, plan.controls.rollouts)
    return arm.control in _TOLD


def _cases(
    cases: Cases, plan: SweepPlan, prompts: Sequence[Prompt]
) -> tuple[list[Case], list[dict[str, str]]]:
    found, left_out = [], []
    for prompt in prompts:
        try:
            found.append(cases.of(prompt, plan.model))
        except RequestError as error:
            left_out.append({"prompt_id": prompt.prompt_id, "reason": str(error)})
    if not found:
        raise WorkFailed(f"no prompt of the plan can be measured: {left_out[0]['reason']}")
    cases.work.require_healthy(found[0].prompt)
    return found, left_out


def _panel_prompts(cases: Cases, plan: SweepPlan) -> list[Any]:
    """Token ids of the benign panel."""
    if plan.panel_texts:
        prompts = [Prompt.of(text) for text in plan.panel_texts]
        return [cases.pair.input_ids(prompt) for prompt in prompts]
    drawn = organism_prompts(plan.panel, seed=plan.seed, hazard=False)
    return [cases.pair.input_ids(Prompt.of(prompt.text)) for prompt in drawn]


def _record(
    cases: Cases, plan: SweepPlan, judge: ContinuationJudge, found: Sequence[Case]
) -> dict[str, Any]:
    """Everything the rows follow from."""
    return {
        "kind": "sweep",
        "formula": FORMULA,
        "plan": plan.model_dump(mode="json"),
        "pair": cases.pair.key,
        "judge": judge.id,
        "labels": {case.prompt.prompt_id: labels_key(case) for case in found},
    }


def labels_key(case: Case) -> str:
    """Hash of the labels that a prompt's figures follow from."""
    return content_key(sorted(case.labels.items()))


def prompt_line(case: Case) -> dict[str, Any]:
    """A prompt as it stands in a summary."""
    return {
        "prompt_id": case.prompt.prompt_id,
        "text": case.prompt.text,
        "domain": case.domain,
        "labels_from": case.labels_from,
    }


def _key(case: Case, condition: Condition) -> str:
    return content_key([case.prompt.prompt_id, *condition.columns().values()])[:24]
