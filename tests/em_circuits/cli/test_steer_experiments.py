"""`steer sweep` and `steer transfer` as a person runs them: killed, resumed, recomputed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from em_circuits.cli.app import run

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "pad_thai.yaml"


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """The shipped example, cut down."""
    content = yaml.safe_load(EXAMPLE.read_text())
    content |= {"features": "top:2", "panel": 2, "positions": ["found"]}
    content["rollouts"] |= {"samples": 2, "max_tokens": 3}
    content["controls"] |= {"random": 20, "directions": 1, "rollouts": 1}
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_killed_sweep_goes_on_and_its_figures_follow_from_the_table(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    arguments = ["--root", str(root), "steer", "sweep", "--plan", str(plan)]
    journal = root / "results" / "experiments" / "pad-thai" / "journal.jsonl"
    running = subprocess.Popen(
        [sys.executable, "-m", "em_circuits", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (journal.is_file() and journal.stat().st_size):
        time.sleep(0.02)
        assert running.poll() is None
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    before = journal.read_text()
    done = before[: before.rfind("\n") + 1]
    assert done and not (journal.parent / "summary.json").exists()
    assert run([*arguments, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert journal.read_text().startswith(done)
    _recompute(journal.parent, summary, capsys)


def _recompute(folder: Path, summary: dict, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the ten lines of pandas that docs/steering.md shows."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "steering.md").read_text(), re.S)
    (lines,) = (block for block in blocks if "read_parquet" in block)
    assert len(lines.strip().splitlines()) <= 10
    from em_circuits.report.sweep_report import RECOMPUTE

    assert lines.strip() == RECOMPUTE.strip()
    names: dict = {}
    here = Path.cwd()
    os.chdir(folder)
    try:
        exec(lines, names)
    finally:
        os.chdir(here)
    assert "net" in capsys.readouterr().out
    for line in summary["conditions"]:
        row = names["table"].loc[line["condition"]]
        assert row.steered == pytest.approx(line["change"], abs=1e-9)
        assert row.random == pytest.approx(line["control"], abs=1e-9)
        assert row.net == pytest.approx(line["net"], abs=1e-9)
    assert (folder / "report.html").is_file()


def test_what_is_wrong_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ["--root", str(tmp_path)]
    assert run([*root, "steer", "sweep", "--plan", str(tmp_path / "none.yaml")]) == 2
    assert run([*root, "steer", "transfer", "--found-on", "organism:0", "--tried-on", "x"]) == 2
    found = ("--found-on", "organism:2", "--tried-on", "organism:2")
    assert run([*root, "steer", "transfer", *found, "--name", "../x"]) == 2
    assert run([*root, "steer", "transfer", *found, "--random", "3"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 4 and "No such file" in lines[0] and "name" in lines[2]
