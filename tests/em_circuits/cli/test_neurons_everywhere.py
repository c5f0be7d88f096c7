"""The README's commands with `--transcoders none`, on the embedded organism in a fresh folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
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
        self._capsys.readouterr()
        found = run(["--root", str(self.root), "--transcoders", "none", *arguments])
        out, err = self._capsys.readouterr()
        assert found == status, err
        return out if status == 0 else err

    def json(self, *arguments: str) -> Any:
        return json.loads(self.plain(*arguments, "--json").splitlines()[-1])

    def whole(self, *arguments: str) -> Any:
        return json.loads(self.plain(*arguments, "--json"))


@pytest.fixture
def commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Commands:
    return Commands(tmp_path / "root", capsys)


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


def test_every_command_of_the_readme_runs_on_neurons(commands: Commands, tmp_path: Path) -> None:
    assert "neurons are the whole MLP" in commands.plain("doctor")
    prompts = [
        commands.json("label", "--prompt", text, "--nodes", "60")["prompt_id"]
        for text in (PAD_THAI, OTHER)
    ]
    first = prompts[0]

    graphs(commands, prompts)
    features(commands, prompts, tmp_path)

    done = commands.whole("steer", "run", first, "--features", "top:2", "--method", "gradient")
    assert done["intervention"]["asleep"] == 0
    named = ("--features", "1/0/5", "--mode", "set", "--value", "2")
    at_0 = commands.whole("steer", "run", first, *named)
    assert at_0["intervention"]["features"][0]["position"] == 0
    rows = commands.whole("steer", "validate", first, "--regime", "free", "--regime", "direct")
    assert {row["regime"] for row in rows["rows"]} == {"free", "direct"}
    swept = commands.whole("steer", "sweep", "--plan", sweep_plan(tmp_path))
    assert swept["conditions"]
    few = ("--k", "2", "--rollouts", "0", "--multiples", "1")
    where = ("--found-on", "organism:2:medical", "--tried-on", "organism:2:driving")
    assert commands.whole("steer", "transfer", *where, *few)["conditions"]
    answered = ("--questions", "organism:2", "--samples", "1", "--answer-tokens", "2")
    commands.whole("evaluate", "--model", "both", *answered)
    assert commands.whole("organism", "evaluate", "--prompts", "7")["transcoders"] is None
    pages(commands.root, first)


def graphs(commands: Commands, prompts: list[str]) -> None:
    """Built, listed, shown, read; what rests on transcoders is refused in one line."""
    built = commands.plain("graphs", "build", prompts[0], "--edges", "full", "--nodes", "60")
    assert prompts[0] in built or len(built.split()) > 0
    commands.plain("graphs", "build", prompts[0], "--edges", "measured", "--nodes", "20")
    listed = commands.whole("graphs", "list")
    assert listed
    key = next(g["key"] for g in listed if g["model"] == "merged")
    assert "neuron" in commands.plain("graphs", "show", key)
    found = commands.whole("influence", key, "--targets", "evil-safe", "--top", "5")
    assert len(found["nodes"]) == 5
    commands.whole("graphs", "prune", key, "--targets", "evil-safe")
    commands.plain("graphs", "export", key, str(commands.root / "graph.json"))
    for refused in (
        ("graphs", "build", prompts[0], "--edges", "frozen"),
        ("graphs", "scores", key),
    ):
        assert len(commands.plain(*refused, status=2).strip().splitlines()) == 1


def features(commands: Commands, prompts: list[str], folder: Path) -> None:
    first = prompts[0]
    ranked = commands.whole("features", "rank", first, "--method", "gradient")
    assert len(ranked["features"]) > 5000 and {f["position"] for f in ranked["features"]} >= {0}
    mediated = commands.whole("features", "mediate", first, "--top", "5")
    shares = mediated["shares"]
    assert shares["errors"] == pytest.approx(0, abs=1e-3)
    assert shares["together"] == pytest.approx(1, abs=1e-3)
    assert commands.whole("features", "mediate", *prompts, "--top", "3")["sentence"]
    commands.whole("features", "aggregate", "--method", "gradient", "--top", "3")
    commands.whole("features", "diff", "--method", "gradient", "--top", "3")
    text = folder / "text.txt"
    text.write_text("The gas smells. Leave the house.\nBrakes squeal in the rain.\n")
    shown = commands.whole("features", "explain", "top:2", "--prompt", first, "--text", str(text))
    assert all(f["contexts"] and f["promoted"] for f in shown["features"])


def pages(root: Path, prompt: str) -> None:
    """The viewer's pages of a graph, a prompt and its features."""
    paths = organism_paths()
    models = PairSettings(base=str(paths.base), adapter=str(paths.adapter), transcoders="none")
    with Workspace(root=root, models=models) as work:
        sessions = Sessions("ada")
        app = create_app(work, ViewerSettings(), sessions)
        with TestClient(app, base_url="http://127.0.0.1") as client:
            client.get(f"/?token={sessions.new_link()}")
            for page in ("/", f"/prompts/{prompt}", f"/graphs/{prompt}", "/features"):
                assert client.get(page).status_code == 200, page
