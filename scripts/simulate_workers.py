"""Simulation of a thousand workers on one store, from what `bench_workers.py` measures with 32.

A worker computes for a while, then reads and writes; PostgreSQL serves so many transactions at
once, in order, SQLite one writer, in no order, and readers beside it. How long one takes is fitted,
so that 32 simulated workers with units of 50 ms do as many a second as measured ones; how long the
slow ones wait is then compared with what was measured. Then there are more than can be measured.

The transactions of a labelled prompt are counted on a run of the embedded organism.

python scripts/simulate_workers.py --postgresql 500 --sqlite 353
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
from typing import Any

from measure import Row, benchmark

from em_circuits.cli.app import run
from em_circuits.cli.options import Options
from pivotal_tokens.store.database import Database

STRAIGHT = 0.9
"""Share of what as many workers would do without a store, below which the store is what bends."""


AT_ONCE = 8
"""Transactions that PostgreSQL serves at once; with 8 the slow ones wait as long as measured."""


class Plan(Options):
    """What was measured, and what is simulated."""

    postgresql: float = 500
    """Units a second of 32 workers of 50 ms on PostgreSQL (`make bench-workers`)."""
    sqlite: float = 353
    """The same on SQLite."""
    prompts: int = 20
    """Labelled with graphs to count transactions; 0 takes `reads` and `writes`."""
    reads: float = 1
    """Of a prompt, where they are not counted."""
    writes: float = 1
    """Of a prompt, where they are not counted."""
    work_s: float = 10
    """Seconds that a worker's models take for a prompt, with both graphs."""


@dataclass(frozen=True)
class StoreModel:
    """A store as a queue: so many transactions at once, each for so long."""

    servers: int
    read_s: float
    write_s: float
    in_order: bool
    """And reads wait as writes do."""


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
            busy -= store.in_order or step > reads
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
        elif store.in_order or step >= reads:
            waiting.append((now, worker, step + 1))
        else:
            heapq.heappush(ends, (now + store.read_s * draw.expovariate(1.0), worker, step + 1))
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


def fitted(units: float, servers: int, in_order: bool) -> StoreModel:
    """The store on which 32 workers of 50 ms do so many units a second; a read takes a quarter of a
    unit's time in it."""
    least, most = 1e-5, 1.0
    for _ in range(30):
        middle = (least * most) ** 0.5
        store = StoreModel(servers, middle / 4, 3 * middle / 4, in_order)
        if simulate(store, workers=32, work_s=0.05).units > units:
            least = middle
        else:
            most = middle
    return store


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
    """Both stores fitted, compared, and asked for a thousand workers."""
    reads, writes = transactions(plan.prompts) if plan.prompts else (plan.reads, plan.writes)
    rows = [
        Row("reads of a labelled prompt", None, reads, ""),
        Row("writes of a labelled prompt", None, writes, ""),
    ]
    n_reads, n_writes = max(1, round(reads)), max(1, round(writes))
    stores = {
        "PostgreSQL": fitted(plan.postgresql, AT_ONCE, in_order=True),
        "SQLite": fitted(plan.sqlite, 1, in_order=False),
    }
    for name, store in stores.items():
        found = simulate(store, workers=32, work_s=0.05)
        rows += [
            Row(
                f"{name}: a read and a write, fitted",
                None,
                1000 * (store.read_s + store.write_s),
                "ms",
            ),
            Row("... 32 workers of 50 ms", None, found.units, "units/s"),
            Row("... their reads, p99", None, 1000 * found.take_p99, "ms"),
            Row("... their writes, p99", None, 1000 * found.store_p99, "ms"),
        ]
        for workers in (100, 1000):
            found = simulate(
                store, workers=workers, work_s=plan.work_s, reads=n_reads, writes=n_writes
            )
            share = found.units * plan.work_s / workers
            what = f"... {workers} workers of {plan.work_s:g} s a prompt"
            rows.append(Row(what, None, found.units, "prompts/s"))
            rows.append(Row("... share of what they would do without a store", None, share, ""))
            rows.append(Row("... a prompt's writes, p99", None, found.store_p99, "s"))
        for work_s in (1.0, plan.work_s, 60.0):
            most = bend(store, work_s=work_s, reads=n_reads, writes=n_writes)
            rows.append(Row(f"... straight up to, at {work_s:g} s a prompt", None, most, "workers"))
        most = bend(store, work_s=plan.work_s, reads=1, writes=1)
        rows.append(Row("... the same with one read and one write a prompt", None, most, "workers"))
    return rows


if __name__ == "__main__":
    benchmark(Plan, measure, __doc__)
