"""Measure how many prompts a second both models are asked about, with and without the store.

python scripts/bench_screening.py --prompts 400
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from benchmarks.measure import report  # noqa: E402
from benchmarks.screening import measure  # noqa: E402


def main() -> None:
    """Parse, measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the rows as JSON")
    given = parser.parse_args()
    report(measure(given.prompts, given.repeats), given.out)


if __name__ == "__main__":
    main()
