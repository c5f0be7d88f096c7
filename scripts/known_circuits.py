"""Known circuits beside their targets: the tables of ``make known``.

python scripts/known_circuits.py [PROGRAM ...]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from em_circuits.cli.output import table
from em_circuits.experiments.known_circuits import score_known
from em_circuits.organisms.known import FIRST_ORDER_BLIND, PROGRAMS


def main() -> None:
    """Compile, score, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("programs", nargs="*", choices=[[], *PROGRAMS], metavar="PROGRAM")
    chosen = parser.parse_args().programs
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        scores = score_known(Path(folder), [PROGRAMS[name] for name in chosen] if chosen else None)
    print(f"{len(scores.programs)} programs: {', '.join(scores.programs)}\n")
    rows = [
        (s.kind, s.basis, s.auroc, s.worst, s.worst_program, f"{s.exact}/{s.programs}")
        for s in scores.edges
    ]
    header = ("edges", "basis", "AUROC", "worst", "on", "exact at the true size")
    print(table(header, rows), "\n")
    for score in scores.edges:
        if score.not_exact:
            print(f"{score.kind}, {score.basis}: not exact on {', '.join(score.not_exact)}")
    print(
        "target: full and measured 1.000, exact on every program; full edges but on "
        f"{', '.join(FIRST_ORDER_BLIND)} (a gate that would open)\n"
    )
    nodes = [
        (s.method, s.basis, s.auroc, f"{s.exact}/{s.programs}", s.faithfulness)
        for s in scores.nodes
    ]
    print(table(("nodes by", "basis", "AUROC", "exact", "faithfulness"), nodes))
    print(f"\n{time.process_time() - began:.0f} CPU seconds")


if __name__ == "__main__":
    main()
