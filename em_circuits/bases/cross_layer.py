"""Cross-layer transcoder features as nodes: read at one layer, written into it and all later ones.

    a = act(W_enc[l] x + b_enc[l]),  w_k = W_dec[l][:, k], into the MLP output of layer l + k

One part per layer, over circuit-tracer's own `CrossLayerTranscoder` (ReLU or JumpReLU, in memory or
read from disk). What all layers' features together leave of an MLP is no node, and responds.

    parts = cross_layer_parts(model, clt)
    nodes = choose_nodes(model, parts, input_ids, weights, n=300)
"""

from __future__ import annotations

from dataclasses import dataclass

from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from jaxtyping import Float, Int64
from torch import Tensor

from em_circuits.bases.part import Part, Stage
from em_circuits.intervention import FIRST_POSITION
from em_circuits.models import Model
from em_circuits.models.sites import FeatureSites
from pivotal_tokens.errors import RequestError


@dataclass(frozen=True)
class CrossLayerPart(Part):
    """The features that read at one layer."""

    transcoder: CrossLayerTranscoder

    def activations(self, x: Float[Tensor, "*batch d_read"]) -> Float[Tensor, "*batch node"]:
        return self.transcoder.encode_layer(x.to(self.transcoder.dtype), self.layer).detach()

    def live(
        self, x: Float[Tensor, "*batch op d_read"], ids: Int64[Tensor, " op"]
    ) -> Float[Tensor, "*batch op"]:
        unique, index = ids.unique(return_inverse=True)
        encoder = self.transcoder._get_encoder_weights(self.layer).detach()[unique][index].to(x)
        return (x * encoder).sum(-1) + self.transcoder.b_enc.detach()[self.layer, ids].to(x)

    def written(self, ids: Int64[Tensor, " op"], write: int = 0) -> Float[Tensor, "op d_write"]:
        unique, index = ids.unique(return_inverse=True)
        # Decoders of a layer: feature x (this layer, the next, ..., the last) x d_model.
        rows = self.transcoder._get_decoder_vectors(self.layer, unique).detach()
        return rows[index, write]

    def explained(self, x: Float[Tensor, "pos d_read"]) -> Float[Tensor, "pos d_write"]:
        """This layer's features' share of this layer's reconstruction; earlier ones write too."""
        decoder = self.transcoder._get_decoder_vectors(self.layer).detach()
        return self.activations(x) @ decoder[:, 0]


def cross_layer_parts(model: Model, clt: CrossLayerTranscoder) -> tuple[CrossLayerPart, ...]:
    """One part per layer of a cross-layer transcoder.

    Args:
        model: Its layers are read and written; its own transcoders play no part.
        clt: On the model's device.

    Raises:
        RequestError: If it is of another depth or width, or its hooks have no place in the model.
    """
    sites = FeatureSites.of(model.decoder, clt.feature_input_hook, clt.feature_output_hook)
    width = model.decoder.d_model
    if (clt.n_layers, clt.d_model) != (sites.n_layers, width):
        raise RequestError(
            f"the cross-layer transcoder has {clt.n_layers} layers of width {clt.d_model}, the "
            f"model {sites.n_layers} of width {width}; they belong to different models"
        )
    return tuple(
        CrossLayerPart(
            basis="cross-layer transcoder",
            name=f"layer {layer}",
            layer=layer,
            stage=Stage.MLP_INPUT,
            read=sites.reads[layer],
            writes=sites.writes[layer:],
            n_nodes=clt.d_transcoder,
            transcoder=clt,
            first_position=FIRST_POSITION,
        )
        for layer in range(clt.n_layers)
    )
