"""Benchmark of spreading work: what a unit costs beside its work, and a store under many workers.

A unit that does nothing goes through processes, and through Ray where it is installed. Then
workers share one store: each takes a prompt by its id, waits for as long as a unit of work would
take, and stores next tokens, as a labelling run does.

PYTHONPATH=tests/pivotal_tokens python scripts/bench_workers.py --workers 32
"""

from __future__ import annotations

import functools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import Row, benchmark, organism
from object_server import object_server

from em_circuits.cli.options import Options
from em_circuits.engine.pool import WorkerPool
from em_circuits.engine.processes import process_workers
from em_circuits.engine.settings import EngineSettings
from em_circuits.engine.station import Doing, Task
from em_circuits.graphs.store import GraphStore
from em_circuits.object_store import artefact_root
from em_circuits.workspace import Workspace
from pivotal_tokens.schema import NextTokens, Prompt, TokenScore
from pivotal_tokens.store import Store, default_url

PAIR = "0" * 64
TOKENS = NextTokens(
    model="base",
    fingerprint="0" * 64,
    top_k=10,
    tokens=tuple(
        TokenScore(token_id=i, text=f" t{i}", logit=0.0, probability=0.1, rank=i)
        for i in range(1, 11)
    ),
)
MERGED = TOKENS.model_copy(update={"model": "merged"})


class Plan(Options):
    """How much of each."""

    units: int = 400
    """Units that do nothing, through each engine."""
    workers: int = 32
    """Workers on one store."""
    seconds: float = 10
    """How long they work."""
    unit_ms: float = 50
    """How long a unit's own work takes."""
    most: int | None = None
    """Units that there are. [default: more than the workers can do]"""


class Nothing(Task):
    """Does nothing with a unit."""

    def open(self, work: Workspace) -> Doing:
        return lambda ids: []


def overhead(units: int, engine: str, root: Path) -> float:
    """Milliseconds a unit takes that does nothing, on one worker that has loaded its models."""
    task, models = Nothing(), organism(root).models
    open_work = functools.partial(Workspace, root=root, models=models, create=True)
    todo = [(str(number),) for number in range(units)]

    def each(pool: WorkerPool) -> float:
        pool.add(todo)
        outcomes = pool.run()
        next(outcomes)  # the models are loaded
        started = time.perf_counter()
        for _ in outcomes:
            pass
        return 1000 * (time.perf_counter() - started) / (units - 1)

    if engine == "local":
        return each(WorkerPool(process_workers(open_work, task, 1, "cpu"), 1))
    from em_circuits.engine.ray_workers import ray_workers

    with ray_workers(open_work, task, EngineSettings(engine="ray")) as start:
        return each(WorkerPool(start, 1))


def from_copies(remote: Path, folder: Path) -> list[Row]:
    """CPU time of influence in a graph of 8,542 nodes, from a local copy and from a disk."""
    from synthetic import Size, synthetic_graph  # torch, which the workers of a store do without

    from em_circuits.influence import Targets, influence

    graph = synthetic_graph(Size(n_features=8192, n_layers=16, n_pos=20, n_logits=10))
    times: dict[str, list[float]] = {"disk": [], "copies": []}
    stores = {"disk": GraphStore(folder), "copies": GraphStore(remote)}
    for store in stores.values():
        store.save(graph, {})
    targets = Targets.each(graph)
    for _ in range(6):
        for name, store in stores.items():
            started = time.process_time()
            influence(store.load(graph.header.key), targets)
            times[name].append(time.process_time() - started)
    disk, copies = (1000 * statistics.median(each[1:]) for each in times.values())
    return [
        Row("influence from a local disk, CPU", None, disk, "ms"),
        Row("... from an object store's local copy", None, copies, "ms", at_most=1.1 * disk),
    ]


_together: Any = None
"""Barrier at which the workers wait until all have begun."""


