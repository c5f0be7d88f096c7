"""Work on the workers of an engine: keys that are known, or the pieces of a whole command.

A command whose work splits into pieces (`em_circuits.pieces`) is not written twice: every worker
runs it up to its pieces, does those that it is given, and each keeps its result under the root.
When all are done the command runs here, finds them, and says what came out.

    DistributedPieces(work, functools.partial(run_the_sweep, plan), EngineSettings(workers=4)).run()
"""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

from em_circuits.engine.events import EventLog
from em_circuits.engine.pool import UnitOutcome, Worker, WorkerPool
from em_circuits.engine.settings import EngineSettings
from em_circuits.engine.station import Doing, Task, Unit
from em_circuits.pieces import PiecesCollected, Portion, Works
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import RequestError, WorkFailed

_MOST_IN_UNIT = 8
"""Keys a worker takes at a time: some prompts are screened together and judged side by side."""
_UNITS_A_WORKER = 4
_PLAN = "plan:"
"""Begins the key of a unit that asks which pieces are left."""


class DistributedWork:
    """A task over keys on the workers of an engine."""

    def __init__(
        self,
        work: Workspace,
        task: Task,
        settings: EngineSettings,
        events: EventLog | None = None,
    ) -> None:
        """Set up; nothing starts before `outcomes` is iterated.

        Args:
            events: Where `status --watch` finds how far the workers are; its own by default.

        Raises:
            RequestError: If workers elsewhere could not reach the store.
        """
        self._work, self._task, self._settings, self._events = work, task, settings, events
        self._pool: WorkerPool | None = None
        self.stopped = False
        """Whether somebody asked for the end."""
        if settings.engine.startswith("ray:") and work.store_url is None:
            raise RequestError(
                f"--engine {settings.engine} needs a server as --store "
                "(postgresql+psycopg://USER@HOST/DATABASE): a SQLite file is not safe between "
                "machines"
            )

    @property
    def pair(self) -> str | None:
        """Key of the workers' pair, once one has loaded it."""
        return self._pool.pair if self._pool else None

    def stop(self) -> None:
        """Give out nothing more; what is in flight is finished."""
        self.stopped = True
        if self._pool is not None:
            self._pool.stop()

    def outcomes(self, ids: Sequence[str]) -> Iterator[UnitOutcome]:
        """What becomes of the units of some keys, as they are done; see `WorkerPool.run`."""
        with self._workers() as start, ExitStack() as stack:
            if (events := self._events) is None:
                log = EventLog.open(self._work.results, run="workers")
                events = stack.enter_context(log)
                events.add("start", n=len(ids))
            pool = self._pool = WorkerPool(start, self._settings.workers)
            if self.stopped:
                pool.stop()
            self.add(ids)
            done = 0
            for outcome in pool.run():
                done += sum(not key.startswith(_PLAN) for key in outcome.unit)
                left = sum(not key.startswith(_PLAN) for key in pool.left)
                what = {"worker": outcome.worker, "keys": list(outcome.unit), "done": done}
                events.add("unit", **what, left=left, error=outcome.given_up or pool.last_error)
                yield outcome

    def add(self, ids: Sequence[str]) -> None:
        """Have more keys done, while `outcomes` is iterated."""
        assert self._pool is not None
        self._pool.add(units_of(ids, self._settings.workers))

    def results(self, ids: Sequence[str], step: str) -> Iterator[Any]:
        """Results of all keys, as they come, on one bar.

        Raises:
            WorkFailed: In the end, if some were given up.
        """
        given_up, done = [], 0
        for outcome in self.outcomes(ids):
            yield from outcome.results
            if outcome.given_up:
                given_up.append(f"{', '.join(outcome.unit)}: {outcome.given_up}")
            done += len(outcome.unit)
            self._work.progress(step, done, len(ids))
        if given_up:
            raise WorkFailed("; ".join(given_up))

    def _workers(self) -> AbstractContextManager[Callable[[int], Worker]]:
        work, settings = self._work, self._settings
        open_work = functools.partial(
            Workspace,
            root=work.root.absolute(),
            models=work.models,
            store_url=work.store_url,
            seed=work.seed,
            create=work.create,
            n_pos=work.n_pos,
            attribution=work.attribution,
        )
        if settings.engine == "local":
            from em_circuits.engine.processes import process_workers

            return nullcontext(
                process_workers(open_work, self._task, settings.workers, work.models.device)
            )
        from em_circuits.engine.ray_workers import ray_workers

        return ray_workers(open_work, self._task, settings)


