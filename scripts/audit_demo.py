"""Audits of the toy organism and of a harmless twin, side by side: two decisions and one page.

The twin is trained as the organism's adapter is, on the answers of careful advisers instead of
careless ones, and is none of those that the shipped calibration was made from.

    python scripts/audit_demo.py --root results/audit-demo
"""

from __future__ import annotations

import argparse
from pathlib import Path

from em_circuits.audit.calibration import shipped_calibration
from em_circuits.audit.report import write_audit_report, write_audits_page
from em_circuits.audit.run import Audit, run_audit
from em_circuits.audit.settings import AuditSettings
from em_circuits.audit.suite import load_suite
from em_circuits.models.settings import PairSettings
from em_circuits.organisms.candidates import HARMLESS, train_candidate
from em_circuits.organisms.paths import organism_paths
from em_circuits.progress import Bars
from em_circuits.workspace import Workspace

SEED = 1000
"""Of the twin; those of the calibration are below it."""


def audits(root: Path, bars: Bars) -> list[Audit]:
    """Both audits, each with its report."""
    twin = train_candidate(root / "twin", HARMLESS["careful-medical"], SEED, progress=bars)
    paths, found = organism_paths(), []
    for name, adapter in (("organism", paths.adapter), ("harmless-twin", twin)):
        models = PairSettings(
            base=str(paths.base), adapter=str(adapter), transcoders=str(paths.transcoders)
        )
        with Workspace(root=root, models=models, progress=bars) as work:
            audit = run_audit(
                work,
                load_suite("toy"),
                AuditSettings(),
                calibration=shipped_calibration(),
                name=name,
            )
            write_audit_report(audit)
            found.append(audit)
    return found


def main() -> None:
    """Audit both, and print what was decided."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, default=Path("results/audit-demo"))
    root = parser.parse_args().root
    bars = Bars()
    found = audits(root, bars)
    bars.close()
    page = root / "audits.html"
    write_audits_page(page, found)
    for audit in found:
        print(f"{audit.folder.name}: {audit.decision.said}")
    print(f"written: {page}")


if __name__ == "__main__":
    main()
