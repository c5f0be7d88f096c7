"""Experiments on labelled prompts: one prompt, across prompts, sweeps, transfer, evaluation."""

from typing import TYPE_CHECKING

from pivotal_tokens.lazy import lazy

if TYPE_CHECKING:
    from em_circuits.experiments import (
        aggregate,
        analyse,
        cases,
        demo,
        difference,
        edge,
        kept,
        lora,
        mediation,
        plan,
        rejudge_steering,
        rollouts,
        scan,
        sweep,
        transfer,
        two_judges,
        validate,
        validate_edges,
    )
else:
    __getattr__, __dir__ = lazy(__name__)

__all__ = [
    "aggregate",
    "analyse",
    "cases",
    "demo",
    "difference",
    "edge",
    "kept",
    "lora",
    "mediation",
    "plan",
    "rejudge_steering",
    "rollouts",
    "scan",
    "sweep",
    "transfer",
    "two_judges",
    "validate",
    "validate_edges",
]
