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
from pathlib import Path
from typing import Any

from measure import Row, benchmark, organism

from em_circuits.cli.options import Options
from em_circuits.engine.pool import WorkerPool
from em_circuits.engine.processes import process_workers
from em_circuits.engine.settings import EngineSettings
from em_circuits.engine.station import Doing, Task
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


def shared(name: str, url: str, plan: Plan) -> list[Row]:
    """Units a second, and how long taking and storing one take, of all workers together."""
    most = int(1.2 * plan.workers * plan.seconds * 1000 / plan.unit_ms)
    with Store.open(url, create=True) as store:
        store.results.put_pair(PAIR, {})
        prompts = [Prompt.of(f"prompt {number}") for number in range(most)]
        for prompt in prompts:
            store.prompts.add(prompt)
    ids = [prompt.prompt_id for prompt in prompts]
    context = multiprocessing.get_context("spawn")
    with context.Pool(plan.workers, meet, (context.Barrier(plan.workers),)) as pool:
        work = [(url, ids, number, plan) for number in range(plan.workers)]
        found = pool.starmap(share, work, chunksize=1)
    takes = sorted(each for _, some, _ in found for each in some)
    stores = sorted(each for _, _, some in found for each in some)
    target = name == "PostgreSQL"
    p99 = 1000 * takes[int(0.99 * len(takes))]
    return [
        Row(
            f"{name}, {plan.workers} workers of {plan.unit_ms:g} ms",
            None,
            sum(n for n, _, _ in found) / plan.seconds,
            "units/s",
            value_at_least=400 if target else None,
        ),
        Row("... taking a unit, p99", None, p99, "ms", at_most=50 if target else None),
        Row("... storing its next tokens, median", None, 1000 * statistics.median(stores), "ms"),
        Row("... p99", None, 1000 * stores[int(0.99 * len(stores))], "ms"),
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
        rows += shared("SQLite", default_url(root / "shared"), plan)
        with postgres_server(durable=True) as server:
            rows += shared("PostgreSQL", server.url, plan)
    return rows


if __name__ == "__main__":
    benchmark(Plan, measure, __doc__)
