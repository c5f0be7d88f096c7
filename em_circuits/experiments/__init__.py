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
        directions,
        edge,
        kept,
        lora,
        mediation,
        plan,
        probes,
        rejudge_steering,
        responses,
        rollouts,
        scan,
        sweep,
        transfer,
        two_judges,
        validate,
        validate_edges,
        validity,
        validity_settings,
        validity_verdict,
    )
else:
    __getattr__, __dir__ = lazy(__name__)

__all__ = [
    "aggregate",
    "analyse",
    "cases",
    "demo",
    "difference",
    "directions",
    "edge",
    "kept",
    "lora",
    "mediation",
    "plan",
    "probes",
    "rejudge_steering",
    "responses",
    "rollouts",
    "scan",
    "sweep",
    "transfer",
    "two_judges",
    "validate",
    "validate_edges",
    "validity",
    "validity_settings",
    "validity_verdict",
]
