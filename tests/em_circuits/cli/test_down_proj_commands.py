"""`toy-down-proj` at the command line, with its adapter's ranks as nodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import printed
from subjects import PAD_THAI

from em_circuits.cli.app import run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with one labelled prompt and its graphs."""
    made = tmp_path_factory.mktemp("down-proj")
    basis = ("--basis", "transcoder", "--basis", "adapter")
    command = ["label", "--prompt", PAD_THAI, "--nodes", "60", *basis]
    assert run(["--root", str(made), "--organism", "toy-down-proj", *command]) == 0
    return made


def plain(capsys: pytest.CaptureFixture[str], root: Path, *arguments: str) -> str:
    return printed(capsys, root, "--organism", "toy-down-proj", *arguments)


def ask(capsys: pytest.CaptureFixture[str], root: Path, *arguments: str) -> Any:
    return json.loads(plain(capsys, root, *arguments, "--json"))


def test_the_adapters_node_leads_in_every_table(root: Path, capsys) -> None:
    (prompt,) = (
        json.loads(line)["prompt_id"]
        for line in plain(capsys, root, "prompts", "list", "--json").splitlines()
    )
    assert "transcoder+adapter" in plain(capsys, root, "graphs", "list")
    found = ask(capsys, root, "influence", prompt, "--targets", "evil-safe")
    ranks = [node for node in found["nodes"] if node["module"]]
    best = max(ranks, key=lambda node: abs(node["values"][0]))
    name = f"down_proj:0/{best['position']}/0"
    table = plain(capsys, root, "influence", prompt, "--targets", "evil-safe")
    assert name in table and "logit " not in table
    assert "down_proj:0/" in plain(
        capsys, root, "graphs", "prune", prompt, "--targets", "evil-safe"
    )
    way = ("--from", name, "--to", "evil-safe")
    paths = ask(capsys, root, "graphs", "paths", prompt, *way)
    assert paths["total"] == pytest.approx(best["values"][0], rel=1e-5)
    assert f"from {name} to" in plain(capsys, root, "graphs", "paths", prompt, *way)
    mediated = ask(capsys, root, "features", "mediate", prompt)["adapter"]
    parts = [
        mediated["shares"][part] for part in ("straight", "features", "attention", "remainder")
    ]
    assert sum(parts) == pytest.approx(1, abs=0.02)
    assert {node["module"] for node in mediated["nodes"]} == {"model.layers.0.mlp.down_proj"}
    refused = ["graphs", "paths", prompt, "--from", "down_proj:1/3/0", "--to", "evil-safe"]
    assert "adapter modules: down_proj of layer 0" in printed(capsys, root, *refused, status=2)
