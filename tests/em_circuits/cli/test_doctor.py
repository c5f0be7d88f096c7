"""doctor prints each check when it is done, keeps them when stopped, and builds no graph."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder
from lifelike import Lifelike, make_lifelike
from safetensors.torch import load_file, save_file

from em_circuits.cli.app import run
from em_circuits.models import health
from em_circuits.models.check import Check


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Lifelike:
    return make_lifelike(tmp_path_factory.mktemp("doctor"))


def options(paths: Lifelike, root: Path, *more: str) -> list[str]:
    named = {"base": paths.base, "adapter": paths.adapter, "transcoders": paths.transcoders}
    given = [word for name, path in named.items() for word in (f"--{name}", str(path))]
    return [*given, "--root", str(root), *more]


def test_no_graph_is_built_and_nothing_encoded(
    paths: Lifelike, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("encoded")

    for name in ("encode", "encode_sparse", "decode_sparse"):
        monkeypatch.setattr(SingleLayerTranscoder, name, refuse)
    assert run(options(paths, tmp_path, "--transcoders-on", "disk", "doctor")) == 0
    assert not any(tmp_path.iterdir())


def test_ctrl_c_keeps_what_was_found(
    paths: Lifelike,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stopped(*_: object, **__: object) -> Iterator[Check]:
        yield Check("first of the pair", True, "found", "found")
        raise KeyboardInterrupt

    monkeypatch.setattr(health, "check_pair", stopped)
    assert run(options(paths, tmp_path, "doctor")) == 130
    out, err = capsys.readouterr()
    assert "ok    first of the pair: found" in out
    written = tmp_path / "results" / "doctor.json"
    record = json.loads(written.read_text())
    assert record["interrupted"] and record["checks"][-1]["name"] == "first of the pair"
    assert str(written) in err
    assert run(options(paths, tmp_path, "doctor", "--json")) == 130
    assert json.loads(capsys.readouterr().out)["interrupted"]


def test_the_plan_is_that_of_the_options(
    paths: Lifelike, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def plan(*more: str) -> str:
        assert run(options(paths, tmp_path, "doctor", *more)) == 0
        lines = capsys.readouterr().out.splitlines()
        return next(line for line in lines if "memory plan" in line)

    whole = plan("--edges", "frozen", "--batch-size", "4096", "--prompt", "climb " * 200)
    small = plan("--edges", "frozen", "--batch-size", "4", "--prompt", "climb " * 200)
    assert whole != small and " tokens" in small


def test_what_is_not_finite_has_a_profile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = make_lifelike(tmp_path / "models")
    file = paths.base / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = torch.inf
    save_file(tensors, file, metadata={"format": "pt"})
    assert run(options(paths, tmp_path, "--trust-base", "doctor", "--prompt", "Climb?")) == 1
    out, err = capsys.readouterr()
    assert "layer/position" in out and "not finite" in out and "2/1" in out
    assert "doctor.json" in err
    record = json.loads((tmp_path / "results" / "doctor.json").read_text())
    assert min(place["layer"] for place in record["profile"] if place["base"] is None) == 2
