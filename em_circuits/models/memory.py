"""Memory plan of a pair and one attribution, computed before anything large is loaded.

plan = memory_plan(settings, locate_all(settings))
plan.total, plan.fits
"""

from __future__ import annotations

import ctypes
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig

from em_circuits.models.settings import PairSettings
from em_circuits.models.source import Source
from pivotal_tokens.errors import RequestError

PROMPT_TOKENS = 64
_HEADROOM = 1.1


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that loading a pair and attributing one prompt will take."""

    weights: int
    """Both models; the merged one counts for the tensors an adapter touches, at most all."""
    transcoders: int
    """Resident encoder and decoder matrices; for lazy ones the largest single matrix. Neurons are
    the models' own weights: 0."""
    attribution: int
    """Edge matrix, active encoder and decoder rows, one batch of gradients."""
    device: str
    available: int
    """Free bytes on `device` now."""
    host: int = 0
    """Transcoder matrices that wait in host memory beside that."""
    host_available: int = 0

    @property
    def total(self) -> int:
        return int(_HEADROOM * (self.weights + self.transcoders + self.attribution))

    @property
    def fits(self) -> bool:
        return self.total <= self.available and self.host <= self.host_available

    def describe(self) -> str:
        """One line for people."""
        parts = f"weights {_gb(self.weights)}, transcoders {_gb(self.transcoders)}, "
        parts += f"attribution {_gb(self.attribution)}"
        said = f"{parts}: {_gb(self.total)} of {_gb(self.available)} GB free on {self.device}"
        if self.host:
            said += f", {_gb(self.host)} of {_gb(self.host_available)} GB in host memory"
        return said


def memory_plan(
    settings: PairSettings,
    sources: dict[str, Source],
    *,
    max_feature_nodes: int | None = 8192,
    batch_size: int = 256,
) -> MemoryPlan:
    """Estimate what a pair and one attribution of a prompt of `PROMPT_TOKENS` will take."""
    n_pos = PROMPT_TOKENS
    device, dtype = settings.resolved_device(), settings.resolved_dtype()
    config = _language_config(sources["base"])
    width, layers = config.hidden_size, config.num_hidden_layers
    base = _elements(sources["base"].path) * dtype.itemsize
    # An adapter's matrices of rank r hold r (in + out) numbers; those they touch at most width
    # times as many.
    touched = base if "merged" in sources else _elements(sources["adapter"].path) * width
    merged = min(base, touched * dtype.itemsize)
    files = None if settings.neurons else sources["transcoders"].transcoders
    transcoder = [] if files is None else [one.elements * dtype.itemsize for one in files.layers]
    resident = sum(transcoder) if settings.transcoders_on == "gpu" else max(transcoder, default=0)
    nodes = (max_feature_nodes or 8192) + layers * n_pos + n_pos
    active = 2 * nodes
    rows = 2 * active * width * dtype.itemsize  # encoder and decoder rows of active features
    attribution = 2 * nodes * (active + layers * n_pos) * 4 + rows
    attribution += batch_size * n_pos * width * layers * dtype.itemsize * 6
    return MemoryPlan(
        weights=base + merged,
        transcoders=resident,
        attribution=attribution,
        device=str(device),
        available=available_bytes(device),
        host=sum(transcoder) if settings.transcoders_on == "cpu" else 0,
        host_available=available_bytes(torch.device("cpu")),
    )


def _language_config(base: Source) -> Any:
    """The configuration of a model, of a multimodal one its language model's.

    Its own words (GPT-2's ``n_embd``) are translated by transformers.

    Raises:
        RequestError: If transformers does not know it, or it is of no language model.
    """
    try:
        config: Any = AutoConfig.from_pretrained(
            base.path, local_files_only=True, trust_remote_code=False
        )
        config = config.get_text_config()
        sizes = [int(config.hidden_size), int(config.num_hidden_layers)]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        detail = " ".join(str(error).split())[:200]
        raise RequestError(
            f"--base {base.reference}: {base.path / 'config.json'} describes no language model "
            f"that transformers knows: {detail}"
        ) from error
    if min(sizes) < 1:
        raise RequestError(f"--base {base.reference}: config.json gives it no layers or no width")
    return config


def require_fit(plan: MemoryPlan) -> None:
    """Refuse a plan that does not fit, with what would make it smaller."""
    if not plan.fits:
        raise RequestError(
            f"not enough memory: {plan.describe()}; "
            "use --transcoders-on disk, --dtype bfloat16 or fewer --max-features"
        )


def available_bytes(device: torch.device) -> int:
    """Free bytes on a device: CUDA's own answer, or the kernel's MemAvailable (cgroup limits
    included where they are lower)."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():  # no /proc (macOS): nothing is known, so nothing is refused
        return 1 << 62
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free


def release_freed() -> None:
    """Give memory that was freed back to the system, where the C library can (glibc).

    Reading transcoders layer by layer leaves it holding several times what is in use.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _elements(folder: Path) -> int:
    return sum(_elements_of(path) for path in folder.glob("*.safetensors"))


def _elements_of(path: Path) -> int:
    with safe_open(path, framework="pt") as file:
        return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f}"
