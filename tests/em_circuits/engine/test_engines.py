"""Engines beside one another, as commands run them: the same rows and graphs, whatever dies."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cluster import label, left

from em_circuits.cli.app import run
from pivotal_tokens.store import Store, default_url

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
with_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is an extra")

at_length = pytest.mark.skipif("TEST_CLUSTER" not in os.environ, reason="part of make test-cluster")


def children(process: int) -> list[int]:
    """Processes that a process has started and that run Python's spawned workers."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if not folder.name.isdigit():
                continue
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == process and b"spawn_main" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def start(root: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "em_circuits", "--root", str(root), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.slow
def test_processes_leave_what_one_does_though_one_of_them_is_killed(tmp_path: Path) -> None:
    label(tmp_path / "one", 6)
    command = ["label", "--n", "6", "--all-graphs", "--nodes", "24", "--json", "--workers", "2"]
    process = start(tmp_path / "two", *command)
    assert process.stdout is not None
    lines = [process.stdout.readline()]  # one prompt is done, a worker is at the next
    os.kill(children(process.pid)[0], signal.SIGKILL)
    with process:
        lines += process.stdout.readlines()
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 0, said
    assert "a worker died" in said
    results = [json.loads(line) for line in lines]
    assert len({result["prompt_id"] for result in results}) == 6
    assert left(tmp_path / "two") == left(tmp_path / "one")


@pytest.mark.slow
def test_ctrl_c_drains_the_workers_and_the_run_goes_on_later(tmp_path: Path) -> None:
    command = ["label", "--n", "24", "--no-graphs", "--json", "--workers", "2"]
    process = start(tmp_path, *command)
    assert process.stdout is not None and process.stderr is not None
    lines = [process.stdout.readline()]
    process.send_signal(signal.SIGINT)
    with process:
        lines += process.stdout.readlines()
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert "finishing what is in flight" in said and "Traceback" not in said
    with Store.open(default_url(tmp_path)) as store:
        (pair,) = store.results.pairs()
        ids = [prompt.prompt_id for prompt in store.prompts.all()]
        stored = sum(store.results.next_tokens(each, pair) is not None for each in ids)
    assert len(lines) <= stored < 24
    deadline = time.monotonic() + 10
    while (alive := children(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive, "no worker outlives the command"


def test_what_is_wrong_with_the_models_is_one_line_from_a_worker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--root", str(tmp_path), "label", "--n", "2", "--engine", "dask"]) == 2
    assert "--engine dask: local, ray or ray://HOST:PORT" in capsys.readouterr().err
    generated = ["label", "--generator", "template", "--n", "2", "--workers", "2"]
    assert run(["--root", str(tmp_path), *generated]) == 2
    assert "em-circuits prompts generate" in capsys.readouterr().err
    elsewhere = ["label", "--n", "2", "--engine", "ray:10.1.1.1:6379"]
    assert run(["--root", str(tmp_path), *elsewhere]) == 2
    assert "needs a server as --store" in capsys.readouterr().err


def listening(process: int) -> set[str]:
    """Addresses, as the kernel writes them, at which a process and its descendants listen."""
    sockets, parents = {}, {}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A":
                sockets[f"socket:[{inode}]"] = local.partition(":")[0]
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            stat = (folder / "stat").read_text().rpartition(")")[2]
            parents[int(folder.name)] = int(stat.split()[1])
    found = set()
    for each in parents:
        up = each
        while up not in (0, process):
            up = parents.get(up, 0)
        with contextlib.suppress(OSError):
            files = Path("/proc", str(each), "fd").iterdir() if up else ()
            found |= {sockets.get(os.readlink(file), "") for file in files}
    return found - {""}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=[with_ray, at_length])])
def test_pieces_go_through_processes_and_actors_that_nobody_else_can_reach(
    engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [
        "evaluate",
        "--questions",
        "organism:3",
        "--samples",
        "1",
        "--answer-tokens",
        "4",
        "--json",
    ]
    assert run(["--root", str(tmp_path / "one"), *asked]) == 0
    alone = capsys.readouterr().out
    addresses: set[str] = set()
    process = start(tmp_path / "two", *asked, "--engine", engine, "--workers", "2")
    while process.poll() is None:
        addresses |= listening(process.pid)
        time.sleep(0.2)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert out.replace(str(tmp_path / "two"), str(tmp_path / "one")) == alone
    (folder,) = (tmp_path / "two" / "results" / "evaluations").iterdir()
    assert not (folder / "journal.jsonl").read_text().count("rows"), "workers answered everything"
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", f"{1 << 24:032X}"}
    assert addresses <= loopback and bool(addresses) == (engine == "ray")


@pytest.mark.slow
@with_ray
def test_two_nodes_label_though_one_and_a_worker_are_killed() -> None:
    """In short: `make test-cluster` labels 200 prompts, and kills three workers."""
    done = subprocess.run(
        [sys.executable, str(HERE / "cluster.py"), "--prompts", "8", "--kills", "1"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "8 verdicts and 16 graphs, each once and as the local engine's" in done.stdout
