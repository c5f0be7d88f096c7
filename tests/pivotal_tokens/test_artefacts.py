"""What the system refuses is said of the file that was asked for, not of a temporary one."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from pivotal_tokens.artefacts import atomic_directory, atomic_path, write_json


def test_a_read_only_place_is_named_by_its_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(prefix: str, suffix: str, dir: Path) -> tuple[int, str]:
        raise OSError(errno.EROFS, "Read-only file system", f"{dir}/{prefix}abc{suffix}")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(OSError, match="Read-only") as raised:
        write_json(tmp_path / "report.json", {})
    assert raised.value.filename == str(tmp_path / "report.json")
    assert raised.value.errno == errno.EROFS


def test_a_full_disk_is_named_by_the_target_too(tmp_path: Path) -> None:
    with pytest.raises(OSError) as raised, atomic_path(tmp_path / "page.html"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert raised.value.filename == str(tmp_path / "page.html")
    with pytest.raises(OSError) as raised, atomic_directory(tmp_path / "folder"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert raised.value.filename == str(tmp_path / "folder")
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".page")]


def test_an_error_about_another_file_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised, atomic_path(tmp_path / "page.html"):
        (tmp_path / "other").read_bytes()
    assert raised.value.filename == str(tmp_path / "other")
    with pytest.raises(OSError, match="no number"), atomic_path(tmp_path / "page.html"):
        raise OSError("no number")
