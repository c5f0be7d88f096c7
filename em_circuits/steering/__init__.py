"""Real interventions on the real model, in batches, with controls."""

from em_circuits.steering.agreement import Agreement, agreement
from em_circuits.steering.contrast import TokenGroups, contrast, demeaned, evil_mass
from em_circuits.steering.controls import Spread
from em_circuits.steering.direction import Direction, Weighting
from em_circuits.steering.engine import iter_rows, run_rows
from em_circuits.steering.forward import Forward, forward_ids, forward_scores, forward_selection
from em_circuits.steering.generate import Continuations, generate
from em_circuits.steering.integrated import integrated_effects, joint_scores
from em_circuits.steering.intervention import (
    Intervention,
    Mode,
    Unit,
    Where,
    check_interventions,
    on_each,
)
from em_circuits.steering.mediation import mediate
from em_circuits.steering.mediation_result import Mediation, Shares, pooled_share
from em_circuits.steering.pairs import PairEffects, pair_effects
from em_circuits.steering.refine import N_MEASURED, Refined, refined_scores
from em_circuits.steering.regimes import Regime
from em_circuits.steering.sampling import Sampling
from em_circuits.steering.scan import ablation_effects, joint_effects
from em_circuits.steering.state import PromptState
from em_circuits.steering.steer import SteerResult, steer, top_tokens
from em_circuits.steering.treatment import Form, Replacement, Tensors, Treatment
from em_circuits.steering.units import absolute, asleep, own_activation
from em_circuits.steering.validate import compare, summarise

__all__ = [
    "N_MEASURED",
    "Agreement",
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
    "Spread",
    "SteerResult",
    "Tensors",
    "TokenGroups",
    "Treatment",
    "Unit",
    "Weighting",
    "Where",
    "ablation_effects",
    "absolute",
    "agreement",
    "asleep",
    "check_interventions",
    "compare",
    "contrast",
    "demeaned",
    "evil_mass",
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
