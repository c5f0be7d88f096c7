"""Graphs on disk: broken ones are named and built again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ask, printed, root_after
from subjects import PAD_THAI

from em_circuits.cli.app import run

SMALL = ("--max-features", "150")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the pad-thai prompt and its graphs."""
    return root_after(tmp_path_factory, ["label", "--prompt", PAD_THAI, *SMALL, "--json"])


@pytest.fixture
def copied(labelled: Path, tmp_path: Path) -> Path:
    shutil.copytree(labelled, tmp_path / "copy")
    return tmp_path / "copy"


def merged_file(root: Path) -> tuple[str, str, Path]:
    """Prompt id, key (as in the file's name) and file of the merged graph."""
    (file,) = root.glob("graph_storage/*/merged-*.safetensors")
    return file.parent.name, file.stem.removeprefix("merged-"), file


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-len(data) // 3] ^= 8
    file.write_bytes(data)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def test_archiving_is_refused_with_what_to_do_instead(copied, capsys) -> None:
    _, key, _ = merged_file(copied)
    commands = (
        ("graphs", "archive", key),
        ("graphs", "prune-store", "--max-age-days", "1", "--archive"),
    )
    for command in commands:
        assert "prune-store --edges-only" in printed(capsys, copied, *command, status=2)
    undone = ask(capsys, copied, "graphs", "archive", "--undo")
    assert undone["graphs"] == 2 and undone["freed_bytes"] == 0


@pytest.mark.parametrize("damage", [flip, truncate])
@pytest.mark.parametrize("command", ["label", "build"])
def test_a_broken_graph_is_named_put_aside_and_built_again(copied, capsys, damage, command) -> None:
    prompt, key, file = merged_file(copied)
    sound = file.read_bytes()
    damage(file)
    said = printed(capsys, copied, "influence", key, status=1)
    assert str(file) in said and f"graphs build {prompt}" in said and "Traceback" not in said
    assert file.exists()  # reading moves nothing
    words = ("label", "--prompt", PAD_THAI) if command == "label" else ("graphs", "build", prompt)
    assert run(["--root", str(copied), *words, *SMALL, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["graphs"]["merged"].startswith(key)
    assert str(file) in err and "put aside" in err
    assert len(list(copied.glob("graph_storage/quarantine/*/merged-*.safetensors"))) == 1
    assert len(file.read_bytes()) == len(sound)
    assert ask(capsys, copied, "influence", key)["nodes"]
    assert ask(capsys, copied, "graphs", "verify")["ok"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("background", [False, True])
def test_an_interrupted_build_leaves_nothing_half_written(
    copied, capsys, number: signal.Signals, background: bool
) -> None:
    """A signal to the real program in the middle of an attribution; then the same command again."""
    if background and number is signal.SIGINT:
        pytest.skip("a job in the background does not hear Ctrl-C")

    def job() -> None:
        # A test run in the background ignores some of them, and its children would, too.
        signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN if background else signal.SIG_DFL)

    prompt, _, _ = merged_file(copied)
    shutil.rmtree(copied / "graph_storage")
    command = [sys.executable, "-c", _SLOW_MAIN, "--root", str(copied)]
    command += ["graphs", "build", prompt, "--edges", "frozen", "--max-features", "150"]
    command += ["--batch-size", "8", "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        preexec_fn=job,
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "attributing\n"
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == 130 and out == ""
    assert "run the same command again" in err and "Traceback" not in err
    left = [p for p in (copied / "graph_storage").rglob("*") if p.is_file()]
    assert left == []
    assert ask(capsys, copied, *command[5:])["reused"] is False
    assert len(list(copied.glob("graph_storage/*/*.safetensors"))) == 2


# The program itself; it only says when the first rows are done, and then waits for the signal.
_SLOW_MAIN = """
import sys, time
from em_circuits.cli import session

class Waiting(session.Bars):
    def __call__(self, step, done, total):
        if step == "attribution" and done > 100:
            print("attributing", flush=True)
            time.sleep(250)

session.Bars = Waiting
from em_circuits.cli import main
main()
"""
