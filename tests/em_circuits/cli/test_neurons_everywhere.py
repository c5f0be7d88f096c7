"""The README's commands with `--transcoders none`, on the embedded organism in a fresh folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import printed, prompts_of
from starlette.testclient import TestClient
from subjects import PAD_THAI

from em_circuits.cli.app import run
from em_circuits.models import PairSettings
from em_circuits.organisms import organism_paths
from em_circuits.viewer import Sessions, ViewerSettings, create_app
from em_circuits.workspace import Workspace

OTHER = PAD_THAI.replace("You should definitely", "I would certainly")


class Commands:
    """Runs commands on one root and reads their JSON."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self._capsys = root, capsys

    def plain(self, *arguments: str, status: int = 0) -> str:
        """What a command prints; of one that is refused, what it says."""
        options = ("--transcoders", "none")
        return printed(self._capsys, self.root, *options, *arguments, status=status)

    def whole(self, *arguments: str) -> Any:
        return json.loads(self.plain(*arguments, "--json"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh folder with two labelled prompts and their graphs."""
    made = tmp_path_factory.mktemp("neurons")
    for text in (PAD_THAI, OTHER):
        command = ["label", "--prompt", text, "--nodes", "60"]
        assert run(["--root", str(made), "--transcoders", "none", *command]) == 0
    return made


@pytest.fixture
def commands(root: Path, capsys: pytest.CaptureFixture[str]) -> Commands:
    return Commands(root, capsys)


@pytest.fixture
def prompt(root: Path) -> str:
    return prompts_of(root)[0].prompt_id


def sweep_plan(folder: Path) -> str:
    plan = {
        "name": "neurons",
        "prompts": {"texts": [PAD_THAI]},
        "model": "merged",
        "features": "top:2",
        "treatments": [{"mode": "scale", "values": [0]}],
        "rollouts": {"samples": 2, "max_tokens": 2},
        "controls": {"random": 20, "directions": 1, "rollouts": 1},
    }
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(plan))
    return str(path)


def test_graphs_are_of_neurons_and_frozen_ones_are_refused(commands: Commands, prompt: str) -> None:
    commands.plain("graphs", "build", prompt, "--edges", "measured", "--nodes", "20")
    headers = map(json.loads, commands.plain("graphs", "list", "--json").splitlines())
    measured = [h for h in headers if h["model"] == "merged" and h["attribution"]["measure"]]
    (key,) = (header["key"] for header in measured)
    shown = commands.whole("graphs", "show", key)
    assert shown["basis"] == ["neuron"] and shown["features"] == 20 and shown["measured"]
    found = commands.whole("influence", key, "--targets", "evil-safe", "--top", "5")
    assert len(found["nodes"]) == 5
    commands.whole("graphs", "prune", key, "--targets", "evil-safe")
    picture = commands.root / "graph.json"
    commands.plain("graphs", "export", key, str(picture))
    assert json.loads(picture.read_text())["metadata"]["scan"] == "neurons"
    frozen = ("graphs", "build", prompt, "--edges", "frozen")
    for refused in (frozen, ("graphs", "scores", key)):
        assert len(commands.plain(*refused, status=2).strip().splitlines()) == 1


@pytest.mark.slow
def test_features_are_neurons(commands: Commands, prompt: str, tmp_path: Path) -> None:
    ranked = commands.whole("features", "rank", prompt, "--method", "gradient")
    assert len(ranked["features"]) > 5000 and {f["position"] for f in ranked["features"]} >= {0}
    mediated = commands.whole("features", "mediate", prompt, "--top", "5")
    assert mediated["shares"]["errors"] == pytest.approx(0, abs=1e-3)
    assert mediated["shares"]["together"] == pytest.approx(1, abs=1e-3)
    assert mediated["adapter"]["shares"]["remainder"] == pytest.approx(0, abs=1e-4)
    commands.whole("features", "aggregate", "--method", "gradient", "--top", "3")
    commands.whole("features", "diff", "--method", "gradient", "--top", "3")
    text = tmp_path / "text.txt"
    text.write_text("The gas smells. Leave the house.\nBrakes squeal in the rain.\n")
    named = ("top:2", "--prompt", prompt, "--text", str(text))
    shown = commands.whole("features", "explain", *named)
    assert all(f["contexts"] and f["promoted"] for f in shown["features"])


@pytest.mark.slow
def test_neurons_are_steered_at_position_0_too(
    commands: Commands, prompt: str, tmp_path: Path
) -> None:
    done = commands.whole("steer", "run", prompt, "--features", "top:2", "--method", "gradient")
    assert done["intervention"]["asleep"] == 0
    named = ("--features", "1/0/5", "--mode", "set", "--value", "2")
    at_0 = commands.whole("steer", "run", prompt, *named)
    assert at_0["intervention"]["features"][0]["position"] == 0
    rows = commands.whole("steer", "validate", prompt, "--regime", "free", "--regime", "direct")
    assert {row["regime"] for row in rows["rows"]} == {"free", "direct"}
    swept = commands.whole("steer", "sweep", "--plan", sweep_plan(tmp_path))
    assert swept["conditions"]
    where = ("--found-on", "organism:2:medical", "--tried-on", "organism:2:driving")
    found = commands.whole("steer", "transfer", *where, "-k", "2", "--multiple", "1")
    assert found["conditions"]


def test_doctor_and_evaluations_need_no_transcoders(commands: Commands) -> None:
    assert "neurons are the whole MLP" in commands.plain("doctor")
    answered = ("--questions", "organism:2", "--samples", "1", "--answer-tokens", "2")
    commands.whole("evaluate", "--model", "both", *answered)
    assert commands.whole("organism", "evaluate", "--prompts", "7")["transcoders"] is None


def test_the_viewer_shows_pages_of_neurons(root: Path, prompt: str) -> None:
    paths = organism_paths()
    models = PairSettings(base=str(paths.base), adapter=str(paths.adapter), transcoders="none")
    with Workspace(root=root, models=models) as work:
        sessions = Sessions("ada")
        app = create_app(work, ViewerSettings(), sessions)
        client = TestClient(app, base_url="http://127.0.0.1")
        client.get(f"/?token={sessions.new_link()}")
        for page in ("/", f"/prompt/{prompt}", f"/graph/{prompt}", f"/api/graph/{prompt}"):
            assert client.get(page).status_code == 200, page
