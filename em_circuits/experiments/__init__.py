"""Steering experiments: plans, controls, measures, records."""

from em_circuits.experiments.cases import Case, Cases
from em_circuits.experiments.one_prompt import prompt_rollouts
from em_circuits.experiments.plan import PromptSource, SweepPlan, load_plan
from em_circuits.experiments.records import Experiment
from em_circuits.experiments.sweep import run_sweep
from em_circuits.experiments.transfer import run_transfer
from em_circuits.experiments.transfer_plan import TransferPlan, parse_source
from pivotal_tokens.judge.continuations import ContinuationJudge, LabelJudge

__all__ = [
    "Case",
    "Cases",
    "ContinuationJudge",
    "Experiment",
    "LabelJudge",
    "PromptSource",
    "SweepPlan",
    "TransferPlan",
    "load_plan",
    "parse_source",
    "prompt_rollouts",
    "run_sweep",
    "run_transfer",
]
