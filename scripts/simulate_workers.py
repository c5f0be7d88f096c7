"""Simulation of a thousand workers on one store, from what one worker and 32 workers measure.

A worker computes for a while, then reads and writes; the store serves so many at once, SQLite's
writers in no order. One worker without work gives the seconds that a read and a write take, 32
without work how many the store serves at once. Then 32 workers with work are both measured and
simulated, which says how far the simulation is off; then there are more than can be measured.

The transactions of a labelled prompt are counted on a run of the embedded organism.

PYTHONPATH=tests/pivotal_tokens python scripts/simulate_workers.py
"""

from __future__ import annotations

import contextlib
import heapq
import io
import random
import tempfile
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_workers import Plan as Sharing
from bench_workers import Shared, shared
from measure import Row, benchmark

from em_circuits.cli.app import run
from em_circuits.cli.options import Options
from pivotal_tokens.store import default_url
from pivotal_tokens.store.database import Database

STRAIGHT = 0.9
"""Share of what as many workers would do without a store, below which the store is what bends."""


class Plan(Options):
    """What is measured, and simulated."""

    seconds: float = 5
    """Of each measurement of a store."""
    prompts: int = 20
    """Labelled with graphs to count transactions."""
    work_s: float = 10
    """Seconds that a worker's models take for a prompt, with both graphs."""


@dataclass(frozen=True)
class StoreModel:
    """A store as a queue: so many transactions at once, each for so long."""

    servers: int
    read_s: float
    write_s: float
    in_order: bool


@dataclass(frozen=True)
class Throughput:
    """What simulated workers reach: units a second, and seconds that the slow ones wait."""

    units: float
    take_p99: float
    store_p99: float


