"""Measure attribution of one prompt, a pair of models and gradients beside circuit-tracer's.

python scripts/bench_attribution.py --out results/bench_attribution.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests" / "em_circuits")]

from benchmarks.attribution import Plan, measure  # noqa: E402
from benchmarks.measure import report  # noqa: E402


def main() -> None:
    """Parse, measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=Plan().repeats)
    parser.add_argument("--features", type=int, default=Plan().max_feature_nodes)
    parser.add_argument("--out", type=Path, help="also write the rows as JSON")
    given = parser.parse_args()
    rows = measure(Plan(repeats=given.repeats, max_feature_nodes=given.features))
    report(rows, given.out)


if __name__ == "__main__":
    main()
