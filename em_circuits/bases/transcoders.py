"""Transcoder features as nodes: ReLU, JumpReLU and Top-K, with or without a skip; cross-layer too.

    a = act(W_enc x + b_enc),  w_k = W_dec row, into the MLP output of layer l + k

A feature of a per-layer transcoder writes into its own layer's MLP output (k = 0), one of a
cross-layer transcoder into that and every later one. What the transcoders do not explain of an MLP
(error, skip connection, bias) is no node; in full edges it responds like the rest of the network.

    nodes = choose_nodes(model, transcoder_parts(model), input_ids, weights, n=300)
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor

from em_circuits.bases.part import Part, Stage
from em_circuits.intervention import FIRST_POSITION
from em_circuits.models import Model
from em_circuits.models.dictionaries import TranscoderDictionary
from em_circuits.models.sites import FeatureSites
from em_circuits.models.transcoders import Transcoders
from pivotal_tokens.errors import RequestError


@dataclass(frozen=True)
class TranscoderPart(Part):
    """The features that read at one layer."""

    dictionary: TranscoderDictionary

    def ids(self, nodes: Int64[Tensor, " op"]) -> Int64[Tensor, " op"]:
        held = self.dictionary.ids
        return nodes if held is None else held[nodes]

    def activations(self, x: Float[Tensor, "*batch d_read"]) -> Float[Tensor, "*batch node"]:
        flat = self.dictionary.encode(x.reshape(-1, x.shape[-1])).detach()
        return flat.reshape(*x.shape[:-1], -1)

    def live(
        self, x: Float[Tensor, "*batch op d_read"], ids: Int64[Tensor, " op"]
    ) -> Float[Tensor, "*batch op"]:
        unique, index = ids.unique(return_inverse=True)
        encoder = self.dictionary.matrices("W_enc", unique)[index].to(x)
        return (x * encoder).sum(-1) + self.dictionary.b_enc[ids].to(x)

    def real(
        self, x: Float[Tensor, "row op d_read"], ids: Int64[Tensor, " op"]
    ) -> Float[Tensor, "row op"]:
        if self.encodes_whole:
            return super().real(x, ids)
        distinct, index = ids.unique(return_inverse=True)
        encoder = self.dictionary.encoder(distinct)
        which = index.expand(x.shape[:2]).reshape(-1)
        return encoder.activations(x.reshape(-1, x.shape[-1]), which).view(x.shape[:2]).detach()

    @property
    def encodes_whole(self) -> bool:
        return self.dictionary.top_k is not None

    def written(self, ids: Int64[Tensor, " op"], write: int = 0) -> Float[Tensor, "op d_write"]:
        return self.dictionary.decoder(ids, write)

    def explained(self, x: Float[Tensor, "pos d_read"]) -> Float[Tensor, "pos d_write"]:
        """The sum of what these features write into this layer: reconstruction less bias and skip,
        and less what a cross-layer transcoder's earlier layers write here."""
        return self.activations(x) @ self.dictionary.W_dec


def transcoder_parts(
    model: Model, transcoders: Transcoders | None = None
) -> tuple[TranscoderPart, ...]:
    """One part per layer of a set of transcoders.

    Args:
        model: Its layers are read and written.
        transcoders: On its device; the model's own if not given.

    Raises:
        RequestError: If it has none, or they are of another depth or width.
    """
    transcoders = model.transcoders if transcoders is None else transcoders
    if transcoders is None:
        raise RequestError("--transcoders none has no transcoder features; use neuron_parts")
    hooks = transcoders.feature_input_hook, transcoders.feature_output_hook
    sites = FeatureSites.of(model.decoder, *hooks)
    widths = len(transcoders), transcoders[0].d_model
    if widths != (sites.n_layers, model.decoder.d_model):
        raise RequestError(
            f"the transcoders have {widths[0]} layers of width {widths[1]}, the model "
            f"{sites.n_layers} of width {model.decoder.d_model}; they belong to different models"
        )
    return tuple(
        TranscoderPart(
            basis="cross-layer transcoder" if transcoders.cross_layer else "transcoder",
            name=f"layer {layer}",
            layer=layer,
            stage=Stage.MLP_INPUT,
            read=sites.reads[layer],
            writes=sites.writes[layer : layer + dictionary.n_writes],
            n_nodes=dictionary.width,
            dictionary=dictionary,
            first_position=FIRST_POSITION,
        )
        for layer, dictionary in enumerate(transcoders.layers)
    )
