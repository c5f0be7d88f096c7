"""The experiment scripts run from end to end, and stay short."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "scripts" / "experiments"
EXPECTED = {
    "one_by_one": "its token alone",
    "combinations": "#1+#2",
    "to_the_base": "set in base x3",
    "layer_filter": "layer 3: 2 features ablated",
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_script_runs_on_the_organism(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = FOLDER / f"{name}.py"
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [str(script), "--root", str(tmp_path), "--n", "2", "--small"])
    runpy.run_path(str(script), run_name="__main__")
    assert EXPECTED[name] in capsys.readouterr().out
    assert list((tmp_path / "results" / "experiments").glob("*/summary.json"))


def test_draws_of_transcoders_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = FOLDER.parent / "transcoder_draws.py"
    monkeypatch.syspath_prepend(str(script.parent))
    few = ["--draws", "5", "--prompts", "1", "--steps", "2"]
    monkeypatch.setattr(sys, "argv", [str(script), "--out", str(tmp_path), *few])
    runpy.run_path(str(script), run_name="__main__")
    told = capsys.readouterr().out
    assert told.startswith("draw 5: Pearson 0.") and told.endswith("1 prompts\n")
    assert (tmp_path / "draw-5" / "transcoders" / "layer_3.safetensors").is_file()


def test_scripts_are_short() -> None:
    assert {p.name for p in FOLDER.glob("*.py")} == {f"{n}.py" for n in (*EXPECTED, "setting")}
    for path in FOLDER.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60, path.name
