"""Fingerprints of models, adapters and transcoders: which weights a result belongs to.

A fingerprint is the SHA-256 over the names and SHA-256 hashes of every file that is loaded
(`models.files`): weights, configuration, tokenizer. Hashing gigabytes once is enough, so file
hashes are remembered by (path, size, modification time), each as soon as it is known, in the
user's cache; a hub file's hash is the name of the blob it links to. Large files are hashed several
at a time.

    FingerprintCache(user_cache() / FILE_HASHES).of(source.files)
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from em_circuits.progress import Progress, no_progress
from pivotal_tokens.artefacts import content_key, sha256_file, write_json

FILE_HASHES = "fingerprints.json"
_BLOB = re.compile(r"[0-9a-f]{64}")
_AT_ONCE = 4


def user_cache() -> Path:
    """Folder of what is remembered about files for this user, whatever the root: ``em-circuits``
    beside the hub's own cache, or ``$EM_CIRCUITS_CACHE``."""
    if own := os.environ.get("EM_CIRCUITS_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "em-circuits"


class FingerprintCache:
    """File hashes remembered across runs in a JSON file, or, without one, by this object."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known: dict[str, list] = _read(path)
        self._lock = threading.Lock()

    def of(self, files: Mapping[str, Path], progress: Progress = no_progress) -> str:
        """Fingerprint (64 hex digits) of files under the names they are loaded by.

        Args:
            progress: Called with the megabytes that are hashed, where any are.
        """
        unknown = {path for path in files.values() if self._digest(path.resolve()) is None}
        sizes = {path: path.stat().st_size for path in unknown}
        whole, done = sum(sizes.values()), 0
        total = math.ceil(whole / 1_000_000) if whole >= 1_000_000 else 0
        if total:
            progress("hashing (MB)", 0, total)
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="hash") as threads:
            hashed = zip(sizes, threads.map(self.file, sizes), strict=True)
            for number, (path, _) in enumerate(hashed, start=1):
                done += sizes[path]
                if total:  # the last file alone ends the step: small ones are not a megabyte
                    ended = number == len(sizes)
                    done_mb = total if ended else min(done // 1_000_000, total - 1)
                    progress("hashing (MB)", done_mb, total)
        return content_key([[name, self.file(files[name])] for name in sorted(files)])

    def file(self, path: Path) -> str:
        """SHA-256 (64 hex digits) of one file."""
        target = path.resolve()
        if (known := self._digest(target)) is not None:
            return known
        stat = target.stat()
        digest = sha256_file(target)
        with self._lock:
            self._known[str(target)] = [stat.st_size, stat.st_mtime_ns, digest]
            if self._path is not None:
                # Another command may have written meanwhile; a cache may be read-only.
                self._known = _read(self._path) | self._known
                with contextlib.suppress(OSError):
                    write_json(self._path, self._known)
        return digest

    def _digest(self, target: Path) -> str | None:
        """The hash of a file that need not be read for it."""
        if target.parent.name == "blobs" and _BLOB.fullmatch(target.name):
            return target.name
        stat = target.stat()
        known = self._known.get(str(target))
        return known[2] if known and known[:2] == [stat.st_size, stat.st_mtime_ns] else None


def _read(path: Path | None) -> dict[str, list]:
    if path is None or not path.is_file():
        return {}
    try:
        known = json.loads(path.read_text())
    except ValueError:  # a cache: what cannot be read is made again
        return {}
    return known if isinstance(known, dict) else {}
