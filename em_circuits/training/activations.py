"""Stream of what MLPs read and write on a text: one buffer of positions at a time.

The pieces of the text are shuffled once and cut into buffers. A pass over the text takes one buffer
after the other, each in a new order of its positions, batch by batch; what does not fill a batch is
left out. So a step's batch is a function of the seed and the step alone, and a text that fits into
one buffer is run once.

    stream = ActivationStream(source, pieces, buffer=20_000, batch=512, seed=0)
    inputs, outputs = stream.batch_at(step)          # [layer pos d_model], float32
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor

from em_circuits.models.family import Decoder
from em_circuits.models.next_tokens import batches
from em_circuits.progress import Progress, no_progress
from em_circuits.training.transcoder_bank import mlp_activations

Activations = tuple[Float[Tensor, "layer pos d_model"], Float[Tensor, "layer pos d_model"]]
"""Inputs and outputs of some layers' MLPs."""


@dataclass(frozen=True)
class MlpSource:
    """Whose MLPs are read: those of one model; or inputs of the first's, and by how much the
    outputs of the second's differ from the first's on the same text."""

    decoders: tuple[Decoder, ...]
    layers: tuple[int, ...]
    """Ascending."""

    def read(self, pieces: Sequence[Sequence[int]]) -> Activations:
        """Of every position of some pieces but their first, one piece after the other."""
        width = max(map(len, pieces))
        device = next(self.decoders[0].model.parameters()).device
        ids = torch.zeros(len(pieces), width, dtype=torch.long)
        mask = torch.zeros(len(pieces), width, dtype=torch.bool)
        for row, piece in enumerate(pieces):
            ids[row, : len(piece)] = torch.tensor(piece)
            mask[row, 1 : len(piece)] = True
        found = [
            mlp_activations(one, ids.to(device), mask.to(device), self.layers)
            for one in self.decoders
        ]
        inputs, outputs = found[0]
        return inputs, found[1][1] - outputs if len(found) > 1 else outputs


@dataclass
class ActivationStream:
    """Batches of positions; see the module."""

    source: MlpSource
    pieces: list[list[int]]
    buffer: int
    """Positions in memory at a time, at most (a single piece may be longer)."""
    batch: int
    """Positions of a step."""
    seed: int
    progress: Progress = no_progress
    _held: tuple[int, Activations] | None = field(default=None, repr=False)
    _order: tuple[tuple[int, int], Tensor] | None = field(default=None, repr=False)

    @cached_property
    def buffers(self) -> list[list[list[int]]]:
        """The pieces of each buffer; one that has no whole batch is left out."""
        pieces = list(self.pieces)
        random.Random(f"pieces/{self.seed}").shuffle(pieces)
        found: list[list[list[int]]] = [[]]
        for piece in pieces:
            if found[-1] and positions([*found[-1], piece]) > self.buffer:
                found.append([])
            found[-1].append(piece)
        whole = [one for one in found if positions(one) >= self.batch]
        return whole

    @cached_property
    def _ends(self) -> list[int]:
        """Steps of one pass up to the end of each buffer."""
        return list(accumulate(positions(one) // self.batch for one in self.buffers))

    @property
    def steps_per_pass(self) -> int:
        """Steps in which every position is trained on once."""
        return self._ends[-1] if self._ends else 0

    def held(self, index: int) -> Activations:
        """The activations of a buffer, in the model's precision; kept until another is wanted."""
        if self._held is None or self._held[0] != index:
            self._held = None  # two buffers are never in memory at once
            self._held = index, self._collected(self.buffers[index])
        return self._held[1]

    def _collected(self, pieces: list[list[int]]) -> Activations:
        total, done = positions(pieces), 0
        inputs = outputs = torch.empty(0)
        for rows in batches([len(piece) for piece in pieces]):
            x, y = self.source.read([pieces[row] for row in rows])
            if not done:
                inputs = x.new_empty(len(x), total, x.shape[-1])
                outputs = torch.empty_like(inputs)
            end = done + x.shape[1]
            inputs[:, done:end], outputs[:, done:end] = x, y
            done = end
            self.progress("activations", done, total)
        return inputs, outputs

    def batch_at(self, step: int) -> Activations:
        """The batch of a step, in float32."""
        epoch, within = divmod(step, self.steps_per_pass)
        index = next(i for i, end in enumerate(self._ends) if within < end)
        inputs, outputs = self.held(index)
        if self._order is None or self._order[0] != (epoch, index):
            drawn = random.Random(f"positions/{self.seed}/{epoch}/{index}")
            order = list(range(inputs.shape[1]))
            drawn.shuffle(order)
            self._order = (epoch, index), torch.tensor(order, device=inputs.device)
        first = (within - (self._ends[index - 1] if index else 0)) * self.batch
        which = self._order[1][first : first + self.batch]
        return inputs[:, which].float(), outputs[:, which].float()


def positions(pieces: Sequence[Sequence[int]]) -> int:
    """Positions of some pieces but the first of each."""
    return sum(len(piece) - 1 for piece in pieces)
