"""MLP neurons as nodes: exact, without error nodes and without transcoders.

    a = act(gate) * up   (or act(up) in a plain MLP),  w = column of down_proj

A part reads the input of ``down_proj``, that is the activations themselves, so `live` is the real
product and its derivative needs no fixing.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor

from em_circuits.bases.part import Part, Stage
from em_circuits.models import Model
from em_circuits.models.neurons import NeuronDictionary, matrix, neuron_dictionaries
from em_circuits.models.sites import Site


@dataclass(frozen=True)
class NeuronPart(Part):
    """The neurons of one layer's MLP."""

    dictionary: NeuronDictionary

    def activations(self, x: Float[Tensor, "*batch d_read"]) -> Float[Tensor, "*batch node"]:
        return x.detach()

    def live(
        self, x: Float[Tensor, "*batch op d_read"], ids: Int64[Tensor, " op"]
    ) -> Float[Tensor, "*batch op"]:
        return x.gather(-1, ids.expand(*x.shape[:-1])[..., None])[..., 0]

    def written(self, ids: Int64[Tensor, " op"], write: int = 0) -> Float[Tensor, "op d_write"]:
        return self.dictionary.decoder(ids)

    def explained(self, x: Float[Tensor, "pos d_read"]) -> Float[Tensor, "pos d_write"]:
        """The MLP's output but for a bias."""
        return x @ matrix(self.dictionary.down).detach().T


def neuron_parts(model: Model) -> tuple[NeuronPart, ...]:
    """One part per layer.

    Raises:
        RequestError: If the architecture's MLPs have no ``down_proj``.
    """
    return tuple(
        NeuronPart(
            basis="neuron",
            name=f"layer {layer}",
            layer=layer,
            stage=Stage.MLP_HIDDEN,
            read=Site(dictionary.down, "input"),
            writes=(Site(dictionary.down, "output"),),
            n_nodes=dictionary.width,
            dictionary=dictionary,
        )
        for layer, dictionary in enumerate(neuron_dictionaries(model.decoder))
    )
