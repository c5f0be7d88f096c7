"""Benchmark of a model judge: many prompts at a fixed latency of the endpoint.

The endpoint is the fake one of the tests, in a process of its own; the store is a fresh SQLite
file; next tokens are there. Timed is a whole run, to the last prompt's result. The load of the
machine stands beside the figure: under any, wall time says little and CPU time more.

    python scripts/bench_judging.py --n 200 --concurrency 20 --latency 0.2
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import organism

from em_circuits.labelling.events import EventLog
from em_circuits.labelling.result import LabelSettings
from em_circuits.labelling.run import Run
from em_circuits.labelling.screening import screen_prompts
from em_circuits.labelling.sources import ListSource, template_prompts
from pivotal_tokens.judge import ModelJudge
from pivotal_tokens.llm import LLMSettings

ENDPOINT = Path(__file__).parents[1] / "tests" / "fake_endpoint.py"


def measure_judging(n: int, concurrency: int, latency_s: float) -> dict[str, float]:
    """Judge `n` of the organism's prompts, `concurrency` at a time."""
    settings = LabelSettings(graphs_for="none")
    command = [sys.executable, str(ENDPOINT), "--latency", str(latency_s)]
    os.environ.setdefault("OPENAI_API_KEY", "none-needed")
    with (
        tempfile.TemporaryDirectory() as root,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as endpoint,
        organism(Path(root)) as work,
    ):
        assert endpoint.stdout is not None
        url = endpoint.stdout.readline().strip()
        asked = LLMSettings(model="o3", base_url=url, max_concurrency=concurrency)
        judge = ModelJudge(asked, store=work.store, pair=work.pair.key)
        prompts = template_prompts(n)
        screen_prompts(work, prompts, top_k=10)
        with EventLog.open(work.results, run="bench") as events:
            run = Run(work, ListSource("bench", prompts), judge, settings, events=events)
            began, busy = time.perf_counter(), time.process_time()
            judged = sum(result.error is None for result in run.results())
            took, busy = time.perf_counter() - began, time.process_time() - busy
        endpoint.terminate()
        return {
            "judged": judged,
            "calls": work.store.ledger.counts().calls,
            "seconds": round(took, 3),
            "latency_alone": -(-n // concurrency) * latency_s,
            "cpu_seconds": round(busy, 3),
            "load": round(os.getloadavg()[0], 2),
        }


def main() -> None:
    """Parse, measure, print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--concurrency", type=int, default=20)
    parser.add_argument("--latency", type=float, default=0.2, metavar="SECONDS")
    given = parser.parse_args()
    print(json.dumps(measure_judging(given.n, given.concurrency, given.latency)))


if __name__ == "__main__":
    main()
