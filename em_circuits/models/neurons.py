"""Neurons of a model's MLPs as its dictionaries: exact, so no transcoder is needed.

    a = act(W_gate x) * W_up x   (a plain MLP: act(W_up x)),     decoder row = column of W_down

The nodes' writes and the bias of ``down_proj`` are the whole MLP output: no error is left, at
position 0 as little as anywhere, which has nodes here.

    dictionaries = neuron_dictionaries(hf)
    sites = neuron_sites(hf)                # what an MLP reads, what it writes
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import linear

from em_circuits.models.dictionaries import Active, Dictionary, Encoder, row_products
from em_circuits.models.sites import FeatureSites, Site
from pivotal_tokens.errors import RequestError


@dataclass(frozen=True)
class NeuronDictionary(Dictionary):
    """The neurons of one layer's MLP; the weights are the model's own, never copies."""

    gate: nn.Linear | None
    """None in a plain MLP."""
    up: nn.Linear
    down: nn.Linear
    function: Callable[[Tensor], Tensor]
    """Of the gate, or of ``up_proj`` where there is none."""

    first_position: ClassVar[int] = 0

    @property
    def width(self) -> int:
        return self.down.in_features

    @property
    def d_model(self) -> int:
        return self.down.out_features

    # `linear` instead of the modules themselves: those may have hooks of whoever runs the model.

    def encode(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch node"]:
        up = linear(x, self.up.weight, self.up.bias)
        if self.gate is None:
            return self.function(up)
        return self.function(linear(x, self.gate.weight, self.gate.bias)) * up

    def decode(
        self, activations: Float[Tensor, "*batch node"], x: Float[Tensor, "*batch d_model"]
    ) -> Float[Tensor, "*batch d_model"]:
        return linear(activations, self.down.weight, self.down.bias)

    def decoder(self, ids: Int64[Tensor, " op"], write: int = 0) -> Float[Tensor, "op d_model"]:
        return self.down.weight.detach()[:, ids.to(self.down.weight.device)].T

    def encoder(self, ids: Int64[Tensor, " op"]) -> NeuronEncoder:
        def rows(module: nn.Linear) -> tuple[Tensor, Tensor]:
            at = ids.to(module.weight.device)
            weight = module.weight.detach()[at]
            bias = weight.new_zeros(len(at)) if module.bias is None else module.bias.detach()[at]
            return weight, bias

        gate = None if self.gate is None else rows(self.gate)
        return NeuronEncoder(gate, rows(self.up), self.function)

    def linearised(
        self, x: Float[Tensor, "row pos d_model"], active: Active
    ) -> Callable[[Tensor], Tensor]:
        up = linear(x, self.up.weight, self.up.bias)
        if self.gate is None:
            _, slope = _with_slope(self.function, up)
            return lambda change: self._down(slope * linear(change, self.up.weight))
        value, slope = _with_slope(self.function, linear(x, self.gate.weight, self.gate.bias))
        by_gate, gate = slope * up, self.gate.weight
        return lambda change: self._down(
            by_gate * linear(change, gate) + value * linear(change, self.up.weight)
        )

    def _down(self, change: Tensor) -> Tensor:
        return linear(change, self.down.weight)


@dataclass(frozen=True)
class NeuronEncoder(Encoder):
    """Rows of the two input matrices, each with its bias."""

    gate: tuple[Float[Tensor, "node d_model"], Float[Tensor, " node"]] | None
    up: tuple[Float[Tensor, "node d_model"], Float[Tensor, " node"]]
    function: Callable[[Tensor], Tensor]

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


def neuron_dictionaries(model: nn.Module) -> tuple[NeuronDictionary, ...]:
    """One dictionary per layer.

    Raises:
        RequestError: If the MLPs are not made of ``down_proj``, ``up_proj`` and ``act_fn``.
    """
    return tuple(
        NeuronDictionary(getattr(mlp, "gate_proj", None), mlp.up_proj, mlp.down_proj, mlp.act_fn)
        for mlp in _mlps(model)
    )


def neuron_sites(model: nn.Module) -> FeatureSites:
    """The inputs and outputs of the MLPs.

    Raises:
        RequestError: See `neuron_dictionaries`.
    """
    mlps = _mlps(model)
    return FeatureSites(
        tuple(Site(mlp, "input") for mlp in mlps), tuple(Site(mlp, "output") for mlp in mlps)
    )


def _mlps(model: nn.Module) -> list[Any]:
    config: Any = model.config
    found: list[Any] = [m for name, m in model.named_modules() if name.endswith(".mlp")]
    usable = [
        mlp
        for mlp in found
        if all(isinstance(getattr(mlp, n, None), nn.Linear) for n in ("up_proj", "down_proj"))
        and isinstance(getattr(mlp, "gate_proj", mlp.up_proj), nn.Linear)
        and callable(getattr(mlp, "act_fn", None))
    ]
    if len(usable) != config.num_hidden_layers:
        raise RequestError(
            f"{type(model).__name__}: {len(usable)} MLPs with up_proj, down_proj and act_fn in "
            f"{config.num_hidden_layers} layers; its neurons cannot be nodes, give --transcoders"
        )
    return usable


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
