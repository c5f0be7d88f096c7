"""Benchmark of the review queue: time to the next of 100,000 items, and to the first after a start.

python scripts/bench_queue.py --items 100000
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from sqlalchemy import insert

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


def measure(url: str, items: int, rounds: int) -> None:
    """Fill a store at a URL and print how long reviewing takes."""
    with Store.open(url, create=True) as store:
        fill(store, items)
        store.assignments.set_config(ReviewConfig(overlap=1))
    began = time.perf_counter()
    with Store.open(url) as store:
        first = ReviewService(store, "ada")
        question = first.next_question()
        print(f"open to first item {1e3 * (time.perf_counter() - began):.0f} ms")
        assert question is not None
        first.release(question)
        for name, wanted in (("queue", Wanted()), ("evil_mass", Wanted(order="evil_mass"))):
            service = ReviewService(store, f"ada {name}", wanted=wanted)
            times, finishing = [], []
            for _ in range(rounds):
                start = time.perf_counter()
                question = service.next_question()
                times.append(time.perf_counter() - start)
                assert question is not None
                start = time.perf_counter()
                service.finish(question, rest="safe")
                finishing.append(time.perf_counter() - start)
            for what, values in (("next item", times), ("finish", finishing)):
                ordered = sorted(1e3 * value for value in values)
                p50, p99 = ordered[len(ordered) // 2], ordered[int(0.99 * len(ordered))]
                print(f"{items} items, by {name}: {what} p50 {p50:.1f} ms, p99 {p99:.1f} ms")
        _keys(ReviewController(ReviewService(store, "bob"), auto_finish=True), rounds)
        start = time.perf_counter()
        service.progress()
        print(f"progress {1e3 * (time.perf_counter() - start):.0f} ms")


def _keys(review: ReviewController, rounds: int) -> None:
    """Print how long a key takes until the next item is there to be drawn."""
    review.start()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        review.key("skip")
        times.append(1e3 * (time.perf_counter() - start))
    review.leave()
    least, median, most = min(times), statistics.median(times), max(times)
    print(f"key to next item min {least:.1f} ms, median {median:.1f} ms, max {most:.1f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--store", help="an empty one; by default SQLite in a temporary directory")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        where = options.store or f"sqlite:///{Path(directory) / 'bench.sqlite'}"
        measure(where, options.items, options.rounds)
