"""Requests over imported answers: which nodes, which direction, which probes, tried how.

Commands make their options from them, so nothing heavy is imported here.

DirectionRequest(kind="models", samples=4), ProbeRequest(folds=8), ResponseRequest(pool="max")
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from em_circuits.features.settings import ResponseSettings
from em_circuits.graphs.settings import BasisName
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen, ModelName


class ResponseRequest(ResponseSettings):
    """Whose nodes are compared over which answers."""

    model: ModelName = "merged"
    """Which model reads the answers."""
    basis: BasisName | None = None
    """What a node is.  [default: the model's own features]"""

    @model_validator(mode="after")
    def _has_nodes(self) -> ResponseRequest:
        if self.basis == "adapter" and self.model == "base":
            raise RequestError("the base has no adapter ranks; use --model merged")
        return self


class DirectionRequest(Frozen, use_attribute_docstrings=True):
    """Which direction, and how it is tried."""

    kind: Literal["answers", "models"] = "answers"
    """Misaligned minus aligned answers, or merged minus base on the same answers."""
    layer: int | None = Field(default=None, ge=0)
    """Behind which it is added and read out. [default: where it is largest beside the stream]"""
    doses: tuple[float, ...] = (0.1, 0.2, 0.4)
    """What is added to the base, as a share of the stream's length; several times."""
    n_random: int = Field(default=20, ge=1)
    """Random directions of the same length."""
    hold_out: float = Field(default=0.25, gt=0, lt=1)
    """Share of questions on which it is tried, and not found."""
    samples: int = Field(default=0, ge=0)
    """Answers to each held-out question and condition, to be judged; 0 for none."""
    answer_tokens: int = Field(default=64, ge=1)
    """Tokens of such an answer, at most."""
    seed: int = 0


class ProbeRequest(Frozen, use_attribute_docstrings=True):
    """Where activations are probed, and how."""

    model: ModelName = "merged"
    """Which model reads the answers; levers are tried on merged alone."""
    folds: int = Field(default=4, ge=2)
    """Blocks of questions of the cross-validation."""
    levers: int = Field(default=2, ge=0)
    """Places of each component that are tried as levers: those of the best detectors."""
    seed: int = 0
