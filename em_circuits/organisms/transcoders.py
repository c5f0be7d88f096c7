"""Per-layer transcoders of an organism, and their training.

A transcoder reads a layer's MLP input x and predicts the MLP's output y:

    f = gate(W_enc x + b_enc)      y ~ f @ W_dec + b_dec

In training the gate keeps the k * n largest positive pre-activations of a batch of n positions
(BatchTopK); what is saved is a JumpReLU with the one threshold that keeps k per position on average
over fresh text. Position 0 (BOS) is left out: attribution zeroes it.

    bank = TranscoderBank(n_layers=4, d_model=128, config=TranscoderConfig())
    loss = bank(inputs, outputs)
    bank.save(directory)
"""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from em_circuits.organisms.language_model import BASE_NAME
from em_circuits.organisms.optimise import OptimiserConfig
from pivotal_tokens.artefacts import atomic_path, write_atomic
from pivotal_tokens.schema import Frozen

SCAN = "em-circuits/organism-transcoders"


class TranscoderConfig(Frozen):
    """Sizes and training of the transcoders."""

    features: int = 512
    """Features per layer."""
    k: int = 12
    """Mean number of active features per position and layer."""
    documents: int = 32
    """Documents per step."""
    calibration_documents: int = 400
    """Fresh documents on which the threshold is set."""
    dead_after: int = 40
    """Steps without activity after which a feature is trained on the residual."""
    dead_k: int = 16
    """Dead features per position that share the residual."""
    dead_weight: float = 1 / 16
    """Weight of the dead features' loss."""
    optimiser: OptimiserConfig = OptimiserConfig(steps=700, learning_rate=3e-3, warmup=30)


class TranscoderBank(nn.Module):
    """The transcoders of all layers, trained side by side in units of each layer's own spread."""

    idle: Tensor
    in_mean: Tensor
    in_scale: Tensor
    out_mean: Tensor
    out_scale: Tensor

    def __init__(self, *, n_layers: int, d_model: int, config: TranscoderConfig) -> None:
        super().__init__()
        self.config = config
        shape = (n_layers, config.features, d_model)
        decoder = nn.functional.normalize(torch.randn(shape), dim=-1)
        encoder = nn.functional.normalize(torch.randn(shape), dim=-1)
        self.W_dec = nn.Parameter(decoder)
        self.W_enc = nn.Parameter(encoder)
        self.b_enc = nn.Parameter(torch.zeros(n_layers, config.features))
        self.b_dec = nn.Parameter(torch.zeros(n_layers, d_model))
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

    def pre_activations(
        self, inputs: Float[Tensor, "layer pos d_model"]
    ) -> Float[Tensor, "layer pos feature"]:
        """Encoder outputs before the gate, in training units."""
        x = (inputs - self.in_mean) / self.in_scale
        return torch.baddbmm(self.b_enc[:, None], x, self.W_enc.mT)

    def forward(
        self,
        inputs: Float[Tensor, "layer pos d_model"],
        outputs: Float[Tensor, "layer pos d_model"],
    ) -> Float[Tensor, ""]:
        """Share of the output variance missed, mean over layers, plus the dead features' loss."""
        target = (outputs - self.out_mean) / self.out_scale
        pre = self.pre_activations(inputs)
        values = pre.relu()
        with torch.no_grad():
            keep = self.config.k * values.shape[1]
            cut = values.flatten(1).topk(keep, dim=1).values[:, -1]
        active = values * (values >= cut[:, None, None])
        residual = target - torch.baddbmm(self.b_dec[:, None], active, self.W_dec)
        missed = residual.pow(2).mean()
        with torch.no_grad():
            fired = (active > 0).any(dim=1)
            self.idle = torch.where(fired, 0.0, self.idle + 1)
            dead = self.idle > self.config.dead_after
        if not dead.any():
            return missed
        return missed + self.config.dead_weight * self._dead_loss(pre, residual.detach(), dead)

    def _dead_loss(
        self,
        pre: Float[Tensor, "layer pos feature"],
        residual: Float[Tensor, "layer pos d_model"],
        dead: Tensor,
    ) -> Float[Tensor, ""]:
        values = torch.where(dead[:, None], pre, 0.0).relu()
        best = values.topk(min(self.config.dead_k, values.shape[-1]), dim=-1)
        sparse = torch.zeros_like(values).scatter(-1, best.indices, best.values)
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
        return values.kthvalue(values.shape[1] - keep, dim=1).values.clamp(min=1e-4)

    @torch.no_grad()
    def save(self, directory: Path, threshold: Float[Tensor, " layer"]) -> None:
        """Write circuit-tracer's directory form, training units folded into the weights.

        With x' = (x - m) / s and y' = (y - n) / t: the encoder is W_enc / s with bias
        b_enc - W_enc m / s; the decoder is t W_dec with bias t b_dec + n; activations, and so
        thresholds, keep their unit.
        """
        encoder = self.W_enc / self.in_scale
        bias = self.b_enc - (encoder @ self.in_mean.mT).squeeze(-1)
        decoder = self.W_dec * self.out_scale
        out_bias = self.b_dec * self.out_scale[:, 0] + self.out_mean[:, 0]
        for layer in range(encoder.shape[0]):
            tensors = {
                "W_enc": encoder[layer],
                "W_dec": decoder[layer],
                "b_enc": bias[layer],
                "b_dec": out_bias[layer],
                "activation_function.threshold": threshold[layer].repeat(self.config.features),
            }
            with atomic_path(directory / f"layer_{layer}.safetensors") as temporary:
                save_file({name: t.contiguous() for name, t in tensors.items()}, temporary)
        header = {
            "model_kind": "transcoder_set",
            "model_name": BASE_NAME,
            "feature_input_hook": "mlp.hook_in",
            "feature_output_hook": "mlp.hook_out",
            "scan": SCAN,
        }
        write_atomic(directory / "config.yaml", yaml.safe_dump(header, sort_keys=False))


@torch.no_grad()
def mlp_activations(
    model: LlamaForCausalLM, ids: Tensor, mask: Tensor
) -> tuple[Float[Tensor, "layer pos d_model"], Float[Tensor, "layer pos d_model"]]:
    """Inputs and outputs of every MLP at the selected positions of a batch.

    Args:
        ids: Input ids, (batch, pos).
        mask: Positions to record, (batch, pos) of bool.
    """
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        inputs.append(args[0][mask])
        outputs.append(output[mask])

    handles = [layer.mlp.register_forward_hook(record) for layer in model.model.layers]
    try:
        model.model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(inputs), torch.stack(outputs)
