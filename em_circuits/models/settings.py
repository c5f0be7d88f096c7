"""Settings of a model pair: which models and transcoders, on what device, in which precision.

PairSettings(base="models/base", adapter="models/adapter", transcoders="models/transcoders")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen

if TYPE_CHECKING:  # torch takes seconds, and settings are also read to refuse a request
    import torch

Backend = Literal["transformerlens", "nnsight"]
TranscoderPlace = Literal["gpu", "cpu", "disk"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]


class PairSettings(Frozen):
    """Everything that decides which two models are compared, and how they are loaded."""

    base: str
    """Base model: a local Hugging Face directory or a hub id (``org/name`` or ``org/name@rev``)."""
    adapter: str | None = None
    """LoRA adapter on `base`: a local PEFT directory or a hub id. Excludes `merged`."""
    merged: str | None = None
    """Fine-tuned full model: a local Hugging Face directory or a hub id. Excludes `adapter`."""
    transcoders: str
    """Per-layer transcoders: a local circuit-tracer directory or a hub id."""
    backend: Backend = "transformerlens"
    """Which of circuit-tracer's replacement models builds the graphs."""
    device: str = "auto"
    """``auto`` (CUDA where there is one), ``cpu``, ``cuda``, ``cuda:1``."""
    dtype: DtypeName = "auto"
    """One precision for models and transcoders; ``auto`` is bfloat16 on CUDA, float32 on a CPU."""
    transcoders_on: TranscoderPlace = "gpu"
    """Where transcoder matrices wait: on the models' device, in host memory, or on disk."""
    trust_base: bool = False
    """Accept an adapter that names another base model."""
    allow_float16: bool = False
    """Accept float16, whose overflows have silently broken graphs before."""
    max_context: int = 4096
    """Longest prompt in tokens that the replacement models are prepared for."""

    def resolved_device(self) -> torch.device:
        """The device that `device` names, checked to exist.

        Raises:
            RequestError: If the name is unknown or CUDA is asked for where there is none.
        """
        import torch

        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except RuntimeError as error:
            raise RequestError(
                f"--device {self.device!r} is not a device; use auto, cpu, cuda or cuda:N"
            ) from error
        if device.type == "cuda" and not torch.cuda.is_available():
            raise RequestError(f"--device {self.device}: no CUDA device here; use --device cpu")
        return device

    def resolved_dtype(self) -> torch.dtype:
        """The precision that `dtype` names.

        Raises:
            RequestError: For float16 without `allow_float16`.
        """
        import torch

        if self.dtype == "auto":
            cuda = self.resolved_device().type == "cuda"
            return torch.bfloat16 if cuda else torch.float32
        if self.dtype == "float16" and not self.allow_float16:
            raise RequestError(
                "--dtype float16 overflows in attribution graphs; use bfloat16 or float32, "
                "or add --allow-float16 to insist"
            )
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype
