"""`steer sweep` and `steer transfer` as a person runs them: killed, resumed, recomputed."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import yaml
from killing import kill_once_written
from subjects import PAD_THAI

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
    before = kill_once_written(arguments, journal, ROOT)
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
    from em_circuits.report.sweep import RECOMPUTE

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


def test_a_wrong_request_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ["--root", str(tmp_path)]
    assert run([*root, "steer", "sweep", "--plan", str(tmp_path / "none.yaml")]) == 2
    assert run([*root, "steer", "transfer", "--found-on", "organism:0", "--tried-on", "x"]) == 2
    found = ("--found-on", "organism:2", "--tried-on", "organism:2")
    assert run([*root, "steer", "transfer", *found, "--name", "../x"]) == 2
    assert run([*root, "steer", "transfer", *found, "--random", "3"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 4 and "No such file" in lines[0] and "name" in lines[2]


def test_steer_run_reports_continuations_and_inactive_features(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ["--root", str(tmp_path)]
    label = ["label", "--prompt", PAD_THAI, "--max-features", "100", "--scores-only", "--json"]
    assert run([*root, *label]) == 0
    prompt = json.loads(capsys.readouterr().out)["prompt_id"]
    own = ("--mode", "set", "--value", "2", "--unit", "own", "--at", "everything")
    told = ("--rollouts", "2", "--max-tokens", "3", "--json")
    assert run([*root, "steer", "run", prompt, "--features", "top:2", *own, *told]) == 0
    record = json.loads(capsys.readouterr().out)
    assert all(i["position"] is None for i in record["intervention"]["features"])
    assert record["intervention"]["asleep"] == 0
    worlds = record["rollouts"]["worlds"]
    assert set(worlds) == {"unsteered", "steered", "random_control"}
    assert all(len(world["texts"]) == 2 for world in worlds.values())
    with_nan = ("--mode", "add", "--value", "nan")
    for wrong in (("--features", "9/3/1"), ("--features", "1/3/99999"), with_nan):
        assert run([*root, "steer", "run", prompt, "--method", "gradient", *wrong]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert "layer 9" in lines[-3] and "feature id 99999" in lines[-2] and "finite" in lines[-1]
