"""Fingerprints of models, adapters and transcoders: which weights a result belongs to.

A fingerprint is the SHA-256 over the names and SHA-256 hashes of every file that is loaded
(`models.files`): weights, configuration, tokenizer. Hashing gigabytes once is enough, so file
hashes are remembered by (path, size, modification time); a hub file's hash is the name of the
blob it links to.

    FingerprintCache(path).of(locate("--base", "models/base", kind="model").files)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from pivotal_tokens.artefacts import content_key, sha256_file, write_json

_BLOB = re.compile(r"[0-9a-f]{64}")


class FingerprintCache:
    """File hashes remembered across runs in a JSON file, or, without one, by this object."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known: dict[str, list] = _read(path)

    def of(self, files: Mapping[str, Path]) -> str:
        """Fingerprint (64 hex digits) of files under the names they are loaded by."""
        fingerprint = content_key([[name, self.file(files[name])] for name in sorted(files)])
        self._save()
        return fingerprint

    def file(self, path: Path) -> str:
        """SHA-256 (64 hex digits) of one file."""
        target = path.resolve()
        if target.parent.name == "blobs" and _BLOB.fullmatch(target.name):
            return target.name
        stat = target.stat()
        known = self._known.get(str(target))
        if known and known[:2] == [stat.st_size, stat.st_mtime_ns]:
            return known[2]
        digest = sha256_file(target)
        self._known[str(target)] = [stat.st_size, stat.st_mtime_ns, digest]
        return digest

    def _save(self) -> None:
        if self._path is not None and _read(self._path) != self._known:
            write_json(self._path, self._known)


def _read(path: Path | None) -> dict[str, list]:
    if path is None or not path.is_file():
        return {}
    try:
        known = json.loads(path.read_text())
    except ValueError:  # a cache: what cannot be read is made again
        return {}
    return known if isinstance(known, dict) else {}
