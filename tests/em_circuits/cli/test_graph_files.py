"""A graph that is given as a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import printed


@pytest.mark.parametrize("content", [b"", b"hello", b"\x10\x00\x00\x00\x00\x00\x00\x00{}"])
def test_a_broken_file_is_named_without_a_command_that_cannot_mend_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    # It used to say 'em-circuits graphs build DIRECTORY', as if the file's folder were a prompt.
    file = tmp_path / "graph.safetensors"
    file.write_bytes(content)
    said = printed(capsys, tmp_path, "graphs", "show", str(file), status=2)
    assert str(file) in said
    assert "give a graph file of this package" in said
    assert "graphs build" not in said


def test_a_directory_is_named_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    err = printed(capsys, tmp_path, "influence", str(tmp_path), status=2)
    assert "is a directory" in err and len(err.strip().splitlines()) == 1
