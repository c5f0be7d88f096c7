"""What a worker holds: a workspace with its models, and the task that it does unit by unit.

A unit is a tuple of keys: ids of prompts, or keys of a command's pieces. Tasks are idempotent by
key: what a unit leaves is in the store and under the root when it is done, so that a unit whose
worker died is simply given to another.

    class Screen(Task):                             # picklable, opened once a worker
        def open(self, work): return lambda ids: [screen(work, each) for each in ids]
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from em_circuits.workspace import Workspace

Unit = tuple[str, ...]
"""Keys of what is worked on together."""
OpenWorkspace = Callable[[], Workspace]
Doing = Callable[[Sequence[str]], Sequence[Any]]
"""Does the task for the keys of a unit; one result each, in their order or as they come."""


class Task:
    """What is done for every unit; must be picklable, for it is sent to each worker."""

    needs_models: bool = True

    def open(self, work: Workspace) -> Doing:
        """Prepare on a worker, after its models are loaded."""
        raise NotImplementedError


@dataclass(frozen=True)
class WorkerPlace:
    """Which of how many workers one is."""

    number: int
    of: int
    device: str | None = None
    """``CUDA_VISIBLE_DEVICES`` of its process; None leaves it as it is."""


class Station:
    """The workspace and the task of one worker."""

    def __init__(self, open_work: OpenWorkspace, task: Task, place: WorkerPlace) -> None:
        """Load the models.

        Raises:
            RequestError: If the workspace or the task cannot be opened.
            WorkFailed: If the models do not fit.
        """
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver drains; a terminal tells us too
        self._unit: Unit = ()
        logging.basicConfig(
            format=f"%(asctime)s worker {place.number} %(unit)s %(levelname)s %(name)s: %(message)s"
        )
        for handler in logging.getLogger().handlers:
            handler.addFilter(self._name_unit)
        if place.device is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = place.device
        import torch

        torch.set_num_threads(max(1, torch.get_num_threads() // place.of))
        self._work = open_work()
        self.pair: str = self._work.pair.key if task.needs_models else ""
        self._do = task.open(self._work)

    def do(self, unit: Unit) -> list[Any]:
        """Do one unit; its results."""
        self._unit = unit
        return list(self._do(unit))

    def _name_unit(self, record: logging.LogRecord) -> bool:
        record.unit = ",".join(self._unit) or "-"
        return True
