"""`steer sweep` and `steer transfer` as a person runs them: killed, resumed, recomputed."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml
from fake_endpoint import FakeEndpoint
from killing import kill_once_written
from subjects import PAD_THAI

from em_circuits.cli.app import run
from em_circuits.workspace import Workspace

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


def test_another_judge_reads_the_kept_texts_and_says_which_conclusions_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-for-tests")
    root = ["--root", str(tmp_path)]
    found = ["--found-on", "organism:3", "--tried-on", "organism:3", "-k", "10"]
    few = ["--rollouts", "2", "--random", "20", "--multiple", "1", "--json"]
    assert run([*root, "steer", "transfer", *found, *few, "--name", "kept"]) == 0
    first = json.loads(capsys.readouterr().out)
    folder = tmp_path / "results" / "experiments" / "kept"
    kept = (folder / "summary.json").read_bytes()
    texts = pd.read_parquet(folder / "rollouts.parquet")

    def never(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Workspace, "pair", property(never))
    asked: list[dict] = []

    def answer(body: dict) -> dict:
        question = json.loads(body["messages"][-1]["content"])
        asked.extend(question["continuations"])
        labels = [
            {"number": one["number"], "label": "safe", "reason": "all is well"}
            for one in question["continuations"]
        ]
        return {"labels": labels}

    with FakeEndpoint("ok", answer=answer) as endpoint:
        again = ["steer", "rejudge", "kept", "--judge", "openai:o3", "--base-url"]
        again.append(endpoint.base_url)
        assert run([*root, *again, "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        requests = len(endpoint.requests)
        assert run([*root, *again]) == 0
        assert len(endpoint.requests) == requests > 0
    shown = capsys.readouterr().out
    assert said["judges"][0] == "labels:first-token" and said["judges"][1].startswith("openai:o3@")
    assert said["texts"] == said["both"] == len(texts) and said["labels"] == {"safe": len(texts)}
    assert said["agreement"] == pytest.approx((texts.label == "safe").mean())
    # The judge is asked what the sweep's own judge would be: the first token apart, one line.
    whole = {one["next_word"] + one["goes_on"] for one in asked}
    assert whole == {text.split("\n", 1)[0] for text in texts.text}
    assert all(one["next_word"].strip() for one in asked)
    assert len(said["conclusions"]) == len(first["conditions"])
    for conclusion, line in zip(said["conclusions"], first["conditions"], strict=True):
        assert conclusion["before"] == line["evil_rate_change"] and conclusion["after"] == 0
        told = line["evil_rate_low"] is not None and (
            line["evil_rate_low"] > 0 or line["evil_rate_high"] < 0
        )
        assert conclusion["changed"] == told and conclusion["sign_after"] == "open"
    assert any(one["changed"] for one in said["conclusions"]) and "changed" in shown
    assert {rate["after"] for rate in said["rates"]} == {0}
    # What rests on tokens is the same to the last digit; what rested on labels of texts is not.
    for before, after in zip(first["conditions"], said["conditions"], strict=True):
        moved = {name for name in before if before[name] != after[name]}
        assert moved <= {name for name in before if "evil_rate" in name}
    assert (folder / "summary.json").read_bytes() == kept


def test_only_what_is_there_and_has_texts_can_be_read_by_another_judge(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ["--root", str(tmp_path)]
    assert run([*root, "steer", "rejudge", "nothing"]) == 2
    found = ["--found-on", "organism:2", "--tried-on", "organism:2", "-k", "3", "--random", "20"]
    assert run([*root, "steer", "transfer", *found, "--name", "bare"]) == 0
    assert run([*root, "steer", "rejudge", "bare"]) == 2
    assert run([*root, "steer", "rejudge", "../bare"]) == 2
    assert run([*root, "steer", "rejudge", "bare", "--judge", "human"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert "there are none" in lines[0] and "next tokens alone" in lines[-3]
    assert "there are bare" in lines[-2] and "labels no continuations" in lines[-1]


def test_a_word_list_reads_kept_texts_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ["--root", str(tmp_path)]
    found = ["--found-on", "organism:2", "--tried-on", "organism:2", "-k", "3", "--random", "20"]
    few = ["--rollouts", "1", "--multiple", "1"]
    assert run([*root, "steer", "transfer", *found, *few, "--name", "kept"]) == 0
    capsys.readouterr()
    assert run([*root, "steer", "rejudge", "kept", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["judges"][1].startswith("lexicon:") and said["both"] == said["texts"] > 0
    assert 0 <= said["agreement"] <= 1
