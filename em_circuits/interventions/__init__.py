"""Real interventions on the real model, in batches, with controls."""

from em_circuits.intervention import Intervention, Mode, Unit, Where, on_each
from em_circuits.interventions.direction import Direction, Weighting
from em_circuits.interventions.engine import iter_rows, run_rows
from em_circuits.interventions.forward import (
    Forward,
    forward_ids,
    forward_scores,
    forward_selection,
)
from em_circuits.interventions.generate import Continuations, generate
from em_circuits.interventions.integrated import integrated_effects, joint_scores
from em_circuits.interventions.mediation import mediate
from em_circuits.interventions.mediation_result import Mediation, Shares, pooled_share
from em_circuits.interventions.pairs import PairEffects, pair_effects
from em_circuits.interventions.ranges import check_interventions
from em_circuits.interventions.refine import N_MEASURED, Refined, refined_scores
from em_circuits.interventions.regimes import Regime
from em_circuits.interventions.sampling import Sampling
from em_circuits.interventions.scan import ablation_effects, joint_effects
from em_circuits.interventions.state import PromptState
from em_circuits.interventions.steer import SteerResult, steer, top_tokens
from em_circuits.interventions.treatment import Form, Replacement, Tensors, Treatment
from em_circuits.interventions.units import absolute, asleep, own_activation
from em_circuits.interventions.validate import compare, summarise

__all__ = [
    "N_MEASURED",
    "Continuations",
    "Direction",
    "Form",
    "Forward",
    "Intervention",
    "Mediation",
    "Mode",
    "PairEffects",
    "PromptState",
    "Refined",
    "Regime",
    "Replacement",
    "Sampling",
    "Shares",
    "SteerResult",
    "Tensors",
    "Treatment",
    "Unit",
    "Weighting",
    "Where",
    "ablation_effects",
    "absolute",
    "asleep",
    "check_interventions",
    "compare",
    "forward_ids",
    "forward_scores",
    "forward_selection",
    "generate",
    "integrated_effects",
    "iter_rows",
    "joint_effects",
    "joint_scores",
    "mediate",
    "on_each",
    "own_activation",
    "pair_effects",
    "pooled_share",
    "refined_scores",
    "run_rows",
    "steer",
    "summarise",
    "top_tokens",
]
