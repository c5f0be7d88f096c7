"""Encoder and decoder rows of a few nodes of one layer.

Only the rows that are needed leave the dictionary, so that lazily loaded transcoders work and an
intervention on one node does not encode all of them.

    rows = FeatureRows.read(model.dictionaries[layer], ids)
    activations = rows.activations(inputs, which)       # pair by pair
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from em_circuits.models import Model
from em_circuits.models.dictionaries import CHUNK, Dictionary, Encoder


@dataclass(frozen=True)
class FeatureRows:
    """Encoder and decoder rows of some nodes of one layer, in the model's precision."""

    ids: Int64[Tensor, " feature"]
    """Ascending."""
    encoder: Encoder
    decoder: Float[Tensor, "feature d_model"]

    @classmethod
    def read(cls, dictionary: Dictionary, ids: Int64[Tensor, " feature"]) -> FeatureRows:
        """Fetch the rows of `ids` (any order, repetitions allowed)."""
        ids = ids.unique()
        decoder = dictionary.decoder(ids)
        return cls(ids.to(decoder.device), dictionary.encoder(ids), decoder)

    def index(self, feature: Int64[Tensor, " op"]) -> Int64[Tensor, " op"]:
        """Rows of the given ids, which must be among `ids`."""
        return torch.searchsorted(self.ids, feature.to(self.ids.device))

    def activations(
        self, inputs: Float[Tensor, "op d_model"], which: Int64[Tensor, " op"]
    ) -> Float[Tensor, " op"]:
        """Activation of node ``which[i]`` on ``inputs[i]`` for every i."""
        return self.encoder.activations(inputs, which)

    def written(
        self,
        amounts: Float[Tensor, " op"],
        which: Int64[Tensor, " op"],
        *,
        place: Int64[Tensor, " op"],
        n_places: int,
    ) -> Float[Tensor, "place d_model"]:
        """Sum of ``amounts[i] * decoder[which[i]]`` at ``place[i]``, accumulated in float32."""
        total = torch.zeros((n_places, self.decoder.shape[1]), device=self.decoder.device)
        for i in range(0, len(which), CHUNK):
            part = slice(i, i + CHUNK)
            vectors = amounts[part, None] * self.decoder[which[part]]
            total.index_add_(0, place[part], vectors.float())
        return total


def decoder_vectors(
    model: Model, layer: Int64[Tensor, " feature"], feature: Int64[Tensor, " feature"]
) -> Float[Tensor, "feature d_model"]:
    """Decoder row of each (layer, feature id), in float32 on the CPU."""
    vectors = torch.empty((len(layer), model.dictionaries[0].d_model))
    for mask, rows, index in _decoders(model, layer, feature):
        vectors[mask] = rows.cpu()[index]
    return vectors


def decoder_norms(
    model: Model, layer: Int64[Tensor, " feature"], feature: Int64[Tensor, " feature"]
) -> Float[Tensor, " feature"]:
    """Length of each decoder row, in float32 on the CPU; no more than a layer's rows at a time."""
    norms = torch.empty(len(layer))
    for mask, rows, index in _decoders(model, layer, feature):
        norms[mask] = rows.norm(dim=1).cpu()[index]
    return norms


def _decoders(model: Model, layer: Tensor, feature: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Of each layer: where it is meant, decoder rows in float32, and which row each feature has."""
    for number in layer.unique().tolist():
        mask = layer == number
        ids, index = feature[mask].unique(return_inverse=True)
        yield mask, model.dictionaries[number].decoder(ids).float(), index


def written_scores(
    model: Model,
    gradients: Float[Tensor, "target layer pos d_model"],
    coordinates: Int64[Tensor, "active 3"],
    amounts: Float[Tensor, " active"],
) -> Float[Tensor, "target active"]:
    """Contract MLP-output gradients with what each node writes there.

    `graphs.gradient.feature_scores` on ``amounts[i] * decoder row``, which are never all in memory.

    Args:
        model: Whose decoder rows are meant.
        gradients: From `graphs.gradient.mlp_output_gradients`.
        coordinates: (layer, position, id) of each node, sorted.
        amounts: Its activation, or a difference of activations.

    Returns:
        Float32 scores on the CPU, in logits.
    """
    scores = torch.empty((len(gradients), len(coordinates)))
    start = 0
    layers, counts = coordinates[:, 0].unique_consecutive(return_counts=True)
    for layer, count in zip(layers.tolist(), counts.tolist(), strict=True):
        here = slice(start, start + count)
        ids, index = coordinates[here, 2].unique(return_inverse=True)
        decoder = model.dictionaries[layer].decoder(ids).float()
        begin = start
        _, lengths = coordinates[here, 1].unique_consecutive(return_counts=True)
        for length in lengths.tolist():
            part = slice(begin, begin + length)
            rows = decoder[index[begin - start : begin - start + length]]
            at = gradients[:, layer, int(coordinates[begin, 1])]
            scores[:, part] = (at @ rows.T).cpu() * amounts[part]
            begin += length
        start += count
    return scores
