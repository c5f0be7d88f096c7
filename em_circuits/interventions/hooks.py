"""Hooks that add each row's changes to the MLP outputs during one forward pass.

Row by row, at the places of its edits,

    mlp_out[layer, position] += (new activation - current activation) * W_dec[feature]

where *current* is what the feature does in that very pass (in `direct`: in the undisturbed one),
as in circuit-tracer's `feature_intervention`; what a cross-layer feature writes into later layers
is added there by the same amounts. Activations and the products with decoder rows are computed in
the model's precision, their sums in float32. A row's control then leaves its change as it is,
multiplies it by 0 or -1, or turns it into a random direction of the same length.

    hooks = Hooks(model, edits, read_rows(model, [edits]))
    with hooks.installed():
        model.hf(batch)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from em_circuits.activation_cache import BatchedCache
from em_circuits.intervention import Regime
from em_circuits.interventions.edits import Control, EditBatch
from em_circuits.interventions.feature_rows import FeatureRows
from em_circuits.interventions.regimes import FrozenMLP
from em_circuits.interventions.source_model import PatchedActivations
from em_circuits.models import Model

_FACTOR = {Control.NOOP: 0.0, Control.SIGN_FLIP: -1.0}


def read_rows(model: Model, every: Sequence[EditBatch]) -> dict[int, FeatureRows]:
    """Per layer, the encoder and decoder rows of every feature that the edits name."""
    layer = torch.cat([edits.layer for edits in every])
    feature = torch.cat([edits.feature for edits in every])
    return {
        number: FeatureRows.read(model.dictionaries[number], feature[layer == number])
        for number in layer.unique().tolist()
    }


@dataclass
class Hooks:
    """One forward pass: keeps each layer's MLP input until the layer writes."""

    model: Model
    edits: EditBatch
    rows: Mapping[int, FeatureRows]
    regime: Regime = Regime.FREE
    start: int = 0
    """First position that is run; what stands before it comes from a cache."""
    stacked: BatchedCache | None = None
    """The undisturbed prompts; needed by the regimes that freeze norms."""
    mlps: Mapping[int, FrozenMLP] = field(default_factory=dict)
    """What stands for each layer's MLP, in those regimes."""
    patched: PatchedActivations | None = None
    """Tensors of another model, for the rows that take them."""
    _inputs: Tensor | None = None
    _writing: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    """Layer -> (amounts, which, place) of its edits in this pass, where they go on writing."""

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Change every forward pass of the block."""
        with self.model.sites.hooked(self._read, self._write):
            yield

    def _read(self, layer: int, inputs: Tensor) -> None:
        self._inputs = inputs
        if layer == 0:
            self._writing.clear()

    def _write(self, layer: int, output: Tensor) -> Tensor | None:
        inputs, self._inputs = self._inputs, None
        assert inputs is not None
        written: Tensor | None = None
        if layer in self.mlps:
            written = self.mlps[layer](inputs)
        if self.patched is not None and self.patched.at(layer):
            written = self.patched.put(self.model, layer, inputs, output)
        ops = self.edits.layer_ops(layer)
        changes = [self._from_below(layer, below, inputs) for below in self._writing]
        if len(ops.row):
            changes.append(self._changes(layer, ops, inputs))
        if not changes:
            return written
        base = output if written is None else written
        change = sum(changes[1:], start=changes[0])
        return base + self._controlled(layer, change).to(base.dtype)

    def _from_below(self, layer: int, below: int, inputs: Tensor) -> Tensor:
        """What edits of a layer below write into this one."""
        amounts, which, place = self._writing[below]
        n_places = inputs[..., 0].numel()
        rows, write = self.rows[below], layer - below
        change = rows.written(amounts, which, place=place, n_places=n_places, write=write)
        return change.view(inputs.shape)

    def _changes(
        self, layer: int, ops: EditBatch, inputs: Tensor
    ) -> Float[Tensor, "batch pos d_model"]:
        device, rows = inputs.device, self.rows[layer]
        place = (ops.row * inputs.shape[1] + ops.position - self.start).to(device)
        which = rows.index(ops.feature)
        current = self._current(ops, inputs.flatten(0, 1), place, which)
        gain, offset, cap = (n.to(device, current.dtype) for n in (ops.gain, ops.offset, ops.cap))
        new = torch.minimum(gain * current + offset, cap)
        if len(rows.decoders) > 1:
            self._writing[layer] = new - current, which, place
        change = rows.written(new - current, which, place=place, n_places=inputs[..., 0].numel())
        return change.view(inputs.shape)

    def _current(
        self,
        ops: EditBatch,
        inputs: Float[Tensor, "place d_model"],
        place: Int64[Tensor, " op"],
        which: Int64[Tensor, " op"],
    ) -> Float[Tensor, " op"]:
        """Activations in this pass of the features that are changed."""
        layer = int(ops.layer[0])
        rows, stacked = self.rows[layer], self.stacked
        if self.regime not in (Regime.DIRECT, Regime.FROZEN_LINEAR):
            return rows.activations(inputs, place, which)
        assert stacked is not None
        coordinates = torch.stack([ops.layer, ops.position, ops.feature], dim=1)
        before = stacked.activation_of(ops.row, coordinates)
        if self.regime is Regime.DIRECT:
            return before
        row = torch.zeros_like(ops.row) if stacked.shared else ops.row
        undisturbed = stacked.inputs[layer][row.to(inputs.device), ops.position.to(inputs.device)]
        return before + rows.encoder.responses(
            undisturbed, inputs[place] - undisturbed, which, before=before
        )

    def _controlled(
        self, layer: int, change: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        for row, (control, seed) in enumerate(self.edits.controls):
            if control is Control.RANDOM_DIRECTION:
                length = change[row].norm(dim=-1, keepdim=True)
                change[row] = length * random_direction(seed, layer, change.shape[-1]).to(change)
            elif control is not Control.AS_IS:
                change[row] *= _FACTOR[control]
        return change


def random_direction(seed: int, layer: int, width: int) -> Float[Tensor, " d_model"]:
    """A direction of length 1, uniform over directions, the same for the same seed and layer."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + layer)
    vector = torch.randn(width, generator=generator, dtype=torch.float64)
    return (vector / vector.norm()).float()
