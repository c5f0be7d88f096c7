"""A few random damages of each kind of file; `make test-faults` makes a thousand of each."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from damages import EXPORTS, READ_STORE, call, damage, fill, targets, watch

from em_circuits.cli.app import run

KINDS = ("graph", "sidecar", "database", "tokenizer", "adapter", *EXPORTS)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sound")
    fill(root)
    return root


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_named_or_read_as_it_was(sound: Path, kind: str) -> None:
    target, commands = targets(sound)[kind]
    before = target.read_bytes()
    tally = watch(sound, target, commands, times=20 if kind in KINDS[:3] else 3, seed=1)
    assert not tally.faults
    assert tally.named
    assert target.read_bytes() == before


def test_a_damage_changes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    changed = 0
    for number in range(50):
        path.write_bytes(bytes(range(256)) * 20)
        damage(path, random.Random(number))
        changed += path.read_bytes() != bytes(range(256)) * 20
    assert changed > 40


def test_what_says_another_thing_is_a_fault(sound: Path) -> None:
    """The watch itself: commands whose output depends on the file are not taken for harmless."""
    target = sound / "note.txt"
    target.write_bytes(b"some bytes" * 100)

    def prints(_root: Path) -> list[tuple[int, str, str]]:
        return [(0, target.read_bytes().hex(), "")]

    assert watch(sound, target, prints, times=5, seed=0).faults


def test_every_reading_command_answers_on_the_sound_project(
    sound: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in READ_STORE:
        status, out, err = call(sound, command)
        assert (status, err) == (0, "") and out
    assert run(["--root", str(sound), "labels", "agreement"]) == 0
    capsys.readouterr()
