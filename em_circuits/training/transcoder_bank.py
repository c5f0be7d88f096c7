"""Per-layer transcoders trained side by side, whatever the model.

A transcoder reads a layer's MLP input x and predicts the MLP's output y (Dunefsky, Chlenski and
Nanda 2024, arXiv:2406.11944):

    f = gate(W_enc x + b_enc)      y ~ f @ W_dec + b_dec  [ + W_skip x ]

The skip connection is Paulo, Shabalin and Belrose's (2025, arXiv:2501.18823), but held at the best
affine map, in closed form: trained by Adam beside the features it only loses what it had. Gates, of
k features a position:

| gate | features that fire | saved as | source |
|---|---|---|---|
| `batch-topk` | the k * n largest positive of n positions | JumpReLU | Bussmann 2024, 2412.06410 |
| `topk` | the k largest positive of each position | Top-K | Gao 2024, 2406.04093 |
| `jumprelu` | those above a threshold of their own | JumpReLU | Rajamanoharan 2024, 2407.14435 |

After `batch-topk` a layer has the one threshold that keeps k on average over text. Those of
`jumprelu` learn by straight-through estimates, under the loss ``(L0 / k - 1)^2`` of that paper.
Features that have not fired for long share the residual under a loss of their own (AuxK of Gao et
al.). Position 0 (BOS) is left out: attribution zeroes it.

    bank = TranscoderBank(n_layers=4, d_model=128, config=BankConfig())
    loss = bank(inputs, outputs)
    tensors = bank.folded(bank.threshold(inputs))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from em_circuits.models.family import Decoder
from em_circuits.models.sites import FeatureSites
from em_circuits.models.transcoder_files import CONFIG, PER_LAYER, POSITIVE_ONLY
from em_circuits.models.transcoders import THRESHOLD
from em_circuits.training.settings import BankConfig
from pivotal_tokens.artefacts import atomic_path, write_atomic

INPUT_HOOK, OUTPUT_HOOK = "mlp.hook_in", "mlp.hook_out"


class TranscoderBank(nn.Module):
    """The transcoders of some layers, trained side by side in units of each layer's own spread."""

    W_skip: Tensor
    idle: Tensor
    age: Tensor
    in_mean: Tensor
    in_scale: Tensor
    out_mean: Tensor
    out_scale: Tensor

    def __init__(self, *, n_layers: int, d_model: int, config: BankConfig) -> None:
        super().__init__()
        self.config = config
        shape = (n_layers, config.features, d_model)
        decoder = nn.functional.normalize(torch.randn(shape), dim=-1)
        encoder = nn.functional.normalize(torch.randn(shape), dim=-1)
        self.W_dec = nn.Parameter(decoder)
        self.W_enc = nn.Parameter(encoder)
        self.b_enc = nn.Parameter(torch.zeros(n_layers, config.features))
        self.b_dec = nn.Parameter(torch.zeros(n_layers, d_model))
        if config.skip:
            self.register_buffer("W_skip", torch.zeros(n_layers, d_model, d_model))
        if config.gate == "jumprelu":
            self.log_threshold = nn.Parameter(torch.zeros(n_layers, config.features))
            self.register_buffer("age", torch.zeros(()))
        self.register_buffer("idle", torch.zeros(n_layers, config.features))
        self.register_buffer("in_mean", torch.zeros(n_layers, 1, d_model))
        self.register_buffer("in_scale", torch.ones(n_layers, 1, 1))
        self.register_buffer("out_mean", torch.zeros(n_layers, 1, d_model))
        self.register_buffer("out_scale", torch.ones(n_layers, 1, 1))

    def fit_units(
        self,
        inputs: Float[Tensor, "layer pos d_model"],
        outputs: Float[Tensor, "layer pos d_model"],
    ) -> None:
        """Take means and spreads from a batch, so that training sees unit variance."""
        for name, values in (("in", inputs), ("out", outputs)):
            mean = values.mean(dim=1, keepdim=True)
            scale = (values - mean).pow(2).mean(dim=(1, 2), keepdim=True).sqrt()
            setattr(self, f"{name}_mean", mean)
            setattr(self, f"{name}_scale", scale)

    @torch.no_grad()
    def start(
        self,
        inputs: Float[Tensor, "layer pos d_model"],
        outputs: Float[Tensor, "layer pos d_model"],
        skip: Float[Tensor, "layer d_model d_model"] | None = None,
    ) -> None:
        """Units of a batch; the skip matrix, in the model's units; each feature at a drawn
        position of the batch: it reads its input and writes what the skip matrix misses."""
        self.fit_units(inputs, outputs)
        x, target = self._in_units(inputs), (outputs - self.out_mean) / self.out_scale
        if self.config.skip and skip is not None:
            self.W_skip.copy_(skip * self.in_scale / self.out_scale)
            target = target - x @ self.W_skip.mT
        drawn = torch.randint(x.shape[1], (self.config.features,)).to(x.device)
        self.W_enc.copy_(nn.functional.normalize(x[:, drawn], dim=-1))
        self.W_dec.copy_(nn.functional.normalize(target[:, drawn], dim=-1))

    def _in_units(
        self, inputs: Float[Tensor, "layer pos d_model"]
    ) -> Float[Tensor, "layer pos d_model"]:
        return (inputs - self.in_mean) / self.in_scale

    def pre_activations(
        self, inputs: Float[Tensor, "layer pos d_model"]
    ) -> Float[Tensor, "layer pos feature"]:
        """Encoder outputs before the gate, in training units."""
        return torch.baddbmm(self.b_enc[:, None], self._in_units(inputs), self.W_enc.mT)

    def forward(
        self,
        inputs: Float[Tensor, "layer pos d_model"],
        outputs: Float[Tensor, "layer pos d_model"],
    ) -> Float[Tensor, ""]:
        """Share of the output variance missed, mean over layers, plus the gate's and the dead
        features' losses."""
        target = (outputs - self.out_mean) / self.out_scale
        pre = self.pre_activations(inputs)
        active, sparsity = self._gated(pre.relu())
        residual = target - torch.baddbmm(self.b_dec[:, None], active, self.W_dec)
        if self.config.skip:
            residual = residual - self._in_units(inputs) @ self.W_skip.mT
        loss = residual.pow(2).mean()
        if sparsity is not None:
            loss = loss + self.config.sparsity * sparsity
        with torch.no_grad():
            fired = (active > 0).any(dim=1)
            self.idle = torch.where(fired, 0.0, self.idle + 1)
            dead = self.idle > self.config.dead_after
        if not dead.any():
            return loss
        return loss + self.config.dead_weight * self._dead_loss(pre, residual.detach(), dead)

    def _gated(
        self, values: Float[Tensor, "layer pos feature"]
    ) -> tuple[Float[Tensor, "layer pos feature"], Float[Tensor, ""] | None]:
        """Activations, and the loss on their number where the gate learns by one."""
        if self.config.gate == "topk":
            return _largest(values, self.config.k), None
        jumps = self.config.gate == "jumprelu"
        if not jumps or self.age < self.config.threshold_after:
            with torch.no_grad():
                keep = self.config.k * values.shape[1]
                cut = values.flatten(1).topk(keep, dim=1).values[:, -1]
                if jumps:
                    self.age += 1
                    self.log_threshold.copy_(
                        cut.clamp(min=1e-4).log()[:, None].expand_as(self.b_enc)
                    )
            return values * (values >= cut[:, None, None]), None
        # The step's straight-through estimate: 1 above the threshold, and backwards -1/bandwidth
        # per unit of a threshold within half a bandwidth of the pre-activation.
        distance = values.detach() - self.log_threshold.exp()[:, None]
        soft = (distance / self.config.bandwidth + 0.5).clamp(0, 1)
        fires = (distance > 0).to(values) + (soft - soft.detach())
        l0 = fires.sum(-1).mean(1)
        return values * fires, (l0 / self.config.k - 1).pow(2).mean()

    def _dead_loss(
        self,
        pre: Float[Tensor, "layer pos feature"],
        residual: Float[Tensor, "layer pos d_model"],
        dead: Tensor,
    ) -> Float[Tensor, ""]:
        values = torch.where(dead[:, None], pre, 0.0).relu()
        sparse = _largest(values, min(self.config.dead_k, values.shape[-1]))
        return (residual - sparse @ self.W_dec).pow(2).mean()

    @torch.no_grad()
    def project(self) -> None:
        """Put every decoder row back to unit length."""
        self.W_dec.copy_(nn.functional.normalize(self.W_dec, dim=-1))

    @torch.no_grad()
    def threshold(self, inputs: Float[Tensor, "layer pos d_model"]) -> Float[Tensor, " layer"]:
        """The pre-activation, in training units, that k features per position exceed on average."""
        keep = self.config.k * inputs.shape[1]
        values = self.pre_activations(inputs).relu().flatten(1)
        return values.kthvalue(max(1, values.shape[1] - keep), dim=1).values.clamp(min=1e-4)

    @torch.no_grad()
    def folded(self, threshold: Float[Tensor, " layer"]) -> list[dict[str, Tensor]]:
        """Tensors of each layer's file, training units folded into the weights.

        With x' = (x - m) / s and y' = (y - n) / t: the encoder is W_enc / s with bias
        b_enc - W_enc m / s; the skip matrix is S = t W_skip / s; the decoder is t W_dec with bias
        t b_dec + n - S m; activations, and so thresholds, keep their unit.

        Args:
            threshold: Of each layer under `batch-topk`; the other gates have their own.
        """
        encoder = self.W_enc / self.in_scale
        bias = self.b_enc - (encoder @ self.in_mean.mT).squeeze(-1)
        decoder = self.W_dec * self.out_scale
        out_bias = self.b_dec * self.out_scale[:, 0] + self.out_mean[:, 0]
        thresholds = threshold[:, None].repeat(1, self.config.features)
        if self.config.gate == "jumprelu":
            thresholds = self.log_threshold.exp()
        found = []
        for layer in range(encoder.shape[0]):
            tensors = {
                "W_enc": encoder[layer],
                "W_dec": decoder[layer],
                "b_enc": bias[layer],
                "b_dec": out_bias[layer],
            }
            if self.config.skip:
                skip = self.W_skip[layer] * self.out_scale[layer] / self.in_scale[layer]
                tensors["W_skip"] = skip
                tensors["b_dec"] = out_bias[layer] - skip @ self.in_mean[layer, 0]
            if self.config.gate != "topk":
                tensors[THRESHOLD] = thresholds[layer]
            found.append(tensors)
        return found


