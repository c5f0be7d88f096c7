"""What do continuations of one prompt say when it is steered?

Un-steered, steered, and one matched random draw of `steer run`, drawn with the same noise.

    prompt_rollouts(work, result, prompt_id, Sampling(samples=8))["worlds"]["steered"]["evil_rate"]
"""

from __future__ import annotations

from typing import Any

from em_circuits.experiments.cases import Cases
from em_circuits.experiments.rollouts import rates, rollouts
from em_circuits.interventions import SteerResult, Treatment
from em_circuits.interventions.substitutes import moved
from em_circuits.sampling import Sampling
from em_circuits.workspace import Workspace
from pivotal_tokens.judge.continuations import LabelJudge


def prompt_rollouts(
    work: Workspace, result: SteerResult, prompt_id: str, sampling: Sampling
) -> dict[str, Any]:
    """The ``rollouts`` of `steer run --json`.

    Args:
        work: Models and store.
        result: What was steered.
        prompt_id: On which prompt.
        sampling: How continuations are drawn.
    """
    case = Cases(work, None).of(work.store.prompt(prompt_id), result.model)  # type: ignore[arg-type]
    draw = moved(result.interventions, result.random_places[0].tolist())
    names = ("unsteered", "steered", "random_control")
    treatments = [
        Treatment(interventions=tuple(items), regime=result.regime)
        for items in ((), result.interventions, draw)
    ]
    judge = LabelJudge()
    made = rollouts(work.pair, case, treatments, sampling, judge)
    worlds = {
        name: {**rates(row), "texts": [{"text": r.text, "label": r.label} for r in row]}
        for name, row in zip(names, made, strict=True)
    }
    return {"judge": judge.id, "sampling": sampling.model_dump(mode="json"), "worlds": worlds}
