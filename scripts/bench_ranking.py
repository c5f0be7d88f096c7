"""Measure how well the default ranking agrees with real ablations on held-out prompts.

python scripts/bench_ranking.py --out results/bench_ranking.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.measure import report
from benchmarks.ranking import Plan, measure


def main() -> None:
    """Parse, measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=Plan().n_prompts)
    parser.add_argument("--measure", type=int, default=Plan().n_measured, help="really ablated")
    parser.add_argument("--seed", type=int, default=Plan().seed)
    parser.add_argument("--out", type=Path, help="also write the rows as JSON")
    given = parser.parse_args()
    report(measure(Plan(given.prompts, given.measure, given.seed)), given.out)


if __name__ == "__main__":
    main()
