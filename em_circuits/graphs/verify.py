"""Is a stored graph still what was written?

A file is compared with the SHA-256 in its provenance, which was written after it.

    key, problem = examine(path)  # problem None: sound
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from em_circuits.graphs.header import read_header
from pivotal_tokens.artefacts import provenance_path, sha256_file
from pivotal_tokens.errors import WorkFailed

KEY_DIGITS = 12
"""Digits of the key in a file name; the whole key stands in the file."""


@dataclass(frozen=True)
class Verification:
    """What `GraphStore.verify` found out about one file; `problem` is None for a sound one."""

    path: Path
    key: str | None
    problem: str | None
    quarantined: Path | None = None


def examine(path: Path) -> tuple[str | None, str | None]:
    """(key, what is wrong) of one file, read whole."""
    from em_circuits.graphs.files import read_graph

    # Hashed before it is read whole: what was compressed is not to be trusted blindly.
    try:
        key = read_header(path).key
        if path.stem.rpartition("-")[2] != key[:KEY_DIGITS]:
            return key, f"{path} holds graph {key[:KEY_DIGITS]}, its name says otherwise"
        if not provenance_path(path).exists():
            return key, f"{path} has no provenance: its writing was interrupted"
        problem = difference(path)
        if problem is None:
            read_graph(path)
        return key, problem
    except WorkFailed as error:
        return None, str(error)


def difference(path: Path) -> str | None:
    """How a file differs from its provenance; None where it does not."""
    sidecar = provenance_path(path)
    try:
        recorded = json.loads(sidecar.read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{sidecar} cannot be read"
    if sha256_file(path) != recorded:
        return f"{path} has changed since it was written (its SHA-256 is not {recorded[:12]})"
    return None