def _largest(values: Float[Tensor, "*pos feature"], k: int) -> Float[Tensor, "*pos feature"]:
    """The k largest of each position, zero elsewhere."""
    best = values.topk(k, dim=-1)
    return torch.zeros_like(values).scatter(-1, best.indices, best.values)


def save_layer(directory: Path, layer: int, tensors: dict[str, Tensor]) -> None:
    """Write a layer's file of circuit-tracer's directory form."""
    with atomic_path(directory / f"layer_{layer}.safetensors") as temporary:
        save_file({name: t.contiguous().cpu() for name, t in tensors.items()}, temporary)


def set_header(config: BankConfig, model_name: str, scan: str) -> dict[str, Any]:
    """What ``config.yaml`` says of a set."""
    top_k = {"activation": "topk", "k": config.k, POSITIVE_ONLY: True}
    return {
        "model_kind": PER_LAYER,
        "model_name": model_name,
        "feature_input_hook": INPUT_HOOK,
        "feature_output_hook": OUTPUT_HOOK,
        "scan": scan,
        **(top_k if config.gate == "topk" else {}),
    }


def save_header(directory: Path, header: dict[str, Any]) -> None:
    """Write ``config.yaml``, after which the directory is a set."""
    write_atomic(directory / CONFIG, yaml.safe_dump(header, sort_keys=False))


