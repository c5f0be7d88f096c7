"""Per-layer transcoder features as nodes: ReLU, JumpReLU and Top-K, with or without a skip.

    a = act(W_enc x + b_enc),  w = W_dec row, into the MLP output of the same layer

What the transcoder does not explain of the MLP (its error, its skip connection, its bias) is no
node; in full edges it responds like the rest of the network.
"""

from __future__ import annotations

from dataclasses import dataclass

from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder
from jaxtyping import Float, Int64
from torch import Tensor

from em_circuits.bases.cross_layer import cross_layer_parts
from em_circuits.bases.part import Part, Stage
from em_circuits.intervention import FIRST_POSITION
from em_circuits.models import Model
from em_circuits.models.dictionaries import TranscoderDictionary
from pivotal_tokens.errors import RequestError


@dataclass(frozen=True)
class TranscoderPart(Part):
    """The features of one layer's transcoder."""

    transcoder: SingleLayerTranscoder

    def activations(self, x: Float[Tensor, "*batch d_read"]) -> Float[Tensor, "*batch node"]:
        flat = self.transcoder.encode(x.reshape(-1, x.shape[-1])).detach()
        return flat.reshape(*x.shape[:-1], -1)

    def live(
        self, x: Float[Tensor, "*batch op d_read"], ids: Int64[Tensor, " op"]
    ) -> Float[Tensor, "*batch op"]:
        unique, index = ids.unique(return_inverse=True)
        encoder = self.transcoder.W_enc.detach()[unique][index].to(x)
        return (x * encoder).sum(-1) + self.transcoder.b_enc.detach()[ids].to(x)

    def written(self, ids: Int64[Tensor, " op"], write: int = 0) -> Float[Tensor, "op d_write"]:
        return TranscoderDictionary(self.transcoder).decoder(ids)

    def explained(self, x: Float[Tensor, "pos d_read"]) -> Float[Tensor, "pos d_write"]:
        """The sum of all features' writes: reconstruction less bias and skip."""
        return self.activations(x) @ self.transcoder.W_dec.detach()


def transcoder_parts(model: Model) -> tuple[Part, ...]:
    """One part per layer of a model's transcoders, per-layer or cross-layer.

    Raises:
        RequestError: If it has none.
    """
    if model.transcoders is None:
        raise RequestError("--transcoders none has no transcoder features; use neuron_parts")
    if isinstance(model.transcoders, CrossLayerTranscoder):
        return cross_layer_parts(model, model.transcoders)
    return tuple(
        TranscoderPart(
            basis="transcoder",
            name=f"layer {layer}",
            layer=layer,
            stage=Stage.MLP_INPUT,
            read=model.sites.reads[layer],
            writes=(model.sites.writes[layer],),
            n_nodes=len(transcoder.b_enc),
            transcoder=transcoder,
            first_position=FIRST_POSITION,
        )
        for layer, transcoder in enumerate(model.transcoders)
    )
