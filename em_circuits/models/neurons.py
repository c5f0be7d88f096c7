"""Neurons of a model's MLPs as its dictionaries: exact, so no transcoder is needed.

    a = act(W_gate x) * W_up x   (a plain MLP: act(W_up x)),     decoder row = column of W_down

The nodes' writes and the bias of ``down_proj`` are the whole MLP output: no error is left, at
position 0 as little as anywhere, which has nodes here.

    dictionaries = neuron_dictionaries(decoder)
    sites = neuron_sites(decoder)           # what an MLP reads, what it writes
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from em_circuits.models.dictionaries import Active, Dictionary, Encoder, row_products
from em_circuits.models.family import Decoder, Family
from em_circuits.models.sites import FeatureSites, Site
from pivotal_tokens.errors import RequestError


@dataclass(frozen=True)
class NeuronDictionary(Dictionary):
    """The neurons of one layer's MLP; the weights are the model's own, never copies."""

    gate: nn.Linear | None
    """None in a plain MLP."""
    up: nn.Linear | Conv1D
    down: nn.Linear | Conv1D
    function: Callable[[Tensor], Tensor]
    """Of the gate, or of ``up_proj`` where there is none."""

    first_position: ClassVar[int] = 0

    @property
    def width(self) -> int:
        return matrix(self.down).shape[1]

    @property
    def d_model(self) -> int:
        return matrix(self.down).shape[0]

    # `linear` instead of the modules themselves: those may have hooks of whoever runs the model.

    def encode(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch node"]:
        up = linear(x, matrix(self.up), self.up.bias)
        if self.gate is None:
            return self.function(up)
        return self.function(linear(x, self.gate.weight, self.gate.bias)) * up

    def decode(
        self, activations: Float[Tensor, "*batch node"], x: Float[Tensor, "*batch d_model"]
    ) -> Float[Tensor, "*batch d_model"]:
        return linear(activations, matrix(self.down), self.down.bias)

    def decoder(self, ids: Int64[Tensor, " op"], write: int = 0) -> Float[Tensor, "op d_model"]:
        # Row by row in memory, since rows of a transposed matrix are slow to gather.
        return matrix(self.down).detach().T[ids.to(self.down.weight.device)].contiguous()

    def encoder(self, ids: Int64[Tensor, " op"]) -> NeuronEncoder:
        def rows(module: nn.Linear | Conv1D) -> tuple[Tensor, Tensor]:
            at = ids.to(module.weight.device)
            weight = matrix(module).detach()[at]
            bias = weight.new_zeros(len(at)) if module.bias is None else module.bias.detach()[at]
            return weight, bias

        gate = None if self.gate is None else rows(self.gate)
        return NeuronEncoder(gate, rows(self.up), self.function)

    def linearised(
        self, x: Float[Tensor, "row pos d_model"], active: Active
    ) -> Callable[[Tensor], Tensor]:
        up = linear(x, matrix(self.up), self.up.bias)
        if self.gate is None:
            _, slope = _with_slope(self.function, up)
            return lambda change: self._down(slope * linear(change, matrix(self.up)))
        value, slope = _with_slope(self.function, linear(x, self.gate.weight, self.gate.bias))
        by_gate, gate = slope * up, self.gate.weight
        return lambda change: self._down(
            by_gate * linear(change, gate) + value * linear(change, matrix(self.up))
        )

    def _down(self, change: Tensor) -> Tensor:
        return linear(change, matrix(self.down))


@dataclass(frozen=True)
class NeuronEncoder(Encoder):
    """Rows of the two input matrices, each with its bias."""

    gate: tuple[Float[Tensor, "node d_model"], Float[Tensor, " node"]] | None
    up: tuple[Float[Tensor, "node d_model"], Float[Tensor, " node"]]
    function: Callable[[Tensor], Tensor]

    def encode(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch node"]:
        up = linear(x, *self.up)
        if self.gate is None:
            return self.function(up)
        return self.function(linear(x, *self.gate)) * up

    def activations(
        self, inputs: Float[Tensor, "op d_model"], which: Int64[Tensor, " op"]
    ) -> Float[Tensor, " op"]:
        up = _affine(inputs, self.up, which)
        if self.gate is None:
            return self.function(up)
        return self.function(_affine(inputs, self.gate, which)) * up

    def responses(
        self,
        at: Float[Tensor, "op d_model"],
        change: Float[Tensor, "op d_model"],
        which: Int64[Tensor, " op"],
        *,
        before: Float[Tensor, " op"],
    ) -> Float[Tensor, " op"]:
        up, by_up = _affine(at, self.up, which), row_products(change, self.up[0], which)
        if self.gate is None:
            return _with_slope(self.function, up)[1] * by_up
        value, slope = _with_slope(self.function, _affine(at, self.gate, which))
        return slope * row_products(change, self.gate[0], which) * up + value * by_up


def matrix(module: nn.Linear | Conv1D) -> Float[Tensor, "d_write d_read"]:
    """A linear map's weight as `nn.Linear` has it; GPT-2's `Conv1D` keeps it transposed."""
    return module.weight.T if isinstance(module, Conv1D) else module.weight


def neuron_dictionaries(decoder: Decoder) -> tuple[NeuronDictionary, ...]:
    """One dictionary per layer.

    Raises:
        RequestError: If the MLPs are no linear maps around an activation function.
    """
    family = decoder.family
    found = [_dictionary(layer.mlp, family) for layer in decoder.layers]
    usable = [one for one in found if one is not None]
    if len(usable) != len(found):
        parts = f"{family.up}, {family.down} and {family.activation}"
        raise RequestError(
            f"{decoder.name}: {len(usable)} MLPs with {parts} "
            f"in {len(found)} layers; its neurons cannot be nodes, give --transcoders"
        )
    return tuple(usable)


def neuron_sites(decoder: Decoder) -> FeatureSites:
    """The inputs and outputs of the MLPs.

    Raises:
        RequestError: See `neuron_dictionaries`.
    """
    neuron_dictionaries(decoder)
    mlps = [layer.mlp for layer in decoder.layers]
    return FeatureSites(
        tuple(Site(mlp, "input") for mlp in mlps), tuple(Site(mlp, "output") for mlp in mlps)
    )


def _dictionary(mlp: Any, family: Family) -> NeuronDictionary | None:
    gate = None if family.gate is None else getattr(mlp, family.gate, None)
    up, down = (getattr(mlp, name, None) for name in (family.up, family.down))
    function = getattr(mlp, family.activation, None)
    maps = [up, down] if gate is None else [gate, up, down]
    if not all(isinstance(one, nn.Linear | Conv1D) for one in maps) or not callable(function):
        return None
    return NeuronDictionary(gate, up, down, function)  # type: ignore[arg-type]


def _affine(inputs: Tensor, part: tuple[Tensor, Tensor], which: Tensor) -> Tensor:
    weight, bias = part
    return row_products(inputs, weight, which) + bias[which]


@torch.enable_grad()
def _with_slope(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """An elementwise function and its derivative."""
    at = x.detach().requires_grad_()
    value = function(at)
    (slope,) = torch.autograd.grad(value.sum(), at)
    return value.detach(), slope
