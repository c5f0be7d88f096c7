"""Encoder and decoder rows of a few features of one layer.

Only the rows of the features that are needed leave the transcoder, so that lazily loaded
transcoders work and an intervention on one feature does not encode all of them.

    rows = FeatureRows.read(transcoders[layer], ids)
    activations = rows.activations(inputs, which)       # pair by pair
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from circuit_tracer.transcoder.activation_functions import JumpReLU
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder
from jaxtyping import Float, Int64
from torch import Tensor, nn

from em_circuits.models import Model

_CHUNK = 16_384
"""Pairs of activation and feature that are gathered at a time."""


@dataclass(frozen=True)
class FeatureRows:
    """Encoder and decoder rows of some features of one layer, in the model's precision."""

    transcoder: SingleLayerTranscoder
    ids: Int64[Tensor, " feature"]
    """Ascending feature ids."""
    encoder: Float[Tensor, "feature d_model"]
    bias: Float[Tensor, " feature"]
    decoder: Float[Tensor, "feature d_model"]
    threshold: Float[Tensor, " feature"] | None
    """A feature fires above it (0 for ReLU); None if whether it fires depends on the others."""

    @classmethod
    def read(cls, transcoder: SingleLayerTranscoder, ids: Int64[Tensor, " feature"]) -> FeatureRows:
        """Fetch the rows of `ids` (any order, repetitions allowed)."""
        ids = ids.unique().to(transcoder.b_enc.device)
        bias = transcoder.b_enc.detach()[ids]
        return cls(
            transcoder,
            ids,
            transcoder.W_enc.detach()[ids],
            bias,
            transcoder._get_decoder_vectors(ids).detach(),
            _threshold(transcoder.activation_function, ids, bias),
        )

    def index(self, feature: Int64[Tensor, " op"]) -> Int64[Tensor, " op"]:
        """Rows of the given feature ids, which must be among `ids`."""
        return torch.searchsorted(self.ids, feature.to(self.ids.device))

    def responses(
        self, inputs: Float[Tensor, "op d_model"], which: Int64[Tensor, " op"]
    ) -> Float[Tensor, " op"]:
        """``W_enc[which[i]] . inputs[i]`` for every i: pre-activations without the bias."""
        parts = [
            torch.einsum("nd,nd->n", inputs[i : i + _CHUNK], self.encoder[which[i : i + _CHUNK]])
            for i in range(0, len(which), _CHUNK)
        ]
        return torch.cat(parts) if parts else inputs.new_zeros(0)

    def activations(
        self, inputs: Float[Tensor, "op d_model"], which: Int64[Tensor, " op"]
    ) -> Float[Tensor, " op"]:
        """Activation of feature ``which[i]`` on ``inputs[i]`` for every i."""
        if self.threshold is None:
            everything = self.transcoder.encode(inputs)
            return everything.gather(1, self.ids[which][:, None])[:, 0]
        pre = self.responses(inputs, which) + self.bias[which]
        return pre * (pre > self.threshold[which])

    def written(
        self,
        amounts: Float[Tensor, " op"],
        which: Int64[Tensor, " op"],
        *,
        place: Int64[Tensor, " op"],
        n_places: int,
    ) -> Float[Tensor, "place d_model"]:
        """Sum of ``amounts[i] * W_dec[which[i]]`` at ``place[i]``, accumulated in float32."""
        total = torch.zeros((n_places, self.decoder.shape[1]), device=self.decoder.device)
        for i in range(0, len(which), _CHUNK):
            part = slice(i, i + _CHUNK)
            vectors = amounts[part, None] * self.decoder[which[part]]
            total.index_add_(0, place[part], vectors.float())
        return total


def _threshold(function: object, ids: Tensor, like: Tensor) -> Tensor | None:
    if function is torch.nn.functional.relu or isinstance(function, nn.ReLU):
        return torch.zeros_like(like)
    if isinstance(function, JumpReLU):
        threshold = function.threshold.detach()
        return threshold.expand(len(ids)) if threshold.ndim == 0 else threshold[ids]
    return None


def decoder_vectors(
    model: Model, layer: Int64[Tensor, " feature"], feature: Int64[Tensor, " feature"]
) -> Float[Tensor, "feature d_model"]:
    """Decoder row of each (layer, feature id), in float32 on the CPU."""
    vectors = torch.empty((len(layer), model.transcoders[0].d_model))
    for number in layer.unique().tolist():
        mask = layer == number
        ids = feature[mask].contiguous()
        rows = FeatureRows.read(model.transcoders[number], ids)
        vectors[mask] = rows.decoder[rows.index(ids)].float().cpu()
    return vectors
