"""Real interventions on the real model, in batches, with controls."""

from typing import TYPE_CHECKING

from pivotal_tokens.lazy import lazy

if TYPE_CHECKING:
    from em_circuits.activation_cache import ActivationCache
    from em_circuits.intervention import Intervention, Mode, Regime, Unit, Where, on_each
    from em_circuits.interventions.direction import Direction, Weighting
    from em_circuits.interventions.edits import (
        Control,
        Replacement,
        Tensors,
        Treatment,
        check_interventions,
        no_op_interventions,
        own_activation,
        resolve_units,
    )
    from em_circuits.interventions.generation import Continuations, generate
    from em_circuits.interventions.greedy_selection import CHOSEN, greedy_ids, select_greedily
    from em_circuits.interventions.integrated import integrated_effects, joint_scores
    from em_circuits.interventions.mediation import Mediation, Shares, mediate, pooled_share
    from em_circuits.interventions.run import iter_rows, run_rows, run_values
    from em_circuits.interventions.scan import (
        PairEffects,
        ablation_effects,
        pair_effects,
        set_effects,
    )
    from em_circuits.interventions.scores import N_MEASURED, live_scores
    from em_circuits.interventions.steer_result import SteerResult
    from em_circuits.interventions.steering import steer, top_tokens
    from em_circuits.interventions.validate import agreement_by_method, compare_with_ablations
    from em_circuits.sampling import Sampling
else:
    __getattr__, __dir__ = lazy(__name__)

__all__ = [
    "CHOSEN",
    "N_MEASURED",
    "ActivationCache",
    "Continuations",
    "Control",
    "Direction",
    "Intervention",
    "Mediation",
    "Mode",
    "PairEffects",
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
    "agreement_by_method",
    "check_interventions",
    "compare_with_ablations",
    "generate",
    "greedy_ids",
    "integrated_effects",
    "iter_rows",
    "joint_scores",
    "live_scores",
    "mediate",
    "no_op_interventions",
    "on_each",
    "own_activation",
    "pair_effects",
    "pooled_share",
    "resolve_units",
    "run_rows",
    "run_values",
    "select_greedily",
    "set_effects",
    "steer",
    "top_tokens",
]