class _Enough(Exception):
    """The last layer that is recorded has run."""


@torch.no_grad()
def mlp_activations(
    decoder: Decoder, ids: Tensor, mask: Tensor, layers: Sequence[int]
) -> tuple[Float[Tensor, "layer pos d_model"], Float[Tensor, "layer pos d_model"]]:
    """Inputs and outputs of some MLPs at the selected positions of a batch.

    Args:
        ids: Input ids, (batch, pos), padded on the right: no token sees padding.
        mask: Positions to record, (batch, pos) of bool.
        layers: Ascending; the model runs up to the last of them.
    """
    inputs: dict[int, Tensor] = {}
    outputs: dict[int, Tensor] = {}

    def selected(values: Tensor) -> Tensor:
        return values.reshape(*mask.shape, -1)[mask]

    def read(layer: int, x: Tensor) -> None:
        if layer in layers:
            inputs[layer] = selected(x)

    def write(layer: int, y: Tensor) -> None:
        if layer in layers:
            outputs[layer] = selected(y)
        if layer == layers[-1]:
            raise _Enough

    sites = FeatureSites.of(decoder, INPUT_HOOK, OUTPUT_HOOK)
    try:
        with sites.hooked(read=read, write=write):
            decoder.model(input_ids=ids, use_cache=False)
    except _Enough:
        pass
    return torch.stack(list(inputs.values())), torch.stack(list(outputs.values()))
