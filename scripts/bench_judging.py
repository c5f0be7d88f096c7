"""Measure judging by a model: 200 prompts, 20 at a time, at 200 ms latency.

python scripts/bench_judging.py --n 200 --concurrency 20 --latency 0.2
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from benchmarks.judging import measure_judging


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
