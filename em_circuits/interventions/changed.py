"""Which features differ between two models on a prompt?

Every (layer, position, feature id) active in either model whose activation differs, with both
activations; position 0 has none.

    changed = ChangedFeatures.between(base_state, merged_state)
    run_rows(base, base_state, changed.plan([torch.arange(20)]))    # 20 at their merged values
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from em_circuits.interventions.feature_rows import decoder_vectors
from em_circuits.interventions.plan import Plan
from em_circuits.interventions.state import PromptState
from em_circuits.models import Model


@dataclass(frozen=True)
class ChangedFeatures:
    """Features with different activations in two models; on the CPU, in float32."""

    coordinates: Int64[Tensor, "changed 3"]
    """(layer, position, feature id), sorted."""
    own: Float[Tensor, " changed"]
    """In the model that is treated."""
    other: Float[Tensor, " changed"]
    """In the model whose values it is given."""

    def __len__(self) -> int:
        return len(self.coordinates)

    @property
    def change(self) -> Float[Tensor, " changed"]:
        """The other model's minus the own activation."""
        return self.other - self.own

    @classmethod
    def between(cls, own: PromptState, other: PromptState) -> ChangedFeatures:
        """Compare two models' states of one prompt."""
        active = torch.cat([own.active, other.active]).unique(dim=0)
        before, after = own.activation_of(active), other.activation_of(active)
        differs = before != after
        return cls(
            active[differs].cpu(), before[differs].float().cpu(), after[differs].float().cpu()
        )

    def decoders(self, model: Model) -> Float[Tensor, "changed d_model"]:
        """Decoder row of each, in float32 on the CPU."""
        return decoder_vectors(model, self.coordinates[:, 0], self.coordinates[:, 2])

    def plan(self, subsets: Sequence[Int64[Tensor, " _"]]) -> Plan:
        """One row per subset, setting its features to the other model's activations."""
        row = [torch.full((len(subset),), i) for i, subset in enumerate(subsets)]
        empty = torch.empty(0, dtype=torch.int64)
        which = torch.cat([empty, *subsets])
        return Plan.setting(
            len(subsets),
            torch.cat([empty, *row]),
            self.coordinates[which],
            self.other[which],
        )
