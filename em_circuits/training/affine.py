"""Affine maps from what MLPs read to what they write: ridge regression in closed form.

    minimise  |y - W x - b|^2 + n penalty |W|^2,      penalty = strength * mean variance of x

What features add is only what an affine map cannot do, so every figure stands beside this one. The
strength is chosen of `STRENGTHS`: each half of the positions predicts the other half best.

    maps = affine_maps(stream)
    maps.weight[0] @ x + maps.bias[0]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from em_circuits.training.activations import ActivationStream

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_ROWS, _BLOCK = 4096, 64
"""Positions of one product; neighbours that stay in one half, since what is near in a text is
alike."""


@dataclass(frozen=True)
class AffineMaps:
    """One map a layer, in float32 on the CPU."""

    weight: Float[Tensor, "layer d_out d_in"]
    bias: Float[Tensor, "layer d_out"]
    mean: Float[Tensor, "layer d_out"]
    """Of what is written."""


@dataclass
class _Moments:
    """Sums over positions in float64, of inputs and outputs less a shift that keeps them small."""

    n: float
    x: Float64[Tensor, "layer d_in"]
    y: Float64[Tensor, "layer d_out"]
    xx: Float64[Tensor, "layer d_in d_in"]
    yx: Float64[Tensor, "layer d_out d_in"]

    def __add__(self, other: _Moments) -> _Moments:
        return _Moments(
            *(getattr(self, f) + getattr(other, f) for f in ("n", "x", "y", "xx", "yx"))
        )

    def centred(self) -> tuple[Tensor, Tensor]:
        """Covariances of the inputs, and of outputs with inputs."""
        x, y = self.x / self.n, self.y / self.n
        return self.xx / self.n - _outer(x, x), self.yx / self.n - _outer(y, x)

    def fitted(self, strength: Float64[Tensor, " layer"]) -> Float64[Tensor, "layer d_out d_in"]:
        xx, yx = self.centred()
        penalty = strength * xx.diagonal(dim1=1, dim2=2).mean(1)
        eye = torch.eye(xx.shape[1], dtype=xx.dtype)
        return torch.linalg.solve(xx + penalty[:, None, None] * eye, yx.mT).mT

    def missed(self, weight: Float64[Tensor, "layer d_out d_in"]) -> Float64[Tensor, " layer"]:
        """Mean squared error of a map, less the variance of the outputs."""
        xx, yx = self.centred()
        return ((weight @ xx - 2 * yx) * weight).sum((1, 2))


def affine_maps(stream: ActivationStream) -> AffineMaps:
    """The maps of a stream's layers, over every position of its buffers."""
    shift = [side.float().mean(1, keepdim=True) for side in stream.held(0)]
    n_layers, _, d = shift[0].shape
    zeros = [torch.zeros(n_layers, *(d,) * rank, dtype=torch.float64) for rank in (1, 1, 2, 2)]
    halves = [_Moments(0.0, *zeros), _Moments(0.0, *zeros)]
    for index in range(len(stream.buffers)):
        sides = stream.held(index)
        blocks = torch.arange(sides[0].shape[1]).split(_BLOCK)
        for half in (0, 1):
            if not (chosen := blocks[(half + index) % 2 :: 2]):
                continue
            for part in torch.cat(chosen).split(_ROWS):
                x, y = (
                    side[:, part].float() - mean for side, mean in zip(sides, shift, strict=True)
                )
                sums = (x.sum(1), y.sum(1), x.mT @ x, y.mT @ x)
                halves[half] += _Moments(float(len(part)), *(s.cpu().double() for s in sums))
    both, tried = halves[0] + halves[1], torch.tensor(STRENGTHS, dtype=torch.float64)
    best = torch.full((n_layers,), len(tried) - 1)
    if halves[0].n and halves[1].n:
        errors = [
            halves[1].missed(halves[0].fitted(every)) + halves[0].missed(halves[1].fitted(every))
            for every in tried[:, None].expand(-1, n_layers)
        ]
        best = torch.stack(errors).argmin(0)
    weight = both.fitted(tried[best])
    x, y = (
        mean[:, 0].cpu().double() + total / both.n
        for mean, total in zip(shift, (both.x, both.y), strict=True)
    )
    bias = y - (weight @ x[..., None])[..., 0]
    return AffineMaps(weight.float(), bias.float(), y.float())


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return a[:, :, None] * b[:, None]
