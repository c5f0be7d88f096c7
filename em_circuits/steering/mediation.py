"""Which features carry the shift from base to merged?

In the base model, features are set to the activation they have in the merged model, everything
else running free, and the share of the shift of the evil-minus-safe contrast that comes back is

    share = (contrast with the features set - contrast of base) / (contrast of merged - of base)

Single features are ranked by their first-order effect
``(a_merged - a_base) * W_dec . d contrast / d mlp_out`` in the base, or by really setting each.

    mediation = mediate(pair, input_ids, groups)
    mediation.cumulative, mediation.shares

Candidates are all (layer, position, feature) whose activation differs, whether active in the
base, in merged, or in both. Position 0 has no features (circuit-tracer zeroes them), so whatever
the MLPs change there counts as error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from em_circuits.graphs.gradient import feature_scores, mlp_output_gradients
from em_circuits.models import Model, ModelPair
from em_circuits.steering.components import Components, component_contrasts
from em_circuits.steering.contrast import TokenGroups, contrast, evil_mass
from em_circuits.steering.controls import MIN_DRAWS, Pool, Spread, check_draws, matched_draws
from em_circuits.steering.engine import run_rows
from em_circuits.steering.feature_rows import FeatureRows
from em_circuits.steering.plan import Plan
from em_circuits.steering.state import PromptState

MIN_SHIFT = 0.5
"""Logits; a smaller shift has no shares."""
STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
"""Sizes of the cumulative curve; all changed features are its last point."""
