"""Real interventions on the real model, in batches, with controls."""

from typing import TYPE_CHECKING

from pivotal_tokens.lazy import lazy

if TYPE_CHECKING:
    from em_circuits.intervention import Intervention, Mode, Unit, Where, on_each
    from em_circuits.interventions.direction import Direction, Weighting
    from em_circuits.interventions.engine import iter_rows, run_rows
    from em_circuits.interventions.generation import Continuations, generate
    from em_circuits.interventions.greedy_selection import CHOSEN, greedy_ids
    from em_circuits.interventions.integrated import integrated_effects, joint_scores
    from em_circuits.interventions.mediation import mediate
    from em_circuits.interventions.mediation_result import Mediation, Shares, pooled_share
    from em_circuits.interventions.pairs import PairEffects, pair_effects
    from em_circuits.interventions.ranges import check_interventions
    from em_circuits.interventions.regimes import Regime
    from em_circuits.interventions.sampling import Sampling
    from em_circuits.interventions.scan import ablation_effects, set_effects
    from em_circuits.interventions.scores import N_MEASURED, live_scores
    from em_circuits.interventions.state import PromptState
    from em_circuits.interventions.steering import SteerResult, steer, top_tokens
    from em_circuits.interventions.treatment import Form, Replacement, Tensors, Treatment
    from em_circuits.interventions.units import absolute, asleep, own_activation
    from em_circuits.interventions.validate import compare, summarise
else:
    __getattr__, __dir__ = lazy(__name__)

__all__ = [
    "CHOSEN",
    "N_MEASURED",
    "Continuations",
    "Direction",
    "Form",
    "Intervention",
    "Mediation",
    "Mode",
    "PairEffects",
    "PromptState",
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
    "generate",
    "greedy_ids",
    "integrated_effects",
    "iter_rows",
    "joint_scores",
    "live_scores",
    "mediate",
    "on_each",
    "own_activation",
    "pair_effects",
    "pooled_share",
    "run_rows",
    "set_effects",
    "steer",
    "summarise",
    "top_tokens",
]
