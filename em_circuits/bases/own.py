"""The basis of a model's own features: its transcoders', or without any its neurons.

nodes = choose_nodes(model, own_parts(model), input_ids, weights, n=300)
"""

from __future__ import annotations

from em_circuits.bases.neurons import neuron_parts
from em_circuits.bases.part import Part
from em_circuits.bases.transcoders import transcoder_parts
from em_circuits.models import Model


def own_parts(model: Model) -> tuple[Part, ...]:
    """One part per layer: features of the model's transcoders, without any its neurons."""
    return neuron_parts(model) if model.transcoders is None else transcoder_parts(model)