def meet(barrier: Any) -> None:
    """Tell a worker where all begin."""
    global _together
    _together = barrier


def share(
    url: str, ids: Sequence[str], number: int, plan: Plan
) -> tuple[int, list[float], list[float]]:
    """What one worker does: units done, seconds of taking each, seconds of storing each."""
    takes, stores = [], []
    with Store.open(url) as store:
        store.prompts.get(ids[0])
        _together.wait()
        end = time.monotonic() + plan.seconds
        for prompt_id in ids[number :: plan.workers]:
            if time.monotonic() > end:
                break
            started = time.perf_counter()
            store.prompts.get(prompt_id)
            takes.append(time.perf_counter() - started)
            time.sleep(plan.unit_ms / 1000)
            started = time.perf_counter()
            store.results.put_next_tokens(prompt_id, PAIR, TOKENS, MERGED)
            stores.append(time.perf_counter() - started)
    return len(takes), takes, stores


@dataclass(frozen=True)
class Shared:
    """What all workers on a store reach together: units a second, milliseconds of each part."""

    units: float
    take_ms: float
    take_p99: float
    store_ms: float
    store_p99: float


def shared(url: str, plan: Plan) -> Shared:
    """Units a second, and how long taking and storing one take, of all workers together."""
    most = plan.most or int(1.2 * plan.workers * plan.seconds * 1000 / plan.unit_ms)
    with Store.open(url, create=True) as store:
        store.results.put_pair(PAIR, {})
        prompts = [Prompt.of(f"prompt {number}") for number in range(most)]
        store.prompts.add_all(prompts)
    ids = [prompt.prompt_id for prompt in prompts]
    context = multiprocessing.get_context("spawn")
    with context.Pool(plan.workers, meet, (context.Barrier(plan.workers),)) as pool:
        work = [(url, ids, number, plan) for number in range(plan.workers)]
        found = pool.starmap(share, work, chunksize=1)
    takes = sorted(1000 * each for _, some, _ in found for each in some)
    stores = sorted(1000 * each for _, _, some in found for each in some)
    slow = [each[int(0.99 * len(each))] for each in (takes, stores)]
    return Shared(
        units=sum(n for n, _, _ in found) / plan.seconds,
        take_ms=statistics.median(takes),
        take_p99=slow[0],
        store_ms=statistics.median(stores),
        store_p99=slow[1],
    )


def shared_rows(name: str, url: str, plan: Plan) -> list[Row]:
    """The same as lines of the table, PostgreSQL's with their targets."""
    found, target = shared(url, plan), name == "PostgreSQL"
    return [
        Row(
            f"{name}, {plan.workers} workers of {plan.unit_ms:g} ms",
            None,
            found.units,
            "units/s",
            value_at_least=400 if target else None,
        ),
        Row("... taking a unit, p99", None, found.take_p99, "ms", at_most=50 if target else None),
        Row("... storing its next tokens, median", None, found.store_ms, "ms"),
        Row("... p99", None, found.store_p99, "ms"),
    ]


def measure(plan: Plan) -> list[Row]:
    """All of it."""
    from postgres import postgres_server  # the tests' own, which other benchmarks do without

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        one = overhead(plan.units, "local", root)
        rows.append(Row("a unit through a process, beside its work", None, one, "ms", at_most=20))
        try:
            one = overhead(plan.units, "ray", root)
            rows.append(Row("... through Ray", None, one, "ms", at_most=20))
        except Exception as error:  # an extra that need not be there
            print(f"Ray was not measured: {error}")
        rows += shared_rows("SQLite", default_url(root / "shared"), plan)
        with postgres_server(durable=True) as server:
            rows += shared_rows("PostgreSQL", server.url, plan)
        with object_server() as bucket:
            rows += from_copies(artefact_root(bucket) / "graphs", root / "graphs")
    return rows


if __name__ == "__main__":
    benchmark(Plan, measure, __doc__)
