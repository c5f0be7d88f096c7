"""Features x strengths x positions x combinations on some prompts, each beside its controls.

One piece of work is one cell of the plan on one prompt, with all its arms in one batch:

    unsteered                       nothing
    steered                         the cell
    noop, flipped, direction i      the same features, another form of the change
    random i                        the same change of matched random features

Pieces are journalled; a killed sweep goes on with the next one.

    experiment = run_sweep(Cases(work, judge), plan, LabelJudge())
    experiment.summary.conditions, experiment.folder
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from em_circuits.experiments.cases import Case, Cases
from em_circuits.experiments.experiment import Cell, Experiment, Piece
from em_circuits.experiments.measure import (
    DIRECTION,
    FLIPPED,
    NOOP,
    RANDOM,
    STEERED,
    UNSTEERED,
    Arm,
    Bench,
    Panel,
    Trial,
    random_arms,
)
from em_circuits.experiments.plan import Combination, Subset, SweepPlan
from em_circuits.experiments.summary import PromptLine, SteeringSummary, carry_out, detectors
from em_circuits.feature import Feature
from em_circuits.intervention import on_each
from em_circuits.interventions import Control, Treatment, Unit
from em_circuits.interventions.edits import resolve_units
from em_circuits.models import Model, ModelPair
from em_circuits.models.text import render_chat
from em_circuits.organisms import organism_prompts
from em_circuits.organisms.advice import drawn_advice
from em_circuits.organisms.paths import is_real
from pivotal_tokens.artefacts import content_key
from pivotal_tokens.errors import RequestError
from pivotal_tokens.judge.continuations import ContinuationJudge
from pivotal_tokens.schema import Prompt

FORMULA = 2
"""Raised when rows of the same plan would come out different."""
_SAMPLED = (UNSTEERED, STEERED, FLIPPED)


def run_sweep(
    cases: Cases, plan: SweepPlan, judge: ContinuationJudge
) -> Experiment[SteeringSummary]:
    """Carry out a plan, or what is left of it, and store its tables.

    Raises:
        RequestError: If the plan does not fit models and prompts, or its folder holds another.
        WorkFailed: If no prompt has a contrast.
    """
    model = cases.pair.model(plan.model)
    found, left_out = cases.usable(cases.prompts(plan.prompts), lambda p: cases.of(p, plan.model))
    usable = list(found.values())
    panel = Panel.of(model, _panel_prompts(cases, plan))
    bench = Bench(cases.pair, judge, plan.rollouts, panel)
    pieces = [(case, trial) for case in usable for trial in sweep_trials(plan, case, model)]
    return carry_out(
        cases,
        plan,
        judge,
        [(_key(*piece), partial(measure_trial, bench, plan, *piece)) for piece in pieces],
        kind="sweep",
        formula=FORMULA,
        labels={case.prompt.prompt_id: case.labels_key for case in usable},
        detectors=detectors(usable, panel.states, [trial for _, trial in pieces]),
        not_shown="that it holds on prompts other than these, on which features were chosen",
        model=plan.model,
        features=plan.features,
        by=str(plan.by),
        selected_on="the same prompt (in-sample)",
        prompts=tuple(map(PromptLine.of, usable)),
        left_out=left_out,
    )


def sweep_trials(plan: SweepPlan, case: Case, model: Model) -> Iterator[Trial]:
    """Every cell of a plan on a prompt."""
    features = case.choose(model, plan.features, by=plan.by)
    for combination, members in _combined(plan.combinations, features):
        for wanted in plan.treatments:
            for value, place in itertools.product(wanted.values, plan.positions):
                strength = "" if value is None else f" {value:g}"
                unit = " x own" if wanted.unit is Unit.RELATIVE else ""
                cell = Cell(
                    condition=f"{combination} {wanted.mode}{strength}{unit} @{place}",
                    combination=combination,
                    mode=str(wanted.mode),
                    value=value,
                    unit=str(wanted.unit),
                    place=str(place),
                )
                items = on_each(members, wanted.mode, value, wanted.unit, where=place)
                yield Trial(cell, ",".join(map(str, members)), items)


def arms(plan: SweepPlan, case: Case, model: Model, trial: Trial) -> tuple[Arm, ...]:
    """The un-steered model, the cell and its controls.

    Raises:
        RequestError: If the prompt has too few other active features for the random control.
    """
    items = resolve_units(case.state, trial.interventions)
    wanted, regime = plan.controls, plan.regime

    def same(name: str, control: Control = Control.AS_IS, draw: int = 0, seed: int = 0) -> Arm:
        treatment = Treatment(interventions=items, regime=regime, control=control, seed=seed)
        return Arm(name, draw, treatment)

    every = [Arm(UNSTEERED, 0, Treatment(regime=regime)), same(STEERED)]
    if wanted.noop:
        every.append(same(NOOP, Control.NOOP))
    if wanted.flipped:
        every.append(same(FLIPPED, Control.SIGN_FLIP))
    every += [
        same(DIRECTION, Control.RANDOM_DIRECTION, i, plan.seed + i)
        for i in range(wanted.directions)
    ]
    every += random_arms(
        model, case.state, trial.interventions, draws=wanted.random, seed=plan.seed, regime=regime
    )
    return tuple(every)


def measure_trial(bench: Bench, plan: SweepPlan, case: Case, trial: Trial) -> Piece:
    """One cell on one prompt, with continuations of some of its arms."""
    every = arms(plan, case, bench.pair.model(plan.model), trial)
    most = {RANDOM: plan.controls.rollouts, DIRECTION: min(1, plan.controls.rollouts)}
    sampled = [
        number
        for number, arm in enumerate(every)
        if arm.control in _SAMPLED or arm.draw < most.get(arm.control, 0)
    ]
    return bench.measure(case, trial, every, sampled=sampled)


def _panel_prompts(cases: Cases, plan: SweepPlan) -> list[Any]:
    """Token ids of the benign panel."""
    texts: Sequence[str] = plan.panel_texts
    if not texts:
        texts = _benign(cases.pair, plan)
    return [cases.pair.input_ids(Prompt.of(text)) for text in texts]


def _benign(pair: ModelPair, plan: SweepPlan) -> list[str]:
    """Harmless prompts of the organism."""
    if not is_real(pair.settings.base):
        return [p.text for p in organism_prompts(plan.panel, seed=plan.seed, hazard=False)]
    drawn = drawn_advice(plan.panel, plan.seed, plan="harmless")
    return [render_chat(pair.tokenizer, user=p.user, assistant=p.assistant) for p in drawn]


def _key(case: Case, trial: Trial) -> str:
    cell = trial.cell
    named = [case.prompt.prompt_id, cell.condition, cell.combination, trial.features]
    return content_key([*named, cell.mode, cell.value, cell.unit, cell.place])[:24]


def _combined(
    combinations: Sequence[Combination | Subset], features: Sequence[Feature]
) -> Iterator[tuple[str, tuple[Feature, ...]]]:
    features = tuple(features)
    n = len(features)
    for combination in combinations:
        match combination:
            case tuple():
                if max(combination) > n:
                    raise RequestError(f"combination {list(combination)}: there are {n} features")
                name = "+".join(f"#{rank}" for rank in combination)
                yield name, tuple(features[rank - 1] for rank in combination)
            case Combination.SINGLE:
                yield from ((f"#{i + 1}", (feature,)) for i, feature in enumerate(features))
            case Combination.FIRST:
                yield from ((f"first {k}", features[:k]) for k in range(2, n + 1))
            case Combination.PAIRS:
                yield from (
                    (f"#{i + 1}+#{j + 1}", (features[i], features[j]))
                    for i, j in itertools.combinations(range(n), 2)
                )
            case Combination.ALL:
                yield f"all {n}", features
