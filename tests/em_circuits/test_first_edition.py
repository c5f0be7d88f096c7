"""A store and two graphs written by the first edition, read by this one.

``tests/data/first_edition`` holds its store as SQL, both graphs of one prompt (16 feature nodes)
and, in ``answers.json``, what its commands printed about them.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from em_circuits.cli.app import run
from pivotal_tokens.schema import Prompt
from pivotal_tokens.store import Store

FIRST = Path(__file__).parents[1] / "data" / "first_edition"
ANSWERS: list[dict[str, Any]] = json.loads((FIRST / "answers.json").read_text(encoding="utf-8"))
PROMPT_ID = "835cec8285e2"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root as the first edition left it."""
    root = tmp_path_factory.mktemp("first-edition")
    graphs = root / "graph_storage" / PROMPT_ID
    graphs.mkdir(parents=True)
    (root / "results").mkdir()
    connection = sqlite3.connect(root / "results" / "em-circuits.sqlite")
    connection.executescript((FIRST / "store.sql").read_text(encoding="utf-8"))
    connection.close()
    for file in FIRST.glob("*.safetensors*"):
        shutil.copy(file, graphs)
    return root


def assert_as_before(now: Any, before: Any, where: str = "") -> None:
    """Every key and figure of the first edition; further keys may stand beside them."""
    if isinstance(before, dict):
        assert isinstance(now, dict) and before.keys() <= now.keys(), where
        for key, value in before.items():
            assert_as_before(now[key], value, f"{where}.{key}")
    elif isinstance(before, list):
        assert isinstance(now, list) and len(now) == len(before), where
        for index, (mine, value) in enumerate(zip(now, before, strict=True)):
            assert_as_before(mine, value, f"{where}[{index}]")
    elif isinstance(before, float):
        assert now == pytest.approx(before, rel=1e-6, abs=1e-7), where
    else:
        assert now == before, where


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: " ".join(answer["command"][:2]))
def test_commands_print_what_they_printed(
    root: Path, answer: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    command = answer["command"]
    if command[0] == "label":  # what was the only kind of graph
        command = [*command, "--edges", "frozen"]
    assert run(["--root", str(root), *command]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    if command[:2] == ["labels", "divergence"]:  # what it called divergent is strict now
        for report in printed:
            report["totals"]["divergent"] = report["totals"]["strict"]
            for row in report["rows"]:
                row["divergent"] = row["strict"]
    assert_as_before(printed, answer["json"])


def test_labelling_the_same_prompt_uses_its_graphs_again(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {file: file.read_bytes() for file in root.glob("graph_storage/*/*.safetensors")}
    with Store.open(root / "results" / "em-circuits.sqlite") as store:
        prompt: Prompt = store.prompts.get(PROMPT_ID)
    command = ["label", "--prompt", prompt.text, "--max-features", "16", "--edges", "frozen"]
    assert run(["--root", str(root), *command]) == 0
    assert "1 re-used" in capsys.readouterr().out
    assert len(files) == 2
    assert {f: f.read_bytes() for f in root.glob("graph_storage/*/*.safetensors")} == files


def test_a_reviewer_goes_on_with_what_was_answered(root: Path) -> None:
    with Store.open(root / "results" / "em-circuits.sqlite") as store:
        assert store.labels.of(PROMPT_ID).by_token[490] == "evil"
        assert [item.state for item in store.queue.items()] == ["done"]
