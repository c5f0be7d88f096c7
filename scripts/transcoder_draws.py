"""How much does a finding depend on which transcoders were drawn? Same models, other seeds.

python scripts/transcoder_draws.py --out draws --draws 0 1 2 3 4    # about four minutes a draw

Over held-out prompts of the domains that the adapter never saw: how well the gradient predicts
really setting each feature alone (Pearson), the largest single feature's part of the length of that
error, and the share of the shift by the prompt's own top 20.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.draws import measured, trained


def main() -> None:
    """Train each draw beside the shipped base and adapter, and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--steps", type=int, default=700, help="of training; fewer to try it out")
    given = parser.parse_args()
    for draw in given.draws:
        paths = trained(given.out / f"draw-{draw}", draw, given.steps)
        figures = measured(paths, given.prompts)
        (pearson, error, share), (least, _, lowest) = figures.mean(0), figures.min(0).values
        print(
            f"draw {draw}: Pearson {pearson:.3f} (least {least:.3f}), one feature's part of the "
            f"error {error:.3f}, top 20 {share:.3f} (least {lowest:.3f}), {len(figures)} prompts",
            flush=True,
        )


if __name__ == "__main__":
    main()
