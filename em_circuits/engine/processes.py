"""Workers as processes of this machine, each with models of its own.

Every worker is an executor with one process, so that one that is killed takes nobody with it.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from em_circuits.engine.pool import Worker, WorkerLost
from em_circuits.engine.station import OpenWorkspace, Station, Task, Unit, WorkerPlace

_station: Station | None = None
"""That of this process, where it is a worker."""


class ProcessWorker(Worker):
    """A process of this machine."""

    def __init__(self, open_work: OpenWorkspace, task: Task, place: WorkerPlace) -> None:
        context = multiprocessing.get_context("spawn")
        self._executor = ProcessPoolExecutor(1, mp_context=context)
        self.ready: Future[str] = self._executor.submit(_begin, open_work, task, place)

    def do(self, unit: Unit) -> Future[list[Any]]:
        """Begin a unit."""
        try:
            return self._executor.submit(_do, unit)
        except BrokenProcessPool as error:  # it died between two units
            lost: Future[list[Any]] = Future()
            lost.set_exception(error)
            return lost

    def result(self, future: Future[Any]) -> Any:
        """What a future of this worker came to.

        Raises:
            WorkerLost: If the process died.
        """
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise WorkerLost("its process was killed") from error

    def dismiss(self) -> None:
        """End the process after what it does."""
        end = functools.partial(self._executor.shutdown, cancel_futures=True)
        self._ending = threading.Thread(target=end)
        self._ending.start()

    def join(self) -> None:
        """Wait until the process has ended.

        While an executor is still ending, its thread closes the pipe through which an interpreter
        that exits wakes it, which then may end with a traceback.
        """
        self._ending.join()


def process_workers(
    open_work: OpenWorkspace, task: Task, n: int, device: str
) -> Callable[[int], Worker]:
    """What starts worker number i of n.

    Args:
        device: The device that was asked for; on CUDA, workers take the GPUs in turn.
    """
    gpus: list[str] = []
    if device in ("auto", "cuda"):
        import torch

        given = os.environ.get("CUDA_VISIBLE_DEVICES")
        numbers = map(str, range(torch.cuda.device_count()))
        gpus = given.split(",") if given else list(numbers)

    def start(number: int) -> Worker:
        gpu = gpus[number % len(gpus)] if len(gpus) > 1 else None
        return ProcessWorker(open_work, task, WorkerPlace(number, n, gpu))

    return start


def _begin(open_work: OpenWorkspace, task: Task, place: WorkerPlace) -> str:
    global _station
    _station = Station(open_work, task, place)
    return _station.pair


def _do(unit: Unit) -> list[Any]:
    assert _station is not None, "the worker began"
    return _station.do(unit)
