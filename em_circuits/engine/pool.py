"""A pool of workers that takes units until all are done.

A worker that dies costs the unit that it had, which goes to another; a unit that three workers died
on is given up alone. What a unit raises itself (no disk, no budget, broken models) ends the run
after what is in flight: it would be wrong for every unit.

    pool = WorkerPool(process_workers(open_work, task, 4, "cpu"), 4)
    pool.add(units)
    for outcome in pool.run(): ...                  # what comes out may add more
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any

from em_circuits.engine.station import Unit
from pivotal_tokens.errors import WorkFailed

logger = logging.getLogger(__name__)

TRIES = 3
"""Workers that a unit is given to, one after the other."""
BACK_OFF_S = 1.0
"""Seconds before a unit is given out again, times the deaths that it has seen."""
_POLL_S = 0.5


class WorkerLost(Exception):
    """A worker is gone, and what it was doing with it."""


class Worker:
    """One worker of a pool."""

    ready: Future[str]
    """Becomes the key of the pair that it has loaded."""

    def do(self, unit: Unit) -> Future[list[Any]]:
        """Begin a unit."""
        raise NotImplementedError

    def result(self, future: Future[Any]) -> Any:
        """What one of its futures came to.

        Raises:
            WorkerLost: If the worker is gone.
        """
        raise NotImplementedError

    def dismiss(self) -> None:
        """End the worker, without waiting for it."""
        raise NotImplementedError

    def join(self) -> None:
        """Wait until a dismissed worker has ended, where that can be known."""


@dataclass(frozen=True)
class UnitOutcome:
    """What became of one unit."""

    unit: Unit
    worker: int
    """Number of the worker that did it, or died on it last."""
    results: tuple[Any, ...] = ()
    given_up: str | None = None
    """Why no further worker is given it."""


@dataclass(frozen=True)
class _Waiting:
    unit: Unit
    deaths: int = 0
    not_before: float = 0.0


class WorkerPool:
    """Gives units to workers."""

    def __init__(self, start: Callable[[int], Worker], n: int) -> None:
        """Set up; nothing starts before `run` is iterated.

        Args:
            start: Starts worker number i.
            n: Workers at a time, at most.
        """
        self._start, self._n = start, n
        self._stopped = threading.Event()
        self._waiting: deque[_Waiting] = deque()
        self._busy: dict[Future[Any], tuple[Worker, _Waiting]] = {}
        self.pair: str | None = None
        """Key of the workers' pair, once one has loaded it."""
        self.lost = 0
        """Workers that died."""
        self.last_error: str | None = None

    def add(self, units: Iterable[Unit]) -> None:
        """Have units done, after those that wait."""
        self._waiting.extend(_Waiting(unit) for unit in units)

    @property
    def left(self) -> list[str]:
        """Keys that wait or are in work."""
        items = [*self._waiting, *(item for _, item in self._busy.values())]
        return [key for item in items for key in item.unit]

    def stop(self) -> None:
        """Give out nothing more; what is in flight is finished. From any thread."""
        self._stopped.set()

    def run(self) -> Iterator[UnitOutcome]:
        """Do all units, each outcome as it comes; more may be added meanwhile.

        Raises:
            WorkFailed: If workers cannot be started.
            Exception: What a unit raised, after what was in flight was finished and yielded.
        """
        waiting, busy = self._waiting, self._busy
        starting: dict[Future[Any], Worker] = {}
        idle: list[Worker] = []
        numbers: dict[Worker, int] = {}
        error: Exception | None = None
        number = failed_starts = 0
        try:
            while busy or (waiting and error is None and not self._stopped.is_set()):
                now = time.monotonic()
                going_on = error is None and not self._stopped.is_set()
                while going_on and len(starting) + len(idle) + len(busy) < min(
                    self._n, len(waiting) + len(busy)
                ):
                    worker = self._start(number)
                    numbers[worker] = number
                    number += 1
                    starting[worker.ready] = worker
                while going_on and idle and (item := _due(waiting, now)) is not None:
                    worker = idle.pop()
                    busy[worker.do(item.unit)] = worker, item
                if not starting and not busy:  # all that is left waits for its time
                    time.sleep(_POLL_S)
                    continue
                done, _ = wait((*starting, *busy), timeout=_POLL_S, return_when=FIRST_COMPLETED)
                for future in done & starting.keys():
                    worker = starting.pop(future)
                    try:
                        self.pair = worker.result(future)
                        idle.append(worker)
                    except WorkerLost as lost:
                        failed_starts += 1
                        self._mourn(worker, "while it loaded the models", lost)
                        if failed_starts == TRIES:
                            error = error or WorkFailed(
                                f"{TRIES} workers in a row died while they loaded the models "
                                f"({lost}); use fewer --workers, or see em-circuits doctor"
                            )
                    except Exception as raised:
                        error = error or raised
                for future in done & busy.keys():
                    worker, item = busy.pop(future)
                    try:
                        results = tuple(worker.result(future))
                        idle.append(worker)
                        failed_starts = 0
                        yield UnitOutcome(item.unit, numbers[worker], results)
                    except WorkerLost as lost:
                        self._mourn(worker, f"on {', '.join(item.unit)}", lost)
                        if given_up := self._again(item, lost):
                            yield UnitOutcome(item.unit, numbers[worker], given_up=given_up)
                    except Exception as raised:
                        error = error or raised
                        idle.append(worker)
        finally:
            left = [*starting.values(), *idle, *(worker for worker, _ in busy.values())]
            for worker in left:
                worker.dismiss()
            for worker in left:
                worker.join()
        if error is not None:
            raise error

    def _mourn(self, worker: Worker, when: str, lost: WorkerLost) -> None:
        self.lost += 1
        self.last_error = f"a worker died {when} ({lost})"
        logger.warning("%s", self.last_error)
        worker.dismiss()
        worker.join()

    def _again(self, item: _Waiting, lost: WorkerLost) -> str | None:
        """Put a unit back, key by key, so that one that kills workers fails alone; why not."""
        deaths = item.deaths + 1
        if len(item.unit) == 1 and deaths >= TRIES:
            return f"{TRIES} workers died on it ({lost})"
        not_before = time.monotonic() + BACK_OFF_S * deaths
        for key in item.unit:
            again = deaths if len(item.unit) == 1 else 0
            self._waiting.append(_Waiting((key,), again, not_before))
        return None


def _due(waiting: deque[_Waiting], now: float) -> _Waiting | None:
    """The first unit that need not wait any longer."""
    for _ in range(len(waiting)):
        if waiting[0].not_before <= now:
            return waiting.popleft()
        waiting.rotate(-1)
    return None
