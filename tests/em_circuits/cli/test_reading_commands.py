"""Commands that only read: on a full disk and where nothing can be written they write no byte."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from damages import GRAPH, call, fill
from starlette.testclient import TestClient
from test_options import _commands

from em_circuits.cli.app import app
from em_circuits.models.settings import PairSettings
from em_circuits.viewer import Sessions, ViewerSettings, create_app
from em_circuits.workspace import Workspace
from pivotal_tokens.store import Store, default_url, dialect

READING = {
    "status": "--json",
    "prompts list": "--json",
    "labels agreement": "--resamples 0 --json",
    "labels conflicts": "--json",
    "labels divergence": "--json",
    "labels export": "",
    "labels show": "PROMPT --json",
    "judge show": "--json",
    "graphs list": "--json",
    "graphs show": "GRAPH --json",
    "graphs verify": "--json",
    "graphs prune": "GRAPH --json",
    "graphs scores": "GRAPH --json",
    "verify": "--json",
    "influence": "GRAPH --json",
    "lora show": "ADAPTER --json",
}
"""Each command that reads what is under a root, with its arguments."""
OTHERS = {
    "transcoders train",
    *("demo", "doctor", "label", "review", "serve", "shell"),
    *("prompts add", "prompts find", "prompts generate", "prompts import", "prompts preview"),
    *("labels import", "labels plots", "export", "import"),
    *("judge panel", "judge report", "judge reset"),
    *("graphs archive", "graphs build", "graphs circuit", "graphs edge", "graphs export"),
    *("graphs import", "graphs measure", "graphs paths", "graphs prune-store"),
    *("features aggregate", "features diff", "features explain", "features mediate"),
    *("features rank", "lora geometry", "transcoders check", "transcoders convert"),
    *("steer rejudge", "steer run", "steer scan", "steer sweep", "steer transfer"),
    *("steer validate", "validity", "evaluate", "audit calibrate", "audit run"),
    *("audit serve-mcp", "responses features", "responses import", "directions", "probe"),
    *("organism evaluate", "organism fetch", "organism train"),
}
"""What writes or changes something, loads models, needs graphs of a prompt, or waits."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("read")
    fill(root)
    return root


def test_every_command_is_said_to_read_or_not() -> None:
    leaves = {
        " ".join(words) for words, one in _commands(app, ()) if not isinstance(one, click.Group)
    }
    assert leaves == READING.keys() | OTHERS and not READING.keys() & OTHERS


def listing(root: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder, its size and the time of its last change."""
    stats = ((path, path.stat()) for path in root.rglob("*"))
    return {str(path): (stat.st_size, stat.st_mtime_ns) for path, stat in stats}


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file can grow: whoever writes a byte gets an `OSError`, root too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("read_only", [False, True], ids=["full disk", "read-only mount"])
def test_reading_commands_write_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, read_only: bool
) -> None:
    with Store.open(default_url(root)) as store:
        prompt = store.prompts.ids()[0]
    given = {"GRAPH": GRAPH.header.key, "PROMPT": prompt, "ADAPTER": f"{root}/lifelike-adapter"}
    lines = [f"{name} {rest}" for name, rest in READING.items()]
    for word, value in given.items():
        lines = [line.replace(word, value) for line in lines]
    expected = {line: call(root, line) for line in lines}
    assert not {line: said for line, said in expected.items() if said[0]}
    before = listing(root)
    if read_only:
        monkeypatch.setattr(dialect.os, "access", lambda _path, mode: not mode & os.W_OK)
    with full_disk():
        found = {line: call(root, line) for line in lines}
    assert found == expected
    assert listing(root) == before


def test_a_viewer_that_reads_writes_nothing(root: Path) -> None:
    models = PairSettings(base="b", adapter="a", transcoders="t")
    with Workspace(root=root, models=models, keeps=False) as work:
        sessions, settings = Sessions("ada"), ViewerSettings(read_only=True)
        client = TestClient(create_app(work, settings, sessions), base_url="http://127.0.0.1:8765")
        before = listing(root)
        with full_disk():
            assert client.get(f"/?token={sessions.new_link()}").status_code == 200
            prompt = work.store.prompts.ids()[0]
            for page in ("/prompts", "/review", "/graphs", "/reports", f"/prompt/{prompt}"):
                assert client.get(page).status_code == 200, page
        assert listing(root) == before
