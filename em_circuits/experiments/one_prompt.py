"""Continuations of one steered prompt: un-steered, steered, and one matched random draw.

prompt_rollouts(work, result, prompt_id, Sampling(samples=8)).worlds["steered"].evil_rate
"""

from __future__ import annotations

from em_circuits.experiments.cases import Cases
from em_circuits.experiments.rollouts import RolloutRates, rates, rollouts
from em_circuits.interventions import SteerResult, Treatment
from em_circuits.interventions.matched_controls import apply_to
from em_circuits.sampling import Sampling
from em_circuits.workspace import Workspace
from pivotal_tokens.judge.continuations import LabelJudge
from pivotal_tokens.schema import Frozen, Label


class LabelledText(Frozen):
    """One continuation."""

    text: str
    label: Label | None


class Continuations(RolloutRates):
    """Those of one condition."""

    texts: tuple[LabelledText, ...]


class PromptRollouts(Frozen):
    """The ``rollouts`` of `steer run --json`; all are drawn with the same noise."""

    judge: str
    sampling: Sampling
    worlds: dict[str, Continuations]
    """By condition."""


def prompt_rollouts(work: Workspace, result: SteerResult, sampling: Sampling) -> PromptRollouts:
    """Continue a prompt that was steered."""
    case = Cases(work, None).of(work.store.prompts.get(result.prompt_id), result.intervention.model)  # type: ignore[arg-type]
    draw = apply_to(result.intervention.features, result.random_places[0])
    conditions = {"unsteered": (), "steered": result.intervention.features, "random_control": draw}
    treatments = [
        Treatment(interventions=tuple(items), regime=result.intervention.regime)
        for items in conditions.values()
    ]
    judge = LabelJudge()
    drawn = rollouts(work.pair, case, treatments, sampling, judge)
    return PromptRollouts(
        judge=judge.id,
        sampling=sampling,
        worlds={
            name: Continuations(
                **rates(row).model_dump(),
                texts=tuple(LabelledText(text=r.text, label=r.label) for r in row),
            )
            for name, row in zip(conditions, drawn, strict=True)
        },
    )
