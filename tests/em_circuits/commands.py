"""Commands of em-circuits as somebody types them over a root, and what they print.

root = root_after(tmp_path_factory, ["label", "--n", "4", "--no-graphs"])
ask(capsys, root, "status")["prompts"], printed(capsys, root, "status", "zz", status=2)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from em_circuits.cli.app import run
from pivotal_tokens.schema import Prompt
from pivotal_tokens.store import Store, default_url


def root_after(tmp_path_factory: pytest.TempPathFactory, *commands: Sequence[str]) -> Path:
    """A new root over which some commands were run."""
    root = tmp_path_factory.mktemp("root")
    for words in commands:
        assert run(["--root", str(root), *words]) == 0
    return root


def prompts_of(root: Path) -> tuple[Prompt, ...]:
    """The prompts in a root's store."""
    with Store.open(default_url(root)) as store:
        return store.prompts.all()


def finished(capsys: pytest.CaptureFixture[str], root: Path, *words: str) -> tuple[int, str, str]:
    """A command's exit status, and what it wrote to standard output and standard error."""
    capsys.readouterr()
    status = run(["--root", str(root), *words])
    return status, *capsys.readouterr()


def printed(capsys: pytest.CaptureFixture[str], root: Path, *words: str, status: int = 0) -> str:
    """What a command prints; of one that fails, what it says on standard error."""
    found, out, err = finished(capsys, root, *words)
    assert found == status, err
    return err if status else out


def ask(capsys: pytest.CaptureFixture[str], root: Path, *words: str) -> Any:
    """A command's JSON."""
    return json.loads(printed(capsys, root, *words, "--json"))
