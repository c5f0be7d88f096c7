"""The pool gives every unit to a worker until it is done, whatever dies."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import pytest

from em_circuits.engine import pool as pools
from em_circuits.engine.distributed import units_of
from em_circuits.engine.pool import Worker, WorkerLost, WorkerPool
from em_circuits.engine.processes import process_workers
from em_circuits.engine.settings import EngineSettings
from em_circuits.engine.station import Doing, OpenWorkspace, Task, Unit
from pivotal_tokens.errors import RequestError, WorkFailed


class Threaded(Worker):
    """A worker in a thread, which dies where it is told to."""

    def __init__(self, plan: Plan, number: int) -> None:
        self._plan = plan
        self._thread = ThreadPoolExecutor(1)
        plan.alive += 1
        plan.most = max(plan.most, plan.alive)
        self.ready: Future[str] = self._thread.submit(plan.begin, number)

    def do(self, unit: Unit) -> Future[list[Any]]:
        return self._thread.submit(self._plan.do, unit)

    def result(self, future: Future[Any]) -> Any:
        return future.result()

    def dismiss(self) -> None:
        self._plan.alive -= 1
        self._thread.shutdown(wait=False)


class Plan:
    """Which units kill whoever has them, and how often; what was done."""

    def __init__(self, deaths: dict[str, int] | None = None, bad_starts: int = 0) -> None:
        self.deaths, self.bad_starts = Counter(deaths or {}), bad_starts
        self.done: list[str] = []
        self.alive = self.most = 0
        self.hold = threading.Event()
        self.hold.set()
        self.error: Exception | None = None

    def begin(self, number: int) -> str:
        if self.bad_starts:
            self.bad_starts -= 1
            raise WorkerLost("killed")
        return "pair"

    def do(self, unit: Unit) -> list[str]:
        assert self.hold.wait(5)
        if self.error:
            raise self.error
        for each in unit:
            if self.deaths[each]:
                self.deaths[each] -= 1
                raise WorkerLost("killed")
            self.done.append(each)
        return [each.upper() for each in unit]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "BACK_OFF_S", 0.01)
    monkeypatch.setattr(pools, "_POLL_S", 0.01)


def outcomes(plan: Plan, units: list[Unit], n: int = 2) -> tuple[set[str], dict[Unit, str], Any]:
    pool = WorkerPool(lambda number: Threaded(plan, number), n)
    results: set[str] = set()
    given_up: dict[Unit, str] = {}
    pool.add(units)
    for outcome in pool.run():
        results |= set(outcome.results)
        if outcome.given_up:
            given_up[outcome.unit] = outcome.given_up
    return results, given_up, pool


def test_every_unit_is_done_once_and_workers_are_reused() -> None:
    plan = Plan()
    results, given_up, pool = outcomes(plan, [("a", "b"), ("c",), ("d",), ("e",)])
    assert results == set("ABCDE") and not given_up
    assert sorted(plan.done) == list("abcde")
    assert plan.most == 2 and plan.alive == 0, "two at most, and all are dismissed"
    assert pool.pair == "pair" and pool.lost == 0


def test_no_more_workers_start_than_there_are_units() -> None:
    plan = Plan()
    outcomes(plan, [("a",), ("b",)], n=16)
    assert plan.most <= 2


def test_a_unit_whose_worker_died_goes_to_another() -> None:
    plan = Plan({"b": 2})
    results, given_up, pool = outcomes(plan, [("a",), ("b",), ("c",)])
    assert results == set("ABC") and not given_up and pool.lost == 2


def test_a_unit_that_kills_its_workers_fails_alone() -> None:
    plan = Plan({"b": 99})
    results, given_up, pool = outcomes(plan, [("a", "b", "c"), ("d",)])
    assert results == set("ACD"), "those that shared its unit are done without it"
    assert list(given_up) == [("b",)] and "3 workers died on it" in given_up["b",]
    assert pool.lost == 1 + pools.TRIES, "once together, three times alone"


def test_workers_that_die_while_they_load_end_the_run() -> None:
    with pytest.raises(WorkFailed, match="3 workers in a row died while they loaded"):
        outcomes(Plan(bad_starts=99), [("a",)])
    results, _, pool = outcomes(Plan(bad_starts=2), [("a",), ("b",)])
    assert results == set("AB") and pool.lost == 2


def test_what_a_unit_raises_ends_the_run_after_what_is_in_flight() -> None:
    plan = Plan()
    plan.error = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space left"):
        outcomes(plan, [("a",), ("b",), ("c",), ("d",)])
    assert plan.alive == 0


def test_stop_gives_out_nothing_more_and_finishes_what_is_in_flight() -> None:
    plan = Plan()
    plan.hold.clear()
    pool = WorkerPool(lambda number: Threaded(plan, number), 2)
    pool.add((f"u{i}",) for i in range(20))
    results: list[str] = []
    thread = threading.Thread(
        target=lambda: results.extend(each for outcome in pool.run() for each in outcome.results)
    )
    thread.start()
    deadline = time.monotonic() + 5
    while pool.pair is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    pool.stop()
    plan.hold.set()
    thread.join(5)
    assert not thread.is_alive()
    assert len(results) <= 2 and sorted(results) == sorted(each.upper() for each in plan.done)


def test_units_keep_every_worker_busy_and_hold_each_prompt_once() -> None:
    for n, workers in ((1, 4), (7, 2), (200, 2), (1000, 32)):
        ids = [str(i) for i in range(n)]
        units = units_of(ids, workers)
        assert [each for unit in units for each in unit] == ids
        assert len(units) >= min(n, 3 * workers)
        assert max(map(len, units)) <= 8


def test_engines_that_do_not_exist_are_refused_by_name() -> None:
    with pytest.raises(RequestError, match="--engine dask: local, ray or"):
        EngineSettings(engine="dask")
    with pytest.raises(RequestError, match="--gpus-per-worker is of --engine ray"):
        EngineSettings(gpus_per_worker=1)
    assert not EngineSettings().spreads
    assert EngineSettings(workers=2).spreads and EngineSettings(engine="ray").spreads


class Upper(Task):
    """Upper-cases its keys."""

    needs_models = False

    def open(self, work: Any) -> Doing:
        return lambda keys: [key.upper() for key in keys]


@pytest.mark.slow
def test_processes_and_what_watches_them_have_ended_when_a_run_ends() -> None:
    before = set(threading.enumerate())
    pool = WorkerPool(process_workers(cast(OpenWorkspace, str), Upper(), 2, "cpu"), 2)
    pool.add([("a", "b"), ("c",)])
    assert {result for outcome in pool.run() for result in outcome.results} == set("ABC")
    assert not multiprocessing.active_children()
    assert set(threading.enumerate()) == before, "an executor that is still ending breaks exits"
