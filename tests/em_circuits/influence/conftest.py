"""circuit-tracer's side of the comparisons, as fixtures."""

from __future__ import annotations

import pytest
from upstream_graphs import logit_weights_of, upstream_graph


@pytest.fixture(scope="session")
def upstream():
    """Makes a real `circuit_tracer.graph.Graph` of one of ours."""
    return upstream_graph


@pytest.fixture(scope="session")
def logit_weights():
    """circuit-tracer's seed vector: probabilities at the logits, else zero."""
    return logit_weights_of
