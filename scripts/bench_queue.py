"""Benchmark of the review queue: time to the next of 100,000 items, and to the first after a start.

python scripts/bench_queue.py --items 100000
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from measure import Row, benchmark
from sqlalchemy import insert

from em_circuits.cli.options import Options
from pivotal_tokens.review import ReviewController, ReviewService
from pivotal_tokens.schema import NextTokenPair, NextTokens, Prompt, ReviewConfig, TokenScore
from pivotal_tokens.store import Store, Wanted, tables


def _lists() -> NextTokenPair:
    def tokens(model: str) -> NextTokens:
        scores = tuple(
            TokenScore(token_id=t, text=f" w{t}", logit=-t, probability=0.09, rank=t)
            for t in range(1, 11)
        )
        return NextTokens(model=model, fingerprint=model, top_k=10, tokens=scores)

    return NextTokenPair(base=tokens("base"), merged=tokens("merged"))


def fill(store: Store, items: int) -> None:
    """A queue of so many items, all waiting."""
    lists = _lists().model_dump_json()
    prompts = [Prompt.of(f"prompt {number}") for number in range(items)]
    store.prompts.add_all(prompts)
    with store.writing() as connection:
        rows = [{"prompt_id": p.prompt_id, "pair": "p", "payload": lists} for p in prompts]
        connection.execute(insert(tables.next_tokens), rows)
        queued = {"pair": "p", "reason": "flagged", "state": "pending", "enqueued_at": 0.0}
        rows = [
            queued | {"prompt_id": p.prompt_id, "updated_at": 0.0, "evil_mass": n % 997 / 997}
            for n, p in enumerate(prompts)
        ]
        connection.execute(insert(tables.queue), rows)


class Plan(Options):
    """How long a queue, how many answers."""

    items: int = 100_000
    """In the queue."""
    rounds: int = 200
    """Answers that are timed."""
    store: str | None = None
    """URL of an empty one. [default: SQLite in a temporary directory]"""


def measure(plan: Plan) -> list[Row]:
    """Fill a store, and review in it."""
    with tempfile.TemporaryDirectory() as directory:
        url = plan.store or f"sqlite:///{Path(directory) / 'bench.sqlite'}"
        with Store.open(url, create=True) as store:
            fill(store, plan.items)
            store.assignments.set_config(ReviewConfig(overlap=1))
        began = time.perf_counter()
        with Store.open(url) as store:
            service = ReviewService(store, "ada")
            question = service.next_question()
            assert question is not None
            rows = [Row("open to first item", None, _since(began), "ms")]
            service.release(question)
            for name, wanted in (("queue", Wanted()), ("evil_mass", Wanted(order="evil_mass"))):
                rows += _answers(ReviewService(store, f"ada {name}", wanted=wanted), name, plan)
            rows += _keys(ReviewController(ReviewService(store, "bob"), auto_finish=True), plan)
            start = time.perf_counter()
            service.progress()
            return [*rows, Row("progress", None, _since(start), "ms")]


def _answers(service: ReviewService, order: str, plan: Plan) -> list[Row]:
    times: dict[str, list[float]] = {"next item": [], "finish": []}
    for _ in range(plan.rounds):
        start = time.perf_counter()
        question = service.next_question()
        times["next item"].append(_since(start))
        assert question is not None
        start = time.perf_counter()
        service.finish(question, rest="safe")
        times["finish"].append(_since(start))
    return [
        Row(f"{what} by {order}, {part}", None, sorted(values)[int(at * len(values))], "ms")
        for what, values in times.items()
        for part, at in (("p50", 0.5), ("p99", 0.99))
    ]


def _keys(review: ReviewController, plan: Plan) -> list[Row]:
    """How long a key takes until the next item is there to be drawn."""
    review.start()
    times = []
    for _ in range(plan.rounds):
        start = time.perf_counter()
        review.key("skip")
        times.append(_since(start))
    review.leave()
    figures = {"min": min(times), "median": statistics.median(times), "max": max(times)}
    return [Row(f"key to next item, {what}", None, t, "ms") for what, t in figures.items()]


def _since(start: float) -> float:
    return 1000 * (time.perf_counter() - start)


if __name__ == "__main__":
    benchmark(Plan, measure, __doc__)
