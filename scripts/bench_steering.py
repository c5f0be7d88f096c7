"""Measure interventions beside circuit-tracer's, their memory, and how far the levers reach.

python scripts/bench_steering.py --out results/bench_steering.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests" / "em_circuits")]

from benchmarks.measure import report  # noqa: E402
from benchmarks.steering import Plan, measure  # noqa: E402


def main() -> None:
    """Parse, measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=int, help="of the scan; all of the prompt's by default")
    parser.add_argument("--prompts", type=int, default=Plan().prompts, help="of unseen domains")
    parser.add_argument("--out", type=Path, help="also write the rows as JSON")
    given = parser.parse_args()
    report(measure(Plan(features=given.features, prompts=given.prompts)), given.out)


if __name__ == "__main__":
    main()
