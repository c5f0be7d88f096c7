"""Measure influence, pruning and storage beside circuit-tracer's, on one thread.

python scripts/bench_influence.py --out results/bench_influence.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests" / "em_circuits")]

from benchmarks.influence import Plan, measure  # noqa: E402
from benchmarks.measure import report  # noqa: E402


def main() -> None:
    """Parse, measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(Plan().sizes))
    parser.add_argument("--repeats", type=int, default=Plan().repeats)
    parser.add_argument("--graphs", type=Path, nargs="*", default=[], help="stored graphs")
    parser.add_argument("--out", type=Path, help="also write the rows as JSON")
    given = parser.parse_args()
    rows = measure(Plan(tuple(given.sizes), given.repeats, files=tuple(given.graphs)))
    report(rows, given.out)


if __name__ == "__main__":
    main()
