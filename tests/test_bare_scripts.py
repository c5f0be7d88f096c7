"""Scripts run bare: with nothing on the path but the packages and the folder they stand in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[1] / "scripts"


def test_every_benchmark_starts_without_the_tests_on_the_path() -> None:
    names = [path.stem for path in sorted(SCRIPTS.glob("bench_*.py"))]
    assert len(names) >= 10
    code = f"import {', '.join([*names, 'screenshots'])}"
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS.parent)}
    run = [sys.executable, "-c", code]
    done = subprocess.run(
        run, cwd=SCRIPTS, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
