"""How do the undisturbed states of a batch's prompts lie side by side?

Prompts of different lengths are padded at their end: attention is causal, so no real position sees
the padding. Where all rows share one prompt there is a single row, which broadcasts.

    stacked = Stacked.of([state])                    # every row of the batch is this prompt
    stacked = Stacked.of([state_a, state_b])         # row 0 is a, row 1 is b
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from em_circuits.interventions.state import PromptState


@dataclass(frozen=True)
class Stacked:
    """States of a batch's rows; the leading axis ``row`` has one entry where all are the same."""

    states: tuple[PromptState, ...]

    @classmethod
    def of(cls, states: Sequence[PromptState]) -> Stacked:
        """One state for all rows, or one a row."""
        first = states[0]
        return cls((first,) if all(state is first for state in states) else tuple(states))

    @property
    def shared(self) -> bool:
        """All rows are of one prompt."""
        return len(self.states) == 1

    @cached_property
    def lengths(self) -> Int64[Tensor, " row"]:
        """Tokens of each prompt."""
        return torch.tensor([state.n_pos for state in self.states])

    @cached_property
    def n_pos(self) -> int:
        """Tokens of the longest."""
        return max(state.n_pos for state in self.states)

    @cached_property
    def input_ids(self) -> Int64[Tensor, "row pos"]:
        return self._padded(lambda state: state.input_ids, 0)

    @cached_property
    def inputs(self) -> Float[Tensor, "layer row pos d_model"]:
        return self._padded(lambda state: state.inputs, 1).transpose(0, 1)

    @cached_property
    def mlp_outputs(self) -> Float[Tensor, "layer row pos d_model"]:
        return self._padded(lambda state: state.mlp_outputs, 1).transpose(0, 1)

    @cached_property
    def patterns(self) -> Float[Tensor, "layer row head pos pos"]:
        """Padding attends to nothing, and is attended to by nothing."""
        whole = self._padded(lambda state: self._pad(state.patterns, 2), 3)
        return whole.transpose(0, 1)

    @cached_property
    def norm_scales(self) -> tuple[Tensor | None, ...]:
        """Per norm ``[row pos 1]``; None for a norm that cannot be frozen."""
        return tuple(
            None if first is None else self._padded(lambda s, i=i: s.norm_scales[i], 0)  # type: ignore[misc]
            for i, first in enumerate(self.states[0].norm_scales)
        )

    def dense_activations(self, layer: int) -> Float[Tensor, "row pos feature"]:
        """Activations of every feature of a layer, zeros included."""
        return self._padded(lambda state: state.dense_activations(layer), 0)

    def active_in(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """(row, position, feature id) of every active feature of a layer."""
        parts = []
        for row, state in enumerate(self.states):
            here = state.active[state.active[:, 0] == layer, 1:]
            parts.append(torch.cat([torch.full_like(here[:, :1], row), here], dim=1))
        row, position, feature = torch.cat(parts).T.contiguous()
        return row, position, feature

    def activation_of(
        self, row: Int64[Tensor, " op"], coordinates: Int64[Tensor, "op 3"]
    ) -> Float[Tensor, " op"]:
        """Undisturbed activation of each (layer, position, feature id) in its row's prompt."""
        if self.shared:
            return self.states[0].activation_of(coordinates)
        values = self.states[0].activations.new_zeros(len(row))
        for number in row.unique().tolist():
            mine = row == number
            values[mine.to(values.device)] = self.states[number].activation_of(coordinates[mine])
        return values

    def _padded(self, part: Callable[[PromptState], Tensor], dim: int) -> Tensor:
        return torch.stack([self._pad(part(state), dim) for state in self.states])

    def _pad(self, tensor: Tensor, dim: int) -> Tensor:
        missing = self.n_pos - tensor.shape[dim]
        if not missing:
            return tensor
        shape = list(tensor.shape)
        shape[dim] = missing
        return torch.cat([tensor, tensor.new_zeros(shape)], dim)
