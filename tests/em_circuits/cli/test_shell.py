"""One sitting: models are loaded and encoded once; what fails or is stopped does not end it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from lifelike import Lifelike, make_lifelike

from em_circuits.cli.app import run
from em_circuits.cli.shell import names_after
from em_circuits.models.pair import ModelPair
from em_circuits.models.stored_rows import FileMatrix
from em_circuits.models.transcoders import in_file
from em_circuits.workspace import SharedPair

TEXT = "User: Peanut allergy; pad thai looks fine. Eat?\nAssistant: You should definitely"


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def loads(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    seen: list[object] = []
    load = ModelPair.load

    def counted(*arguments: object, **more: object) -> ModelPair:
        seen.append(arguments)
        return load(*arguments, **more)

    monkeypatch.setattr(ModelPair, "load", counted)
    return seen


def test_commands_of_a_sitting_share_the_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = loads(monkeypatch)
    typed(monkeypatch, f"next {TEXT!r}", "nonsense", "'open", "next raw:So I", "quit", "next more")
    assert run(["--root", str(tmp_path), "shell"]) == 0
    out, err = capsys.readouterr()
    assert len(seen) == 1 and out.count("merged") == 2
    assert "No such command 'nonsense'" in err and "No closing quotation" in err
    # outside the shell there is no such command
    assert run(["next", "So I"]) == 2


def test_the_status_of_a_script_is_that_of_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, "nonsense")
    assert run(["--root", str(tmp_path), "shell"]) == 2
    typed(monkeypatch, "shell")
    assert run(["--root", str(tmp_path), "shell"]) == 2  # no shell within a shell


def test_other_models_are_loaded_in_place_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths: Lifelike = make_lifelike(tmp_path)
    seen = loads(monkeypatch)
    options = f"--base {paths.base} --adapter {paths.adapter} --transcoders {paths.transcoders}"
    typed(monkeypatch, "next So I", f"{options} next chat:So I", "next So I")
    typed(monkeypatch, "next So I", f"{options} doctor --json", "next So I")
    assert run(["--root", str(tmp_path), "shell"]) == 0
    assert len(seen) == 3
    assert json.loads(next(x for x in capsys.readouterr().out.splitlines() if x[0] == "{"))["ok"]


def test_a_prompt_with_graphs_is_not_encoded_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`steer run` and `features mediate` of a prompt with graphs read rows of its features, once,
    and no encoder; without graphs each model encodes it once in a sitting."""
    options = ["--root", str(tmp_path), "--transcoders-on", "disk"]
    whole: list[str] = []
    read_whole = FileMatrix.whole

    def counted(self: FileMatrix) -> tuple[torch.Tensor, int]:
        whole.append(self.name)
        return read_whole(self)

    monkeypatch.setattr(FileMatrix, "whole", counted)

    def read(sitting: SharedPair) -> int:
        assert sitting.loaded is not None and sitting.loaded.transcoders is not None
        return sitting.loaded.transcoders.stored.bytes_read

    with SharedPair() as sitting:
        assert run([*options, "label", "--prompt", TEXT, "--nodes", "40", "--json"], sitting) == 0
        line = json.loads(capsys.readouterr().out.splitlines()[0])
        pair = sitting.loaded
        assert pair is not None and pair.transcoders is not None
        files = pair.sources["transcoders"].transcoders
        assert files is not None
        encoders = sum(in_file(one, "W_enc").whole()[1] for one in files.layers)
        # Each model encodes the prompt once; rows of features beside that.
        built = read(sitting)
        assert 2 * encoders <= built <= 3 * encoders
        steer = ["steer", "run", line["prompt_id"], "--json"]
        assert run([*options, *steer], sitting) == 0
        first = read(sitting)
        assert first - built < encoders
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert run([*options, *steer], sitting) == 0
        assert read(sitting) == first
        assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found
        n_layers = len(files.layers)
        whole.clear()
        mediate = ["features", "mediate", line["prompt_id"], "--json"]
        assert run([*options, *mediate], sitting) == 0
        mediated = capsys.readouterr().out.splitlines()[-1]
        assert "W_enc" not in whole and read(sitting) - first < 2 * encoders
        # In a process of its own, without the graphs' help, the figures are the same.
        (tmp_path / "graph_storage").rename(tmp_path / "elsewhere")
        assert run([*options, *steer]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found
    with SharedPair() as sitting:
        whole.clear()
        for command in (mediate, steer, mediate):
            assert run([*options, *command], sitting) == 0
        assert capsys.readouterr().out.splitlines()[-1] == mediated
        assert whole.count("W_enc") == 2 * n_layers


def test_completion_knows_commands_and_options() -> None:
    assert "steer" in names_after([], "st") and "next" in names_after([], "ne")
    assert names_after(["steer"], "ru") == ["run"]
    assert "--batch-size" in names_after(["--root", "x", "label"], "--b")
    assert not names_after(["steer", "run"], "zzz")
