"""Bases of a graph's nodes: transcoder features, neurons, adapter ranks.

A basis is a tuple of parts, each of which reads one activation and writes vectors into later ones;
see `em_circuits.bases.part` for the interface and its laws. Bases combine by adding their parts:

    parts = transcoder_parts(model) + adapter_parts(pair)
"""

from em_circuits.bases.adapters import AdapterPart, adapter_parts
from em_circuits.bases.neurons import NeuronPart, neuron_parts
from em_circuits.bases.own import own_parts
from em_circuits.bases.part import Part, Stage
from em_circuits.bases.transcoders import TranscoderPart, transcoder_parts

__all__ = [
    "AdapterPart",
    "NeuronPart",
    "Part",
    "Stage",
    "TranscoderPart",
    "adapter_parts",
    "neuron_parts",
    "own_parts",
    "transcoder_parts",
]
