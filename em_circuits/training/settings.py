"""Settings of training transcoders; the command line makes its options from them. Needs no torch.

SetTraining(skip=True, layers="5,10-12").bank
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen

MARKER = "training.json"
"""File of a directory that is, or was, trained into: with what."""
Gate = Literal["batch-topk", "topk", "jumprelu"]
Target = Literal["base", "merged", "difference"]
"""Whose MLPs; of a difference: the base's input, merged minus base output."""


class BankConfig(Frozen, use_attribute_docstrings=True):
    """Sizes and losses of transcoders."""

    features: int = Field(default=512, ge=1)
    """Features of a layer."""
    k: int = Field(default=12, ge=1)
    """Features that fire at a position: on average, or at most (topk)."""
    gate: Gate = "batch-topk"
    """Which fire: the k largest over a batch (saved as JumpReLU), of each position, or those above
    a threshold that learns."""
    skip: bool = False
    """With a skip matrix: the best affine map, beside which features do the rest."""
    dead_after: int = 40
    """Steps without activity after which a feature is trained on the residual."""
    dead_k: int = 16
    """Dead features per position that share the residual."""
    dead_weight: float = 1 / 16
    """Weight of the dead features' loss."""
    sparsity: float = 1.0
    """`jumprelu`: weight of the loss on L0."""
    threshold_after: int = 100
    """`jumprelu`: steps under the gate of `batch-topk`, whose threshold each feature's starts at;
    thresholds that learn from the first step on lose every feature in runs this short."""
    bandwidth: float = 0.05
    """`jumprelu`: width, in training units, in which a pre-activation moves its threshold."""

    @model_validator(mode="after")
    def _check(self) -> BankConfig:
        if self.k > self.features:
            raise RequestError(f"--k {self.k} is more than the {self.features} of --features")
        return self


class SetTraining(BankConfig):
    """Training of a set on a text."""

    features: int = Field(default=1024, ge=1)
    """Features of a layer."""
    k: int = Field(default=32, ge=1)
    """Features that fire at a position: on average, or at most (topk)."""
    of: Literal["base", "merged"] = "base"
    """Whose MLPs."""
    difference: bool = False
    """Instead: what merged MLPs write more than the base's, from what the base's read; and the
    share of the shift that this carries on every labelled prompt."""
    layers: str | None = None
    """Such as 3,5-7; the features of others never fire. [default: all]"""
    tokens: int = Field(default=200_000, ge=1)
    """Positions to train on, at most."""
    steps: int | None = Field(default=None, ge=1)
    """Of training. [default: four passes over the text]"""
    batch: int = Field(default=512, ge=1)
    """Positions of a step."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Peak."""
    at_once: int | None = Field(default=None, ge=1)
    """Layers trained side by side; fewer take less memory. [default: all]"""
    buffer_gb: float = Field(default=1.0, gt=0)
    """Activations in memory at a time; a text that needs more is run again in every pass."""

    @property
    def target(self) -> Target:
        return "difference" if self.difference else self.of

    @property
    def bank(self) -> BankConfig:
        """The part that makes the modules."""
        return BankConfig(**{name: getattr(self, name) for name in BankConfig.model_fields})

    def chosen(self, n_layers: int) -> tuple[int, ...]:
        """The layers, ascending.

        Raises:
            RequestError: If they are not numbers or ranges, or the model has no such layer.
        """
        if self.layers is None:
            return tuple(range(n_layers))
        found: set[int] = set()
        for part in self.layers.split(","):
            first, _, end = part.strip().partition("-")
            if not first.isdecimal() or not (end or first).isdecimal():
                raise RequestError(f"--layers {self.layers!r}: give layers such as 3,5-7")
            found |= set(range(int(first), int(end or first) + 1))
        if not found or max(found) >= n_layers:
            raise RequestError(
                f"--layers {self.layers!r}: the model has layers 0 to {n_layers - 1}"
            )
        return tuple(sorted(found))
