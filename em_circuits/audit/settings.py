"""Settings of audits; needs no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pivotal_tokens.schema import Frozen

AuditBasis = Literal["own", "transcoder", "neuron", "adapter"]
"""What a node is; `own` is the transcoders' features, without any the neurons."""
ExplanationSource = Literal["cache_only", "remote_fallback"]
N_LARGEST = 20


class AuditSettings(Frozen, use_attribute_docstrings=True):
    """Everything an audit follows from, beside models, suite and calibration."""

    basis: AuditBasis = "own"
    """What a node is; own: the transcoders' features, without any the neurons."""
    n_largest: int = Field(default=N_LARGEST, ge=1)
    """Differences that are summed, and nodes that are explained."""
    answer_tokens: int = Field(default=24, ge=0)
    """Tokens of an answer, at most; 0 for no answers."""
    explanations: ExplanationSource = "cache_only"
    """Where explanations come from: the cache alone, or the site where it has none."""
    neuronpedia: str | None = None
    """Whose explanations, {layer} in the source; without it there are none."""
