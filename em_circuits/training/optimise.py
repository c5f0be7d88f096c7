"""Training loop of a small module; a killed run ends with the same weights.

Batches are a pure function of the step, the learning rate too, and a checkpoint holds the weights
that change and the whole optimiser state in safetensors; so step t+1 does not know whether the
process that makes it also made step t.

    optimise(model, lambda step: model(batch(step)).loss, settings, checkpoint=path)
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from em_circuits.progress import Progress, no_progress
from em_circuits.training.settings import MARKER
from pivotal_tokens.artefacts import atomic_directory, atomic_path, content_key, write_json
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen

logger = logging.getLogger(__name__)


class OptimiserConfig(Frozen):
    """AdamW with linear warm-up and a cosine to a tenth of the peak."""

    steps: int
    """Number of steps."""
    learning_rate: float
    """Peak."""
    warmup: int = 0
    """Steps of linear warm-up."""
    weight_decay: float = 0.0
    clip: float = 1.0
    """Largest gradient norm."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""

    def rate(self, step: int) -> float:
        """Learning rate of a step (from 0)."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        share = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * share)))


def optimise(
    module: nn.Module,
    loss_at: Callable[[int], Tensor],
    config: OptimiserConfig,
    *,
    checkpoint: Path,
    label: str,
    after_step: Callable[[], None] | None = None,
    progress: Progress = no_progress,
) -> None:
    """Train a module's trainable parameters in place, resuming from `checkpoint` if it exists.

    Args:
        loss_at: Step -> scalar loss; must depend on the step and the module alone.
        checkpoint: Where the state is kept; left behind at the end, for the caller to remove.
    """
    parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW(
        list(parameters.values()),
        lr=config.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=config.weight_decay,
        foreach=False,
    )
    start = _load(checkpoint, module, optimiser, list(parameters)) if checkpoint.exists() else 0
    if start:
        logger.info("%s: resuming at step %d of %d", label, start, config.steps)
    for step in range(start, config.steps):
        for group in optimiser.param_groups:
            group["lr"] = config.rate(step)
        loss = loss_at(step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(list(parameters.values()), config.clip)
        optimiser.step()
        if after_step is not None:
            after_step()
        done = step + 1
        if done % config.checkpoint_every == 0 or done == config.steps:
            _save(checkpoint, module, optimiser, list(parameters), done)
            logger.info("%s: step %d of %d, loss %.3f", label, done, config.steps, loss.item())
        progress(label, done, config.steps)


@contextlib.contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """One thread and a seeded generator inside, both restored after: sums keep their order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def claim(out: Path, seed: int, config: Frozen) -> None:
    """Write down what a directory is trained with.

    Raises:
        RequestError: If it holds a training of another seed or configuration.
    """
    marker = out / MARKER
    wanted = {"seed": seed, "config": config.model_dump(mode="json")}
    if not marker.exists():
        write_json(marker, wanted | {"key": content_key(wanted)})
    elif content_key(wanted) not in marker.read_text(encoding="utf-8"):
        raise RequestError(
            f"{out} holds a training of another seed or configuration ({MARKER}); "
            "give another --out or remove it"
        )


def run_stage(place: Path, make: Callable[[Path, Path], None]) -> None:
    """Run `make(directory, checkpoint)` unless its result stands; publish by one rename."""
    if place.exists():
        logger.info("%s: finished before, reused", place.name)
        return
    checkpoint = place.with_name(f".{place.name}.checkpoint.safetensors")
    with atomic_directory(place) as temporary:
        make(temporary, checkpoint)
    checkpoint.unlink(missing_ok=True)


def _save(
    path: Path, module: nn.Module, optimiser: torch.optim.Optimizer, names: list[str], step: int
) -> None:
    frozen = _frozen(module)
    tensors = {
        f"module/{name}": value.contiguous()
        for name, value in module.state_dict().items()
        if name not in frozen
    }
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{names[index]}/{key}": value for key, value in state.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"step": str(step)})


def _load(path: Path, module: nn.Module, optimiser: torch.optim.Optimizer, names: list[str]) -> int:
    with safe_open(path, framework="pt") as stream:
        step = int(stream.metadata()["step"])
    tensors = load_file(path)
    own = {n.removeprefix("module/"): t for n, t in tensors.items() if n.startswith("module/")}
    frozen = _frozen(module)
    module.load_state_dict(own | {n: t for n, t in module.state_dict().items() if n in frozen})
    whole = optimiser.state_dict()
    keys = ("step", "exp_avg", "exp_avg_sq")
    whole["state"] = {
        index: {key: tensors[f"optimiser/{name}/{key}"] for key in keys}
        for index, name in enumerate(names)
    }
    optimiser.load_state_dict(whole)
    return step


def _frozen(module: nn.Module) -> set[str]:
    """Names of parameters that do not change, tied ones under each of their names."""
    named = module.named_parameters(remove_duplicate=False)
    return {name for name, parameter in named if not parameter.requires_grad}
