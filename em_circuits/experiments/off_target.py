"""What does a treatment cost where nothing was wrong?

The same interventions on benign prompts: mean KL divergence of the next token from the un-steered
model. A position counts from the prompt's end there (what was done at the last position is done at
the last); values are those of the prompt the treatment was made for.

    panel = Panel.of(model, prompts_ids)
    panel.cost([treatment, random_treatment], n_pos=len(prompt_ids))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from em_circuits.experiments.next_token import divergence
from em_circuits.intervention import FIRST_POSITION, Intervention
from em_circuits.interventions import PromptState, Treatment, run_rows
from em_circuits.models import Model


@dataclass(frozen=True, eq=False)
class Panel:
    """Benign prompts under one model."""

    model: Model
    states: tuple[PromptState, ...]

    @classmethod
    def of(cls, model: Model, prompts: Sequence[Int64[Tensor, " _"]]) -> Panel:
        """Capture the un-steered model on every prompt."""
        return cls(model, tuple(PromptState.capture(model, ids) for ids in prompts))

    def cost(self, treatments: Sequence[Treatment], *, n_pos: int) -> Float[Tensor, " treatment"]:
        """Mean divergence in nats of each treatment.

        Args:
            treatments: Of one regime, values absolute.
            n_pos: Tokens of the prompt that their positions speak of.
        """
        if not treatments or not self.states:
            return torch.zeros(len(treatments))
        rows, states = [], []
        for treatment in treatments:
            for state in self.states:
                items = _shifted(treatment.interventions, state.n_pos - n_pos, state.n_pos)
                rows.append(treatment.model_copy(update={"interventions": items}))
                states.append(state)
        logits = run_rows(self.model, states, rows, treatments[0].regime)
        before = torch.stack([state.logits for state in states])  # one per row, as the logits
        return divergence(before, logits).view(len(treatments), -1).mean(1).cpu()


def _shifted(
    interventions: Sequence[Intervention], by: int, n_pos: int
) -> tuple[Intervention, ...]:
    """Positions counted from the end; what falls off the front is left out."""
    found = []
    for item in interventions:
        if isinstance(item.position, int):
            if not FIRST_POSITION <= item.position + by < n_pos:
                continue
            item = item.model_copy(update={"position": item.position + by})
        found.append(item)
    return tuple(found)