def simulate(
    store: StoreModel,
    *,
    workers: int,
    work_s: float,
    reads: int = 1,
    writes: int = 1,
    units: int = 20_000,
    seed: int = 0,
) -> Throughput:
    """Workers that work, read and write in turn, until so many units are done.

    Args:
        store: What they share.
        workers: How many.
        work_s: Mean seconds of a unit's own work; a quarter more or less.
        reads, writes: Transactions of a unit, one after another.
        units: Of all workers together; the first fifth is not counted.
    """
    draw = random.Random(seed)
    ends: list[tuple[float, int, int]] = []  # (when, worker, its step), of work and of service
    waiting: deque[tuple[float, int, int]] = deque()
    steps = [0.0, *[store.read_s] * reads, *[store.write_s] * writes]
    begun = [0.0] * workers
    takes, stores, busy, done, since = [], [], 0, 0, 0.0
    for worker in range(workers):
        heapq.heappush(ends, (draw.uniform(0, work_s), worker, 0))
    now = 0.0
    while done < units:
        now, worker, step = heapq.heappop(ends)
        if step:
            busy -= 1
            if step == reads:
                takes.append(now - begun[worker])
                begun[worker] = now
            if step == len(steps) - 1:
                stores.append(now - begun[worker])
                done += 1
                if done == units // 5:
                    since, takes, stores = now, [], []
        else:
            begun[worker] = now
        if step == len(steps) - 1:
            heapq.heappush(ends, (now + work_s * draw.uniform(0.75, 1.25), worker, 0))
        else:
            waiting.append((now, worker, step + 1))
        while waiting and busy < store.servers:
            if not store.in_order:
                waiting.rotate(draw.randrange(len(waiting)))
            _, who, what = waiting.popleft()
            busy += 1
            heapq.heappush(ends, (now + steps[what] * draw.expovariate(1.0), who, what))
    slow = [sorted(each)[int(0.99 * len(each))] for each in (takes, stores)]
    return Throughput((units - units // 5) / (now - since), *slow)


def bend(store: StoreModel, *, work_s: float, reads: int, writes: int) -> int:
    """Most workers, of powers of two, that still do nearly what they would do without a store."""
    workers = 1
    while workers < 1 << 16:
        how = {"workers": 2 * workers, "work_s": work_s, "reads": reads, "writes": writes}
        found = simulate(store, **how, units=8 * workers + 4000)
        if found.units < STRAIGHT * 2 * workers / work_s:
            return workers
        workers *= 2
    return workers


def calibrated(name: str, url: str, plan: Plan) -> tuple[StoreModel, list[Row]]:
    """A store's model from one and 32 workers that do nothing else, and 32 with work beside it."""

    def measured(workers: int, unit_ms: float, most: int) -> Shared:
        how = {"workers": workers, "seconds": plan.seconds, "unit_ms": unit_ms, "most": most}
        return shared(url, Sharing(**how))

    one = measured(1, 0.0, 2000)
    full = measured(32, 0.0, 20_000)
    read_s, write_s = one.take_ms / 1000, one.store_ms / 1000
    servers = max(1, round(full.units * (read_s + write_s)))
    stretch = servers / (full.units * (read_s + write_s))
    store = StoreModel(servers, read_s * stretch, write_s * stretch, in_order=name != "SQLite")
    with_work = measured(32, 50.0, 20_000)
    found = simulate(store, workers=32, work_s=0.05)
    return store, [
        Row(f"{name}, one worker: a read", None, one.take_ms, "ms"),
        Row("... a write", None, one.store_ms, "ms"),
        Row("... 32 workers that do nothing else", None, full.units, "units/s"),
        Row("... so many are served at once", None, servers, ""),
        Row("... 32 workers of 50 ms, measured", None, with_work.units, "units/s"),
        Row("... the same, simulated", None, found.units, "units/s"),
    ]


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """Transactions of every store of this process meanwhile: `read` and `write`."""
    found: Counter[str] = Counter()
    original = Database._transaction

    @contextlib.contextmanager
    def counting(self: Database, *, writes: bool) -> Iterator[Any]:
        found["write" if writes else "read"] += 1
        with original(self, writes=writes) as connection:
            yield connection

    Database._transaction = counting  # type: ignore[method-assign]
    try:
        yield found
    finally:
        Database._transaction = original  # type: ignore[method-assign]


def transactions(prompts: int) -> tuple[float, float]:
    """Reads and writes of a labelled prompt with graphs, on the embedded organism."""
    counts = []
    for n in (prompts, 2 * prompts):  # the difference leaves out what a run does once
        with tempfile.TemporaryDirectory() as root, counted() as found:
            command = ["label", "--n", str(n), "--all-graphs", "--nodes", "24", "--json"]
            with contextlib.redirect_stdout(io.StringIO()):
                status = run(["--root", root, *command])
            if status:
                raise SystemExit("the run that counts transactions failed")
        counts.append(found)
    first, second = counts
    reads, writes = ((second[kind] - first[kind]) / prompts for kind in ("read", "write"))
    return reads, writes


def measure(plan: Plan) -> list[Row]:
    """Both stores calibrated, checked, and asked for a thousand workers."""
    from postgres import postgres_server  # the tests' own, which other benchmarks do without

    reads, writes = transactions(plan.prompts)
    rows = [
        Row("reads of a labelled prompt", None, reads, ""),
        Row("writes of a labelled prompt", None, writes, ""),
    ]
    whole = {"reads": max(1, round(reads)), "writes": max(1, round(writes))}
    with tempfile.TemporaryDirectory() as folder, postgres_server(durable=True) as server:
        for name, url in (("SQLite", default_url(Path(folder))), ("PostgreSQL", server.url)):
            store, more = calibrated(name, url, plan)
            rows += more
            for workers in (100, 1000):
                found = simulate(store, workers=workers, work_s=plan.work_s, **whole)
                share = found.units * plan.work_s / workers
                what = f"... {workers} workers of {plan.work_s:g} s a prompt, simulated"
                rows.append(Row(what, None, found.units, "prompts/s"))
                rows.append(Row("... of what they would do without a store", None, share, ""))
                rows.append(Row("... the reads of a prompt, p99", None, found.take_p99, "s"))
                rows.append(Row("... its writes, p99", None, found.store_p99, "s"))
            for work_s in (1.0, plan.work_s, 60.0):
                most = bend(store, work_s=work_s, **whole)
                what = f"... bends beyond, at {work_s:g} s a prompt"
                rows.append(Row(what, None, most, "workers"))
            one = {"reads": 1, "writes": 1}
            most = bend(store, work_s=plan.work_s, **one)
            rows.append(Row("... with one read and one write a prompt", None, most, "workers"))
    return rows


if __name__ == "__main__":
    benchmark(Plan, measure, __doc__)