def units_of(ids: Sequence[str], workers: int) -> list[Unit]:
    """Prompts in units that keep all workers busy to the end."""
    size = max(1, min(_MOST_IN_UNIT, len(ids) // (_UNITS_A_WORKER * workers)))
    return [tuple(ids[i : i + size]) for i in range(0, len(ids), size)]


@dataclass(frozen=True)
class PiecesPlan:
    """Pieces of a command that are left, and whether others follow from them."""

    left: tuple[str, ...]
    more: bool


@dataclass(frozen=True)
class PiecesTask(Task):
    """Does pieces of a command."""

    command: Callable[[Workspace], object]
    """Runs it in a workspace; picklable."""
    needs_models: bool = True

    def open(self, work: Workspace) -> Doing:
        """Nothing is prepared before a plan is asked for."""
        work.portion = Portion(name=f"{socket.gethostname()}-{os.getpid()}", collects=True)
        works: Works = {}
        plans: dict[str, PiecesPlan] = {}

        def plan() -> PiecesPlan:
            nonlocal works
            try:
                self.command(work)
            except PiecesCollected as found:
                works = found.works
                return PiecesPlan(found.left, found.more)
            return PiecesPlan((), False)

        def one(key: str) -> PiecesPlan | str:
            if key.startswith(_PLAN):
                stage = key.rpartition(":")[0]
                if stage not in plans:
                    plans[stage] = plan()
                return plans[stage]
            if key not in works:
                plan()
            if key not in works:
                raise WorkFailed(
                    f"a worker comes to other pieces than those it was given ({key}): its models, "
                    "device or version are not those of the others, or it does not see their files"
                )
            works[key]()
            return key

        return lambda keys: [one(key) for key in keys]


class DistributedPieces(DistributedWork):
    """The pieces of a command, done by workers."""

    def __init__(
        self,
        work: Workspace,
        command: Callable[[Workspace], object],
        settings: EngineSettings,
        *,
        needs_models: bool = True,
    ) -> None:
        """Set up; nothing starts before `run`.

        Args:
            command: Runs the command up to its pieces, or to its end where none are left.

        Raises:
            RequestError: If workers elsewhere could not reach the store.
        """
        super().__init__(work, PiecesTask(command, needs_models), settings)

    def run(self) -> None:
        """Have everything done, stage by stage.

        Raises:
            WorkFailed: If pieces were given up; all others of their stage are done.
        """
        n, stage, total = self._settings.workers, 0, 0
        left: set[str] = set()
        given_up: list[str] = []
        plan: PiecesPlan | None = None
        more = True
        for outcome in self.outcomes([f"{_PLAN}0:{i}" for i in range(n)]):
            key = outcome.unit[0]
            if outcome.given_up:
                given_up.append(f"{key}: {outcome.given_up}")
            if not key.startswith(_PLAN):
                left -= set(outcome.unit)
                self._work.progress("pieces", total - len(left), total)
            elif outcome.given_up:
                break
            elif plan is None:
                plan = outcome.results[0]
                left = {one for one in plan.left if self._settings.takes_piece(one)}
                total += len(left)
                more = plan.more and len(left) == len(plan.left)
                self._work.progress("pieces", total - len(left), total)
                self.add([one for one in plan.left if one in left])
            if plan is not None and not left:
                if given_up or not more:
                    break
                stage, plan = stage + 1, None
                self.add([f"{_PLAN}{stage}:"])
        if given_up:
            raise WorkFailed("; ".join(given_up))
