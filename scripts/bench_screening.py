"""Benchmark of screening: prompts a second, both models of the embedded organism.

One by one, in batches, and in batches that are tokenised and kept in a store; and how far a batch
is from one by one.

    python scripts/bench_screening.py --prompts 400
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from measure import Row, benchmark, organism, timed

from em_circuits.cli.options import Options
from em_circuits.labelling.run import BATCH
from em_circuits.labelling.screening import screen_prompts
from em_circuits.labelling.sources import template_prompts
from em_circuits.models.next_tokens import screen, screen_many
from em_circuits.workspace import Workspace
from pivotal_tokens.schema import NextTokenPair, Prompt

TARGET = 200.0
"""Prompts a second, on two cores."""


class Plan(Options):
    """How many prompts, how often."""

    prompts: int = 400
    """Of the organism's templates."""
    repeats: int = 5
    """Of each timing."""


def measure(plan: Plan) -> list[Row]:
    """Every row of the table."""
    n_prompts = plan.prompts
    prompts = template_prompts(n_prompts, seed=0)
    with (
        tempfile.TemporaryDirectory() as folder,
        organism(Path(folder), dtype="float32") as work,
    ):
        pair = work.pair
        ids = [pair.input_ids(prompt) for prompt in prompts]
        alone, many = [screen(pair, one) for one in ids], screen_many(pair, ids)
        different, distance = compared(alone, many)
        works = {
            "one by one": lambda: [screen(pair, one) for one in ids],
            "in batches": lambda: screen_many(pair, ids),
        }
        took = timed(works, repeats=plan.repeats)
        rates = {name: 1000 * n_prompts / milliseconds for name, milliseconds in took.items()}
        kept = _kept_rate(work, n_prompts, plan.repeats)
    at_least = {"in batches": TARGET}
    rows = [
        Row(f"next tokens of both models, {name}", None, rate, "prompts/s", value_at_least=target)
        for name, rate in rates.items()
        for target in [at_least.get(name)]
    ]
    what = "tokenised, in batches, kept in SQLite"
    rows.append(Row(f"next tokens of both models, {what}", None, kept, "prompts/s"))
    rows.append(Row("prompts whose top 10 a batch changes", None, different, "", at_most=0))
    rows.append(Row("largest change of a probability", None, distance, "", at_most=1e-5))
    return rows


def compared(alone: Sequence[NextTokenPair], many: Sequence[NextTokenPair]) -> tuple[int, float]:
    """Prompts with another top k, and the largest difference of a probability."""
    different, largest = 0, 0.0
    for one, other in zip(alone, many, strict=True):
        lists = ((one.base, other.base), (one.merged, other.merged))
        different += any(
            [t.token_id for t in a.top] != [t.token_id for t in b.top] for a, b in lists
        )
        for a, b in lists:
            shared = a.by_id.keys() & b.by_id.keys()
            gaps = (abs(a.by_id[t].probability - b.by_id[t].probability) for t in shared)
            largest = max(largest, *gaps)
    return different, largest


def _kept_rate(work: Workspace, n: int, repeats: int) -> float:
    """New prompts each time, so that nothing is stored already."""
    rates = []
    for repeat in range(repeats):
        prompts: list[Prompt] = [
            Prompt.of(f"Case {repeat}. {prompt.text}") for prompt in template_prompts(n, seed=0)
        ]
        start = time.perf_counter()
        for first in range(0, n, BATCH):
            screen_prompts(work, prompts[first : first + BATCH], top_k=10)
        rates.append(n / (time.perf_counter() - start))
    return statistics.median(rates)


if __name__ == "__main__":
    benchmark(Plan, measure, __doc__)
