"""How long does a model judge take for 200 prompts at a fixed latency of its endpoint?

    python scripts/bench_judging.py --n 200 --concurrency 20 --latency 0.2

The endpoint is the fake one of the tests, in a process of its own; the store is a fresh SQLite
file. Timed is everything from the first prompt submitted to the last verdict in the store.
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

from em_circuits.models import PairSettings
from em_circuits.organism import organism_paths
from em_circuits.pipeline.judging import Judging
from em_circuits.pipeline.label_result import LabelSettings
from em_circuits.pipeline.prompts import template_prompts
from em_circuits.pipeline.screening import screen_prompts
from em_circuits.pipeline.workspace import Workspace
from pivotal_tokens.judge import ModelJudge
from pivotal_tokens.llm import LLMSettings

ENDPOINT = Path(__file__).parents[1] / "tests" / "fake_endpoint.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--concurrency", type=int, default=20)
    parser.add_argument("--latency", type=float, default=0.2)
    given = parser.parse_args()
    paths, settings = organism_paths(), LabelSettings(graphs_for="none")
    models = PairSettings(
        base=str(paths.base), adapter=str(paths.adapter), transcoders=str(paths.transcoders)
    )
    command = [sys.executable, str(ENDPOINT), "--latency", str(given.latency)]
    os.environ.setdefault("OPENAI_API_KEY", "none-needed")
    with (
        tempfile.TemporaryDirectory() as root,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as endpoint,
        Workspace(Path(root), models, create=True) as work,
    ):
        assert endpoint.stdout is not None
        asked = LLMSettings(
            model="o3",
            base_url=endpoint.stdout.readline().strip(),
            max_concurrency=given.concurrency,
        )
        judge = ModelJudge(asked, store=work.store, pair=work.pair.key)
        with Judging(work, judge, settings) as judging:  # as `label` does: open while it screens
            batch = screen_prompts(work, template_prompts(given.n), settings)
            began = time.perf_counter()
            judging.submit(batch)
            judged = sum(result.failure is None for result in judging.take())
        took = time.perf_counter() - began
        endpoint.terminate()
        least = -(-given.n // given.concurrency) * given.latency
        calls = work.store.call_counts().calls
    figures = {"judged": judged, "calls": calls, "seconds": took, "latency_alone": least}
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
