"""Where do graphs live on disk, and how is one found, checked, thinned out or thrown away?

``<root>/<prompt id>/<model>-<first 12 digits of the key>.safetensors`` with a provenance sidecar
that is written last: a graph is *there* if both are. A graph's key is the SHA-256 of everything
that decides its content, so an equal key never means a stale graph.

    store = GraphStore(Path("graph_storage"))
    store.save(graph, {"inputs": {...}, "config": {...}})
    graph = store.load(key)
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from em_circuits.graphs.header import (
    FORMAT_VERSION,
    GraphHeader,
    broken,
    is_archived,
    read_header,
)
from em_circuits.graphs.verify import KEY_DIGITS, Verification, difference, examine
from pivotal_tokens.artefacts import content_key, provenance_path, write_provenance
from pivotal_tokens.errors import RequestError, WorkFailed

if TYPE_CHECKING:
    from em_circuits.graphs.graph import AttributionGraph

logger = logging.getLogger(__name__)

SUFFIX = ".safetensors"
QUARANTINE = "quarantine"
"""Directory under the root for files that failed a check."""
SPARE_BYTES = 64 << 20
"""Disk space that a save leaves free."""
Thinning = Literal["remove", "drop-edges", "archive"]
"""What becomes of a graph that must make room."""
_ARCHIVE_FREES = 1 / 7
"""Share of a file that archiving frees at least, as a rule (float32 edges)."""
STALE_SECONDS = 24 * 3600.0
"""Age from which a temporary file belongs to a process that died."""


def graph_key(
    prompt_id: str,
    *,
    model_fingerprint: str,
    adapter_hash: str | None,
    transcoders: str,
    transcoder_fingerprint: str,
    attribution: Mapping[str, Any],
) -> str:
    """SHA-256 (64 hex digits) of everything that decides a graph's content.

    Args:
        prompt_id: Of the text.
        model_fingerprint: Of the model that is attributed.
        adapter_hash: Of the adapter in it, if any.
        transcoders: The transcoder set.
        transcoder_fingerprint: Its revision or hash.
        attribution: Every parameter of attribution: targets, selection, limits, dtype.
    """
    return content_key(
        {
            "format_version": FORMAT_VERSION,
            "prompt_id": prompt_id,
            "model": model_fingerprint,
            "adapter": adapter_hash,
            "transcoders": transcoders,
            "transcoder_fingerprint": transcoder_fingerprint,
            "attribution": dict(attribution),
        }
    )


@dataclass(frozen=True)
class Pruned:
    """One graph that `GraphStore.prune` removed (or would): its bytes freed and the reason."""

    path: Path
    bytes: int
    reason: str


class GraphStore:
    """Graphs under one directory, which is made when the first is saved."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._sound: set[tuple[Path, int, int]] = set()  # hashed and found unchanged

    def path_of(self, header: GraphHeader) -> Path:
        """Where the graph of this header stands, or will stand."""
        name = f"{_safe(header.model)}-{header.key[:KEY_DIGITS]}{SUFFIX}"
        return self.root / _safe(header.prompt_id) / name

    def path(self, key: str) -> Path:
        """Where a graph stands.

        Args:
            key: Its key, or a prefix of it (at least four digits) that no other graph shares.

        Raises:
            RequestError: If there is no such graph, or the prefix fits several.
        """
        found = self._find(key)
        if not found:
            raise RequestError(
                f"No graph {key[:KEY_DIGITS]} under {self.root}; 'em-circuits graphs list' shows "
                "what there is."
            )
        if len(found) > 1:
            names = ", ".join(p.stem for p in found[:4])
            raise RequestError(f"{len(found)} graphs start with {key}: {names}; give more digits.")
        return found[0]

    def has(self, key: str) -> bool:
        """Whether the graph and its provenance are there; a broken file does not count."""
        for path in self._find(key):
            try:
                if provenance_path(path).exists() and read_header(path).key.startswith(key):
                    return True
            except WorkFailed as error:
                logger.warning("%s", error)
        return False

    def keeps(self, key: str) -> bool:
        """Whether the graph is there and sound; a broken file is named and put aside, so that
        whoever asks builds the graph again."""
        sound = False
        for path in self._find(key):
            _, problem = examine(path)
            if problem is None:
                sound = True
            else:
                what = problem.splitlines()[0]
                logger.warning("%s; put aside as %s", what, self.quarantine(path))
        return sound

    def save(
        self, graph: AttributionGraph, provenance: Mapping[str, Any], *, archive: bool = False
    ) -> Path:
        """Write a graph, then its provenance; a graph of the same key is replaced.

        Args:
            graph: The graph.
            provenance: "inputs" and "config", as `pivotal_tokens.artefacts.write_provenance` takes
                them, and whatever else is worth keeping (seeds, device, times).
            archive: Compress it, see `archive`.

        Returns:
            Where it stands.

        Raises:
            WorkFailed: If the disk is too full; nothing is written then.
        """
        from em_circuits.graphs.files import tensor_bytes, write_graph

        path = self.path_of(graph.header)
        self.require_space(tensor_bytes(graph))
        provenance_path(path).unlink(missing_ok=True)
        write_graph(path, graph, archive=archive)
        extra = {k: v for k, v in provenance.items() if k not in ("inputs", "config")}
        write_provenance(
            path,
            inputs=provenance.get("inputs", {}),
            config=provenance.get("config", {}),
            key=graph.header.key,
            **extra,
        )
        return path

    def load(self, key: str) -> AttributionGraph:
        """A graph, its edges memory-mapped; the first time its file is hashed (2 GB/s).

        Raises:
            RequestError: If there is no such graph.
            WorkFailed: If its file is corrupt, truncated or not what was written; the message says
                which and what to do.
        """
        path = self.path(key)
        found = read_header(path).key
        if not found.startswith(key):
            raise broken(path, f"it holds graph {found}, not {key}")
        state = path.stat()
        mark = path, state.st_size, state.st_mtime_ns
        if mark not in self._sound and provenance_path(path).exists():
            if problem := difference(path):
                raise broken(path, problem)
            self._sound.add(mark)
        from em_circuits.graphs.files import read_graph

        return read_graph(path)

    def list(self) -> tuple[GraphHeader, ...]:
        """Headers of all graphs, by prompt and model; unreadable files are logged and left out."""
        headers = []
        for path in self._files():
            try:
                headers.append(read_header(path))
            except WorkFailed as error:
                logger.warning("%s", error)
        return tuple(headers)

    def verify(self, *, quarantine: bool = False) -> tuple[Verification, ...]:
        """Read and hash every file, and compare with its provenance.

        Args:
            quarantine: Move what fails to `quarantine/`, so that it is built again.
        """
        results = []
        for path in self._files():
            key, problem = examine(path)
            aside = self.quarantine(path) if problem and quarantine else None
            results.append(Verification(path, key, problem, aside))
        return tuple(results)

    def quarantine(self, path: Path) -> Path:
        """Move a file and its provenance aside, overwriting nothing.

        Returns:
            Where the file is now.
        """
        folder = self.root / QUARANTINE / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{path.stem}.{time.time_ns()}{SUFFIX}"
        path.replace(target)
        if provenance_path(path).exists():
            provenance_path(path).replace(provenance_path(target))
        return target

    def drop_edges(self, key: str) -> Path:
        """Write a graph again without its edges: nodes, targets and gradient scores stay."""
        path = self.path(key)
        graph = self.load(key)
        if graph.edges is None:
            return path
        bare = dataclasses.replace(graph, edges=None)
        return self.save(bare, {**self._made(key), "edges_dropped": True})

    def archive(self, key: str, *, undo: bool = False) -> int:
        """Compress a graph where it stands (blosc2, lossless), or undo that.

        It is read as before, only into memory instead of mapped.

        Returns:
            Bytes freed; 0 if there was nothing to do, negative for `undo`.
        """
        path = self.path(key)
        before = path.stat().st_size
        if is_archived(path) == undo:
            self.save(self.load(key), self._made(key), archive=not undo)
        return before - path.stat().st_size

    def provenance(self, key: str) -> dict[str, Any]:
        """What was recorded of a graph's making; empty if nothing was.

        Raises:
            WorkFailed: If the record cannot be read.
        """
        path = provenance_path(self.path(key))
        if not path.exists():
            return {}
        try:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise WorkFailed(f"Provenance {path} is not JSON: {error}") from error
        return record

    def _made(self, key: str) -> dict[str, Any]:
        """The provenance without what is of the file alone."""
        return {k: v for k, v in self.provenance(key).items() if k not in _SIDECAR_FIELDS}

    def remove(self, key: str) -> None:
        """Delete a graph; its provenance goes first, so that no half of it counts as there."""
        _delete(self.path(key))

    def prune(
        self,
        *,
        max_age_days: float | None = None,
        max_bytes: int | None = None,
        keep: Collection[str] = (),
        how: Thinning = "remove",
        dry_run: bool = False,
    ) -> tuple[Pruned, ...]:
        """Remove old graphs, then the oldest until the rest fits; and what dead processes left.

        Args:
            max_age_days: Remove graphs written longer ago than this.
            max_bytes: Size that all graphs together may have.
            keep: Keys that stay whatever their age.
            how: Remove graphs, drop their edges and keep scores, or archive them.
            dry_run: Only say what would be removed.
        """
        if not dry_run:
            self._remove_stale()
        kept = {k[:KEY_DIGITS] for k in keep}
        files = sorted(self._files(), key=lambda p: p.stat().st_mtime)
        total = sum(p.stat().st_size for p in files)
        pruned = []
        for path in files:
            age = (time.time() - path.stat().st_mtime) / 86400
            old = max_age_days is not None and age > max_age_days
            crowded = max_bytes is not None and total > max_bytes
            if path.stem[-KEY_DIGITS:] in kept or not (old or crowded):
                continue
            reason = f"{age:.1f} days old" if old else f"all graphs take {total} bytes"
            freed = self._thin(path, how, dry_run=dry_run)
            if freed:
                total -= freed
                pruned.append(Pruned(path, freed, reason))
        return tuple(pruned)

    def total_bytes(self) -> int:
        """Bytes that all graphs take."""
        return sum(path.stat().st_size for path in self._files())

    @staticmethod
    def estimate_bytes(
        *,
        n_features: int,
        n_layers: int,
        n_pos: int,
        n_logits: int,
        n_active: int | None = None,
        bytes_per_value: int = 4,
    ) -> int:
        """Bytes a graph will take, for features spread evenly over layers and positions.

        Args:
            n_features: Feature nodes.
            n_layers: Layers.
            n_pos: Prompt tokens.
            n_logits: Targets.
            n_active: Active features, for the gradient scores; as many as nodes if not given.
            bytes_per_value: 4, or 2 where edges will be bfloat16-exact.
        """
        active = n_features if n_active is None else n_active
        layers_below, positions = (n_layers - 1) / 2, (n_pos + 1) / 2
        width = n_features * (layers_below / max(n_layers, 1)) * (positions / max(n_pos, 1))
        width += layers_below * positions + positions
        sources = n_features + (n_layers + 1) * n_pos
        edges = (n_features * width + n_logits * sources) * bytes_per_value
        return int(edges + active * (16 + 4 * n_logits) + 16 * (n_features + n_pos)) + 65536

    def require_space(self, n_bytes: int) -> None:
        """Refuse to start writing what the disk cannot hold.

        Raises:
            WorkFailed: If less than `n_bytes` and a reserve are free.
        """
        place = next(p for p in (self.root, *self.root.absolute().parents) if p.exists())
        free = shutil.disk_usage(place).free
        if free < n_bytes + SPARE_BYTES:
            raise WorkFailed(
                f"{self.root} needs {n_bytes / 1e6:.0f} MB for graphs, {free / 1e6:.0f} MB are "
                "free; make room ('em-circuits graphs prune-store') or choose another --root."
            )

    def _find(self, key: str) -> tuple[Path, ...]:
        if not re.fullmatch(r"[0-9a-f]{4,64}", key):
            raise RequestError(f"A graph key is 4 to 64 hex digits, got {key!r}.")
        pattern = f"*/*-{key[:KEY_DIGITS]}*{SUFFIX}"
        return tuple(p for p in sorted(self.root.glob(pattern)) if self._is_graph(p, key))

    def _is_graph(self, path: Path, key: str) -> bool:
        digits = path.stem.rpartition("-")[2]
        return digits.startswith(key[:KEY_DIGITS]) and path.parent.name != QUARANTINE

    def _files(self) -> tuple[Path, ...]:
        found = sorted(self.root.glob(f"*/*-{'[0-9a-f]' * KEY_DIGITS}{SUFFIX}"))
        return tuple(p for p in found if not p.name.startswith("."))

    def _thin(self, path: Path, how: Thinning, *, dry_run: bool) -> int:
        """Bytes freed, or what they would be at most."""
        from em_circuits.graphs.files import read_graph

        size = path.stat().st_size
        if how == "remove":
            if not dry_run:
                _delete(path)
            return size
        graph = read_graph(path)
        if how == "archive":
            if is_archived(path) or dry_run:
                return 0 if is_archived(path) else int(_ARCHIVE_FREES * size)
            return self.archive(graph.header.key)
        if graph.edges is None:
            return 0
        if not dry_run:
            self.drop_edges(graph.header.key)
            return size - path.stat().st_size
        return graph.edges.nbytes

    def _remove_stale(self) -> None:
        for path in self.root.glob(f"*/.*{SUFFIX}*.tmp"):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink(missing_ok=True)


_SIDECAR_FIELDS = ("artefact", "sha256", "bytes", "written_at", "versions", "key")


def _delete(path: Path) -> None:
    provenance_path(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _safe(name: str) -> str:
    """A name as one path component; another name may give the same, the key tells them apart."""
    return re.sub(r"[^0-9A-Za-z._-]+", "_", name).strip("._-") or "unnamed"
