"""The basis of a model's own features: its transcoders', or without any its neurons.

nodes = choose_nodes(model, own_parts(model), input_ids, weights, n=300)
"""

from __future__ import annotations

from jaxtyping import Int64
from torch import Tensor

from em_circuits.bases.neurons import neuron_parts
from em_circuits.bases.part import Part
from em_circuits.bases.transcoders import transcoder_parts
from em_circuits.models import Model


def own_parts(model: Model, active: Int64[Tensor, "active 3"] | None = None) -> tuple[Part, ...]:
    """One part per layer: features of the model's transcoders, without any its neurons.

    Args:
        model: Whose nodes.
        active: (layer, position, id) of the only features that count, at every position.
    """
    if model.transcoders is None:
        return neuron_parts(model)
    some = None if active is None else model.transcoders.among(active)
    return transcoder_parts(model, some)
