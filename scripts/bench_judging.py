"""Benchmark of a model judge: many prompts at a fixed latency of the endpoint.

The endpoint is the fake one of the tests, in a process of its own; the store is a fresh SQLite
file; next tokens are there. Timed is a whole run, to the last prompt's result. The load of the
machine stands beside the figure: under any, wall time says little and CPU time more.

    python scripts/bench_judging.py --n 200 --concurrency 20 --latency 0.2
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import Row, benchmark, organism
from pydantic import Field

from em_circuits.cli.options import Options
from em_circuits.engine.events import EventLog
from em_circuits.labelling.result import LabelSettings
from em_circuits.labelling.run import Run
from em_circuits.labelling.screening import screen_prompts
from em_circuits.labelling.sources import ListSource, template_prompts
from pivotal_tokens.judge import ModelJudge
from pivotal_tokens.llm import LLMSettings

ENDPOINT = Path(__file__).parents[1] / "tests" / "fake_endpoint.py"


class Plan(Options):
    """What is asked."""

    n: int = Field(default=200, ge=1)
    """Prompts of the organism."""
    concurrency: int = 20
    """Questions at a time."""
    latency: float = 0.2
    """Of the endpoint, in seconds."""


def measure(plan: Plan) -> list[Row]:
    """Judge prompts and take the time."""
    settings = LabelSettings(graphs_for="none")
    command = [sys.executable, str(ENDPOINT), "--latency", str(plan.latency)]
    os.environ.setdefault("OPENAI_API_KEY", "none-needed")
    with (
        tempfile.TemporaryDirectory() as root,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as endpoint,
        organism(Path(root)) as work,
    ):
        assert endpoint.stdout is not None
        url = endpoint.stdout.readline().strip()
        asked = LLMSettings(model="o3", base_url=url, max_concurrency=plan.concurrency)
        judge = ModelJudge(asked, store=work.store, pair=work.pair.key)
        prompts = template_prompts(plan.n)
        screen_prompts(work, prompts, top_k=10)
        with EventLog.open(work.results, run="bench") as events:
            run = Run(work, ListSource("bench", prompts), judge, settings, events=events)
            began, busy = time.perf_counter(), time.process_time()
            judged = sum(result.error is None for result in run.results())
            took, busy = time.perf_counter() - began, time.process_time() - busy
        endpoint.terminate()
        calls, latency = work.store.ledger.counts().calls, -(-plan.n // plan.concurrency)
        return [
            Row(f"{judged} prompts judged, {calls} calls", None, took, "s"),
            Row("latency alone", None, latency * plan.latency, "s"),
            Row(f"CPU (load {os.getloadavg()[0]:.2f})", None, busy, "s"),
        ]


if __name__ == "__main__":
    benchmark(Plan, measure, __doc__)
