"""Settings of the model pair: models, transcoders, device and precision.

The command line makes its options from them, so nothing heavy is imported here.

    PairSettings(base="models/base", adapter="models/adapter", transcoders="models/transcoders")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen

if TYPE_CHECKING:
    import torch

Backend = Literal["auto", "transformerlens", "nnsight"]
TranscoderPlace = Literal["gpu", "cpu", "disk"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]

NEURONS = "none"
"""Value of `transcoders` that makes MLP neurons the nodes."""


class PairSettings(Frozen, use_attribute_docstrings=True):
    """Which two models are compared, and how they are loaded."""

    base: str
    """Base model: a local Hugging Face directory or a hub id (org/name or org/name@rev)."""
    adapter: str | None = None
    """LoRA adapter on the base."""
    merged: str | None = None
    """Fine-tuned full model, instead of --adapter."""
    transcoders: str
    """Transcoders of the base, per-layer or cross-layer: a circuit-tracer directory or a hub id
    (org/name or org/name/folder); or none: MLP neurons are the nodes."""
    backend: Backend = "auto"
    """circuit-tracer's backend for frozen graphs; auto is the one that builds this family."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda, cuda:N."""
    dtype: DtypeName = "auto"
    """Of models and transcoders; auto is bfloat16 on CUDA and float32 on a CPU."""
    transcoders_on: TranscoderPlace = "gpu"
    """Where transcoder matrices wait: on the device, in host memory, on disk."""
    max_context: int = Field(default=4096, ge=2)
    """Longest prompt in tokens."""
    trust_base: bool = False
    """Accept an adapter that names another base."""
    allow_float16: bool = False
    """Accept float16 in spite of its overflows."""

    @model_validator(mode="after")
    def _insist_on_float16(self) -> PairSettings:
        if self.dtype == "float16" and not self.allow_float16:
            raise RequestError(
                "--dtype float16 overflows in attribution graphs; use bfloat16 or float32, "
                "or add --allow-float16 to insist"
            )
        return self

    @property
    def neurons(self) -> bool:
        """Whether MLP neurons are the nodes; a directory of that name is ``./none``."""
        return self.transcoders == NEURONS

    def resolved_device(self) -> torch.device:
        """The device that `device` names, checked to exist.

        Raises:
            RequestError: If the name is unknown, or there is no such device on this machine.
        """
        import torch

        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
            usable = device.type in ("cpu", "cuda", "mps", "xpu")
        except RuntimeError as error:
            raise RequestError(
                f"--device {self.device!r} is not a device; use auto, cpu, cuda or cuda:N"
            ) from error
        if device.type == "cuda" and not torch.cuda.is_available():
            raise RequestError(f"--device {self.device}: no CUDA device here; use --device cpu")
        try:
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError, NotImplementedError):
            usable = False
        if not usable:
            name = device.type.upper()
            raise RequestError(
                f"--device {self.device}: no {name} device of that number here; use --device cpu"
            )
        return device

    def resolved_dtype(self) -> torch.dtype:
        """The precision that `dtype` names."""
        import torch

        if self.dtype == "auto":
            cuda = self.resolved_device().type == "cuda"
            return torch.bfloat16 if cuda else torch.float32
        return getattr(torch, self.dtype)
