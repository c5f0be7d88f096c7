"""Encoder and decoder rows of a few nodes of one layer.

Only the rows that are needed leave the dictionary, so that lazily loaded transcoders work and an
intervention on one node does not encode all of them.

    rows = FeatureRows.read(model.dictionaries[layer], ids)
    amounts = rows.activations(inputs, place, which)
    change = rows.written(amounts, which, place=place, n_places=len(inputs))
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from em_circuits.models import Model
from em_circuits.models.dictionaries import CHUNK, Dictionary, Encoder, one_layer_only

_CROWDED = 1 / 8
"""Share of the nodes at a place above which all of them are computed there at once."""


@dataclass(frozen=True)
class FeatureRows:
    """Encoder and decoder rows of some nodes of one layer, in the model's precision."""

    ids: Int64[Tensor, " feature"]
    """Ascending."""
    encoder: Encoder
    decoders: tuple[Float[Tensor, "feature d_model"], ...]
    """What they write into their own layer, and into each later one where they do."""

    @property
    def decoder(self) -> Float[Tensor, "feature d_model"]:
        """What they write into their own layer."""
        return self.decoders[0]

    @classmethod
    def read(cls, dictionary: Dictionary, ids: Int64[Tensor, " feature"]) -> FeatureRows:
        """Fetch the rows of `ids` (any order, repetitions allowed)."""
        ids = ids.unique()
        decoders = tuple(dictionary.decoder(ids, k) for k in range(dictionary.n_writes))
        return cls(ids.to(decoders[0].device), dictionary.encoder(ids), decoders)

    def index(self, feature: Int64[Tensor, " op"]) -> Int64[Tensor, " op"]:
        """Rows of the given ids, which must be among `ids`."""
        return torch.searchsorted(self.ids, feature.to(self.ids.device))

    def activations(
        self,
        inputs: Float[Tensor, "place d_model"],
        place: Int64[Tensor, " op"],
        which: Int64[Tensor, " op"],
    ) -> Float[Tensor, " op"]:
        """Activation of node ``which[i]`` on ``inputs[place[i]]`` for every i."""
        crowded = self._crowded(place, len(inputs))
        many = crowded[place]
        if not many.any():
            return self.encoder.activations(inputs[place], which)
        row = (crowded.cumsum(0) - 1)[place[many]]
        together = self.encoder.encode(inputs[crowded])[row, which[many]]
        if many.all():
            return together
        found = together.new_empty(len(which))
        found[many] = together
        found[~many] = self.encoder.activations(inputs[place[~many]], which[~many])
        return found

    def _crowded(self, place: Int64[Tensor, " op"], n_places: int) -> Bool[Tensor, " place"]:
        """Where one product over all nodes costs less than one a pair."""
        return place.bincount(minlength=n_places) > _CROWDED * len(self.ids)

    def written(
        self,
        amounts: Float[Tensor, " op"],
        which: Int64[Tensor, " op"],
        *,
        place: Int64[Tensor, " op"],
        n_places: int,
        write: int = 0,
    ) -> Float[Tensor, "place d_model"]:
        """Sum of ``amounts[i] * decoders[write][which[i]]`` at ``place[i]``, in float32."""
        decoder = self.decoders[write]
        total = torch.zeros((n_places, decoder.shape[1]), device=decoder.device)
        crowded = self._crowded(place, n_places)
        many = crowded[place]
        if many.any():
            row = (crowded.cumsum(0) - 1)[place[many]]
            whole = amounts.new_zeros(int(crowded.sum()), len(self.ids), dtype=torch.float32)
            whole.index_put_((row, which[many]), amounts[many].float(), accumulate=True)
            total[crowded] = whole @ decoder.float()
            amounts, which, place = amounts[~many], which[~many], place[~many]
        for i in range(0, len(which), CHUNK):
            part = slice(i, i + CHUNK)
            vectors = amounts[part, None] * decoder[which[part]]
            total.index_add_(0, place[part], vectors.float())
        return total


def decoder_vectors(
    model: Model, layer: Int64[Tensor, " feature"], feature: Int64[Tensor, " feature"]
) -> Float[Tensor, "feature d_model"]:
    """Decoder row of each (layer, feature id), in float32 on the CPU.

    Raises:
        RequestError: If features write into several layers.
    """
    if model.dictionaries[0].n_writes > 1:
        raise one_layer_only("one vector that a feature writes")
    vectors = torch.empty((len(layer), model.dictionaries[0].d_model))
    for mask, rows, index in _decoders(model, layer, feature):
        vectors[mask] = rows.cpu()[index]
    return vectors


def decoder_norms(
    model: Model, layer: Int64[Tensor, " feature"], feature: Int64[Tensor, " feature"]
) -> Float[Tensor, " feature"]:
    """Length of all that each feature writes, in float32 on the CPU; no more than a layer's rows at
    a time."""
    norms = torch.empty(len(layer))
    for mask, rows, index in _decoders(model, layer, feature):
        norms[mask] = rows.norm(dim=1).cpu()[index]
    return norms


def written_bounds(
    model: Model,
    steepness: Float[Tensor, "layer pos"],
    coordinates: Int64[Tensor, "active 3"],
) -> Float[Tensor, " active"]:
    """What one unit of each node can change at most, to first order, whatever the angles.

    Args:
        model: Whose decoder rows are meant.
        steepness: Length of the gradient at every MLP output.
        coordinates: (layer, position, id) of each node.
    """
    layer, position, feature = coordinates.unbind(1)
    bounds = torch.zeros(len(coordinates))
    for number in layer.unique().tolist():
        mask, dictionary = layer == number, model.dictionaries[number]
        ids, index = feature[mask].unique(return_inverse=True)
        for k in range(dictionary.n_writes):
            lengths = dictionary.decoder(ids, k).float().norm(dim=1).cpu()
            bounds[mask] += lengths[index] * steepness[number + k, position[mask]]
    return bounds


def _decoders(model: Model, layer: Tensor, feature: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Of each layer: where it is meant, decoder rows in float32, and which row each feature has."""
    for number in layer.unique().tolist():
        mask = layer == number
        ids, index = feature[mask].unique(return_inverse=True)
        dictionary = model.dictionaries[number]
        rows = [dictionary.decoder(ids, k).float() for k in range(dictionary.n_writes)]
        yield mask, torch.cat(rows, dim=1), index


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
        dictionary = model.dictionaries[layer]
        decoders = [dictionary.decoder(ids, k).float() for k in range(dictionary.n_writes)]
        begin = start
        _, lengths = coordinates[here, 1].unique_consecutive(return_counts=True)
        for length in lengths.tolist():
            part = slice(begin, begin + length)
            mine, position = index[begin - start : begin - start + length], coordinates[begin, 1]
            every = len(mine) == len(ids)  # as of neurons: no rows need be gathered
            pushes = [
                (gradients[:, layer + k, int(position)] @ (rows if every else rows[mine]).T).cpu()
                for k, rows in enumerate(decoders)
            ]
            scores[:, part] = sum(pushes[1:], start=pushes[0]) * amounts[part]
            begin += length
        start += count
    return scores
