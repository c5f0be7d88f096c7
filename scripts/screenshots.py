"""Take a picture of every page of the viewer over a root that `em-circuits demo` filled.

python scripts/screenshots.py --root runs/demo --out docs/screenshots
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

from benchmarks.pictures import take  # noqa: E402


def main() -> None:
    """Parse and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="filled by em-circuits demo")
    parser.add_argument("--out", type=Path, default=Path("docs/screenshots"))
    given = parser.parse_args()
    for path in take(given.root, given.out):
        print(f"{path}  {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
