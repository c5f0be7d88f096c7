"""Workers as actors of a Ray cluster: one loads the pair once and takes unit after unit.

Ray carries ids of prompts; the store holds what comes out, and graphs lie under the root. Actors
are not restarted by Ray (``max_restarts=0``): a new one is started by the pool, on whatever node
has room, so that a dead node costs the units that were in flight there and nothing else.

A cluster that is started here has no dashboard, asks for a token (`ray.init` keeps it under
``~/.ray/auth_token``) and listens on loopback alone: on Linux, Ray turns a loopback address that it
is told into the machine's own and then listens on all, unless it is told what it takes for granted
on macOS and Windows, that there are no other machines.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from em_circuits.engine.pool import Worker, WorkerLost
from em_circuits.engine.settings import EngineSettings
from em_circuits.engine.station import OpenWorkspace, Station, Task, Unit, WorkerPlace
from pivotal_tokens.errors import RequestError, WorkFailed


class RayWorker(Worker):
    """An actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self.ready: Future[str] = actor.begun.remote().future()

    def do(self, unit: Unit) -> Future[list[Any]]:
        """Begin a unit."""
        return self._actor.do.remote(unit).future()

    def result(self, future: Future[Any]) -> Any:
        """What a future of this worker came to.

        Raises:
            WorkerLost: If the actor, its process or its node died.
        """
        from ray import exceptions

        lost = (
            exceptions.RayActorError,
            exceptions.WorkerCrashedError,
            exceptions.NodeDiedError,
            exceptions.ObjectLostError,
            exceptions.OutOfMemoryError,
        )
        try:
            return future.result()
        except exceptions.RayTaskError as error:  # what the unit itself raised
            if isinstance(error.cause, lost):
                raise WorkerLost(_first_line(error.cause)) from error
            raise error.cause from None
        except lost as error:
            raise WorkerLost(_first_line(error)) from error

    def dismiss(self) -> None:
        """End the actor."""
        import ray

        with contextlib.suppress(Exception):  # it or its cluster has ended
            ray.kill(self._actor)


@contextlib.contextmanager
def ray_workers(open_work: OpenWorkspace, task: Task, settings: EngineSettings) -> Any:
    """What starts worker number i on a cluster, which is connected to inside the block.

    Raises:
        RequestError: If Ray is not installed, or there is no cluster at the address.
    """
    ray = _connected(settings)
    actor = ray.remote(_Actor).options(
        num_cpus=1,
        num_gpus=settings.gpus_per_worker,
        max_restarts=0,
        max_task_retries=0,
    )

    def start(number: int) -> Worker:
        return RayWorker(actor.remote(open_work, task, WorkerPlace(number, 1)))

    started: Callable[[int], Worker] = start
    try:
        yield started
    finally:
        if settings.engine == "ray":
            ray.shutdown()


class _Actor:
    """A station as Ray holds it."""

    def __init__(self, open_work: OpenWorkspace, task: Task, place: WorkerPlace) -> None:
        try:
            self._station: Station | Exception = Station(open_work, task, place)
        except Exception as error:  # as the answer to `begun`, where its type is kept
            self._station = error

    def begun(self) -> str:
        if isinstance(self._station, Exception):
            raise self._station
        return self._station.pair

    def do(self, unit: Unit) -> list[Any]:
        assert isinstance(self._station, Station)
        return self._station.do(unit)


def _connected(settings: EngineSettings) -> Any:
    if settings.engine == "ray":  # of a running cluster, whoever runs it has decided
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # read on import
    # A worker for which no GPU is kept still sees those of its node.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise RequestError(
            "--engine ray needs Ray: pip install 'em-circuits[ray]', or --engine local --workers N"
        ) from None
    if ray.is_initialized():
        return ray
    about: dict[str, Any] = {"log_to_driver": False, "logging_level": "WARNING"}
    address = settings.engine.removeprefix("ray:") if settings.engine != "ray" else ""
    try:
        if not address:
            ray.init(
                address="local",  # never one that somebody else started here
                num_cpus=max(settings.workers, os.cpu_count() or 1),
                include_dashboard=False,
                **about,
            )
        else:
            ray.init(address=f"ray:{address}" if address.startswith("//") else address, **about)
    except Exception as error:  # whatever a cluster that is not there makes of it
        raise WorkFailed(
            f"--engine {settings.engine}: no Ray cluster could be used ({_first_line(error)}); "
            "see ray status, or use --engine local"
        ) from error
    return ray


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
