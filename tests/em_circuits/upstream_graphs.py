"""Graphs for circuit-tracer's own functions."""

from __future__ import annotations

import torch
from circuit_tracer.attribution.targets import LogitTarget
from circuit_tracer.graph import Graph
from circuit_tracer.utils.tl_nnsight_mapping import UnifiedConfig

from em_circuits.graphs.graph import AttributionGraph


def upstream_graph(graph: AttributionGraph) -> Graph:
    """A real `circuit_tracer.graph.Graph` of one of ours."""
    assert graph.edges is not None
    return Graph(
        input_string=graph.header.text,
        input_tokens=graph.input_ids,
        active_features=graph.active,
        adjacency_matrix=graph.edges.to_dense(),
        cfg=UnifiedConfig(
            n_layers=graph.header.n_layers,
            d_model=8,
            d_head=4,
            n_heads=2,
            d_mlp=16,
            d_vocab=graph.header.d_vocab,
            tokenizer_name="t",
            model_name="m",
            original_architecture="LlamaForCausalLM",
        ),
        selected_features=graph.selected,
        activation_values=graph.activations,
        logit_targets=[
            LogitTarget(text, i)
            for text, i in zip(graph.targets.texts, graph.targets.token_ids.tolist(), strict=True)
        ],
        logit_probabilities=graph.targets.probabilities,
        scan="synthetic",
    )


def logit_weights_of(graph: AttributionGraph) -> torch.Tensor:
    """circuit-tracer's seed vector: probabilities at the logits, else zero."""
    weights = torch.zeros(graph.layout.n_nodes)
    weights[graph.layout.logits] = graph.targets.probabilities
    return weights
