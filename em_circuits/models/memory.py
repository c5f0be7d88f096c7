"""Memory of this machine, and the sizes of a model before it is loaded.

available_bytes(torch.device("cpu"))       # what a job may take, whatever the node has
ModelSizes.of(locate("--base", ...))       # from its configuration and headers
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from transformers import AutoConfig

from em_circuits.models.memory_error import ran_out
from em_circuits.models.source import Source
from pivotal_tokens.errors import RequestError

UNKNOWN = 1 << 62
"""Free memory where nothing is known, so that nothing is refused."""


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a language model."""

    n_layers: int
    d_model: int
    d_mlp: int
    n_heads: int
    d_vocab: int
    elements: int
    """Numbers in its weights."""

    @classmethod
    def of(cls, base: Source) -> ModelSizes:
        """From a model's configuration and the headers of its files.

        Raises:
            RequestError: If transformers does not know it, or it is of no language model.
        """
        config = _language_config(base)
        width = int(config.hidden_size)
        return cls(
            n_layers=int(config.num_hidden_layers),
            d_model=width,
            d_mlp=int(getattr(config, "intermediate_size", None) or 4 * width),
            n_heads=int(getattr(config, "num_attention_heads", None) or 1),
            d_vocab=int(config.vocab_size),
            elements=elements_in(base.path),
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


def available_bytes(device: torch.device, root: Path = Path("/")) -> int:
    """Free bytes on a device: CUDA's own answer, or the least of what the kernel, every control
    group that this process is in (version 1 or 2, nested) and Slurm leave.

    Args:
        root: Of the file system, for tests.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = root / "proc" / "meminfo"
    if not meminfo.is_file():  # no /proc (macOS)
        return UNKNOWN
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    return min(free, *_group_limits(root), _slurm_limit(root))


def _group_limits(root: Path) -> Iterator[int]:
    """What each control group leaves, from this process's own up to the outermost."""
    yield UNKNOWN
    try:
        lines = (root / "proc" / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    mounted = root / "sys" / "fs" / "cgroup"
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            top, names = mounted, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = mounted / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # Within a container the path is the host's, and only the top is there.
        inside = top / path.lstrip("/")
        for folder in (inside, *inside.parents):
            if top in (folder, *folder.parents):
                yield _left(folder, *names)


def _left(folder: Path, limit: str, used: str, reclaimable: str) -> int:
    """Bytes that a control group leaves; file pages that nobody uses are given up when needed."""
    try:
        most = (folder / limit).read_text().strip()
        if most == "max":
            return UNKNOWN
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        taken = int((folder / used).read_text()) - int(stat.get(reclaimable, 0))
    except (OSError, ValueError):
        return UNKNOWN
    return max(0, int(most) - max(0, taken))


def _slurm_limit(root: Path) -> int:
    """What this process may still take of its Slurm job's memory on this node."""
    megabytes = os.environ.get("SLURM_MEM_PER_NODE")
    if megabytes is None:
        each, cpus = (os.environ.get(f"SLURM_{x}") for x in ("MEM_PER_CPU", "CPUS_ON_NODE"))
        megabytes = str(int(each) * int(cpus)) if each and cpus else None
    if not megabytes or not megabytes.isdigit() or megabytes == "0":  # 0: all of the node's
        return UNKNOWN
    pages = int((root / "proc" / "self" / "statm").read_text().split()[1])
    return max(0, int(megabytes) * 2**20 - pages * os.sysconf("SC_PAGE_SIZE"))


Result = TypeVar("Result")


@dataclass
class BatchSize:
    """Items of a batch at most; halved, for good, where memory does not hold so many."""

    items: int

    def over(self, n: int, work: Callable[[int, int], Result]) -> Iterator[tuple[int, Result]]:
        """``work(start, stop)`` for n items in order, with where each batch started.

        Out of memory leaves this only where it is so of a single item.
        """
        start = 0
        while start < n:
            stop = min(start + self.items, n)
            try:
                found = work(start, stop)
            except (MemoryError, RuntimeError) as error:
                if not ran_out(error) or stop - start == 1:
                    raise
                self.items = (stop - start) // 2
            else:
                yield start, found
                start = stop
                continue
            release_freed()  # after the exception, whose frames hold what was computed


def release_freed() -> None:
    """Give memory that was freed back to the system, where the C library can (glibc).

    Reading transcoders layer by layer leaves it holding several times what is in use.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def elements_in(folder: Path) -> int:
    """Numbers in a folder's safetensors files."""
    return sum(_elements_of(path) for path in folder.glob("*.safetensors"))


def _elements_of(path: Path) -> int:
    with safe_open(path, framework="pt") as file:
        return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
