"""Measure attribution and influence of a prompt of thousands of tokens.

python scripts/bench_long_prompt.py --out results/bench_long_prompt.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests" / "em_circuits")]

from benchmarks.long_prompt import Plan, measure  # noqa: E402
from benchmarks.measure import report  # noqa: E402


def main() -> None:
    """Parse, measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("n_pos", "n_layers", "d_model", "active", "features", "batch_size", "threads"):
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=int, default=getattr(Plan(), name))
    parser.add_argument("--out", type=Path, help="also write the rows as JSON")
    given = vars(parser.parse_args())
    out = given.pop("out")
    report(measure(Plan(**given)), out)


if __name__ == "__main__":
    main()
