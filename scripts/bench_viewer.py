"""Measure the viewer: answers at 8,192 features, the page of 1,000 nodes and 20,000 edges.

python scripts/bench_viewer.py --out results/bench_viewer.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent / "tests"
sys.path[:0] = [
    str(path)
    for path in (HERE, TESTS / "em_circuits", TESTS / "em_circuits" / "viewer", TESTS / "browser")
]

from benchmarks.measure import report  # noqa: E402
from benchmarks.viewer import measure  # noqa: E402


def main() -> None:
    """Parse, measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-browser", action="store_true", help="measure the server alone")
    parser.add_argument("--out", type=Path, help="also write the rows as JSON")
    given = parser.parse_args()
    report(measure(given.repeats, browser=not given.no_browser), given.out)


if __name__ == "__main__":
    main()
