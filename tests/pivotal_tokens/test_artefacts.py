"""Files and directories come whole; what the system refuses is said of what was asked for."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pivotal_tokens.artefacts import atomic_directory, atomic_path, one_at_a_time, write_json


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


def _write_folder(place: Path, barrier: Any) -> str:
    barrier.wait()
    try:
        with one_at_a_time(place.parent):
            if place.is_dir():
                return "found"
            with atomic_directory(place) as temporary:
                time.sleep(0.2)
                (temporary / "data").write_text(str(os.getpid()))
    except OSError as error:
        return str(error)
    return "wrote"


def test_of_processes_that_make_one_directory_one_makes_it_and_the_others_find_it(
    tmp_path: Path,
) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(3, mp_context=context) as pool:
        barrier = manager.Barrier(3)
        said = list(pool.map(_write_folder, [tmp_path / "folder"] * 3, [barrier] * 3))
    assert sorted(said) == ["found", "found", "wrote"]


def test_a_directory_that_is_being_written_is_refused_and_left_alone(tmp_path: Path) -> None:
    place = tmp_path / "folder"
    with atomic_directory(place) as temporary:
        (temporary / "data").write_text("whole")
        with pytest.raises(OSError, match="another process is writing"), atomic_directory(place):
            raise AssertionError("two at once")
    assert (place / "data").read_text() == "whole"


def test_what_an_interrupted_run_left_is_removed(tmp_path: Path) -> None:
    with contextlib.suppress(KeyboardInterrupt), atomic_directory(tmp_path / "folder") as temporary:
        (temporary / "half").mkdir()
        raise KeyboardInterrupt
    with atomic_directory(tmp_path / "folder") as temporary:
        (temporary / "data").write_text("whole")
    assert [each.name for each in (tmp_path / "folder").iterdir()] == ["data"]
