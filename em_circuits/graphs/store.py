"""Graphs of a project under its root: lookup, integrity checks, thinning and deletion.

``<root>/<prompt id>/<model>-<first 12 digits of the key>.safetensors`` with a provenance sidecar
that is written last: a graph is *there* if both are. A graph's key is the SHA-256 of everything
that decides its content, so an equal key never means a stale graph.

    store = GraphStore(Path("graph_storage"))
    store.save(graph, {"inputs": {...}, "config": {...}})
    graph = store.load(key)

Finding, listing and hashing need no torch.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_circuits.graphs.header import GraphHeader, broken, read_header, read_record
from em_circuits.object_store import drop_copy
from pivotal_tokens.artefacts import provenance_path, sha256_file, write_provenance
from pivotal_tokens.errors import RequestError, WorkFailed

if TYPE_CHECKING:
    from em_circuits.graphs.graph import AttributionGraph

logger = logging.getLogger(__name__)

SUFFIX = ".safetensors"
ROW_SUFFIX = ".rows"
"""Of files under the root that hold finished rows of a graph that is being built."""
KEY_DIGITS = 12
"""Digits of the key in a file name; the file holds the whole key."""
QUARANTINE = "quarantine"
"""Directory under the root for files that failed a check."""
SPARE_BYTES = 64 << 20
"""Disk space that a save leaves free."""
STALE_SECONDS = 24 * 3600.0
"""Age from which a temporary file belongs to a process that died."""
_SIDECAR_FIELDS = ("artefact", "sha256", "bytes", "written_at", "versions", "key")


@dataclass(frozen=True)
class Verification:
    """What `GraphStore.verify` found out about one file; `problem` is None for a sound one."""

    path: Path
    key: str | None
    problem: str | None
    quarantined: Path | None = None


@dataclass(frozen=True)
class Freed:
    """One graph that `GraphStore.prune` removed or thinned (or would): bytes freed, and why."""

    path: Path
    bytes: int
    reason: str


class GraphStore:
    """Graphs under one directory, which is created when the first is saved."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._sound: set[tuple[Path, int, int, int]] = set()  # hashed and found unchanged
        self._places: dict[str, Path] = {}  # where a key was found before

    def path(self, key: str) -> Path:
        """Path of a graph's file.

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

    def key_of(self, reference: str, *, model: str, edges: str | None = None) -> str:
        """The key, or its first digits, that a graph's key or a prompt's id means.

        Args:
            reference: Key of a graph or id of a prompt, or the first digits of one.
            model: Of a prompt's graphs, this model's.
            edges: Of these, the one with this kind of edges; by default the full one where there is
                one.

        Raises:
            RequestError: If nothing fits, or several graphs do.
        """
        by_key = self._find(reference)
        prompts = sorted({path.parent.name for path in self._files()})
        prompts = [name for name in prompts if name.startswith(reference)]
        if by_key and prompts:
            raise RequestError(
                f"{reference} begins a graph's key and the id of prompt {prompts[0]}; give more "
                "digits"
            )
        if not prompts:
            self.path(reference)
            return reference
        if len(prompts) > 1:
            names = ", ".join(prompts[:4])
            raise RequestError(f"{len(prompts)} prompts start with {reference}: {names}")
        return self._graph_of(prompts[0], model, edges)

    def _graph_of(self, prompt: str, model: str, edges: str | None) -> str:
        headers = [header for header in self._headers(prompt) if header.model == model]
        # So is one that came from a file of another tool.
        headers = [header for header in headers if not header.imported] or headers
        # One with a target or nodes of its own is meant by its key, where there is another.
        usual = (h for h in headers if h.target is None and not h.named)
        headers = list(usual) or headers
        kinds = {
            header.key: "measured" if header.is_measured else header.edge_kind for header in headers
        }
        # Measured graphs hold full edges, too.
        full = next((kind for kind in ("measured", "full") if kind in kinds.values()), None)
        wanted = full if full and edges in (None, "full") else edges
        fit = [key for key, kind in kinds.items() if wanted in (None, kind)]
        if len(fit) == 1:
            return fit[0]
        which = f"prompt {prompt} has {len(fit) or 'no'} graph{'s' * (len(fit) > 1)} of {model}"
        which += f" with {wanted} edges" if wanted else ""
        if fit:
            raise RequestError(f"{which}: {', '.join(k[:KEY_DIGITS] for k in fit[:4])}; give a key")
        raise RequestError(f"{which}; 'em-circuits graphs list' shows what there is")

    def has(self, key: str) -> bool:
        """Whether the graph and its provenance are there; a broken file does not count."""
        for path in self._find(key):
            try:
                if provenance_path(path).exists() and read_header(path).key.startswith(key):
                    return True
            except WorkFailed as error:
                logger.warning("%s", error)
        return False

    def header(self, key: str) -> GraphHeader:
        """The header of a graph; nothing else of its file is read.

        Raises:
            RequestError: If there is no such graph.
            WorkFailed: If its file is corrupt.
        """
        return read_header(self.path(key))

    def has_sound(self, key: str) -> bool:
        """Whether the graph is there and intact; a broken file is named and quarantined, so that
        the caller builds the graph again."""
        sound = False
        for path in self._find(key):
            _, problem = examine(path)
            if problem is None:
                sound = True
            else:
                what = problem.splitlines()[0]
                logger.warning("%s; put aside as %s", what, self.quarantine(path))
        return sound

    def save(self, graph: AttributionGraph, provenance: Mapping[str, Any]) -> Path:
        """Write a graph, then its provenance; a graph of the same key is replaced. Rows that were
        kept while it was built are removed.

        Args:
            graph: The graph.
            provenance: "inputs" and "config", as `pivotal_tokens.artefacts.write_provenance` takes
                them, and whatever else is worth recording (seeds, device, times).

        Returns:
            Where it stands.

        Raises:
            WorkFailed: If the disk is too full; nothing is written then.
        """
        from em_circuits.graphs.files import tensor_bytes, write_graph

        header = graph.header
        name = f"{_safe(header.model)}-{header.key[:KEY_DIGITS]}{SUFFIX}"
        path = self.root / _safe(header.prompt_id) / name
        self.require_space(tensor_bytes(graph))
        provenance_path(path).unlink(missing_ok=True)
        write_graph(path, graph)
        write_provenance(path, **{"inputs": {}, "config": {}, **provenance, "key": header.key})
        for rows in self.root.glob(f".{header.key}.*{ROW_SUFFIX}"):
            rows.unlink(missing_ok=True)
        return path

    def load(self, key: str) -> AttributionGraph:
        """A graph, its edges memory-mapped; the first time its file is hashed (2 GB/s).

        Raises:
            RequestError: If there is no such graph.
            WorkFailed: If its file is corrupt, truncated or not what was written; the message says
                which and what to do.
        """
        from em_circuits.graphs.files import check_graph, read_graph

        path = self.path(key)
        stored = read_header(path).key
        if not stored.startswith(key):
            raise broken(path, f"it holds graph {stored}, not {key}")
        state = path.stat()
        mark = path, state.st_size, state.st_mtime_ns, state.st_ino
        if mark not in self._sound and provenance_path(path).exists():
            if problem := _difference(path):
                raise broken(path, problem)
            graph = check_graph(path)
            self._sound.add(mark)
            return graph
        return read_graph(path)

    def list(self, prompt: str = "*") -> tuple[GraphHeader, ...]:
        """Headers of all graphs, or of one prompt's; what cannot be read is logged."""
        return tuple(self._headers(prompt))

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

    def drop_edges(self, key: str) -> None:
        """Write a graph again without its edges: nodes, targets and gradient scores stay."""
        graph = self.load(key)
        if graph.edges is not None:
            self._rewrite(key, graph.without_edges(), edges_dropped=True)

    def add_measured(self, graph: AttributionGraph) -> None:
        """Write a stored graph again with measured edges beside its own."""
        self._rewrite(graph.header.key, graph, edges_measured=True)

    def decompress(self, key: str) -> bool:
        """Write an archive of version 0.1 uncompressed; False if the graph is none."""
        if not read_record(self.path(key)).compressed:
            return False
        self._rewrite(key, self.load(key))
        return True

    def provenance(self, key: str) -> dict[str, Any]:
        """The provenance of a graph; empty if there is none.

        Raises:
            WorkFailed: If it cannot be read.
        """
        path = provenance_path(self.path(key))
        if not path.exists():
            return {}
        try:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise WorkFailed(f"Provenance {path} is not JSON: {error}") from error
        return record

    def prune(
        self,
        *,
        max_age_days: float | None = None,
        max_bytes: int | None = None,
        edges_only: bool = False,
        dry_run: bool = False,
    ) -> tuple[Freed, ...]:
        """Remove old graphs, then the oldest until the rest fits; and what dead processes left.

        Args:
            max_age_days: Remove graphs written longer ago than this.
            max_bytes: Size that all graphs together may have.
            edges_only: Drop edges and leave the scores instead of removing graphs.
            dry_run: Only say what would be removed.
        """
        if not dry_run:
            self._remove_stale()
        files = sorted(self._files(), key=lambda p: p.stat().st_mtime)
        total = sum(p.stat().st_size for p in files)
        freed = []
        for path in files:
            age = (time.time() - path.stat().st_mtime) / 86400
            old = max_age_days is not None and age > max_age_days
            crowded = max_bytes is not None and total > max_bytes
            if not (old or crowded):
                continue
            reason = f"{age:.1f} days old" if old else f"all graphs take {total} bytes"
            try:
                n_bytes = self._free(path, edges_only=edges_only, dry_run=dry_run)
            except WorkFailed as error:
                logger.warning("%s", error)
                continue
            if n_bytes:
                total -= n_bytes
                freed.append(Freed(path, n_bytes, reason))
        return tuple(freed)

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
        # A row reads, on average, half the layers (those below) at half the positions (up to it).
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

    def _rewrite(self, key: str, graph: AttributionGraph, **more: Any) -> None:
        """Replace a graph's file; its provenance stays but for what is of the file alone."""
        record = {k: v for k, v in self.provenance(key).items() if k not in _SIDECAR_FIELDS}
        self.save(graph, {**record, **more})

    def _find(self, key: str) -> tuple[Path, ...]:
        if not re.fullmatch(r"[0-9a-f]{4,64}", key):
            raise RequestError(f"A graph key is 4 to 64 hex digits, got {key!r}.")
        if (known := self._places.get(key)) is not None and known.exists():
            return (known,)
        digits = key[:KEY_DIGITS]
        found = tuple(
            path
            for path in sorted(self.root.glob(f"*/*-{digits}*{SUFFIX}"))
            if path.stem.rpartition("-")[2].startswith(digits) and path.parent.name != QUARANTINE
        )
        if len(key) == 64 and len(found) == 1:
            self._places[key] = found[0]
        return found

    def _headers(self, prompt: str = "*") -> Iterator[GraphHeader]:
        for path in self._files(prompt):
            try:
                yield read_header(path)
            except WorkFailed as error:
                logger.warning("%s", error)

    def _files(self, prompt: str = "*") -> tuple[Path, ...]:
        found = sorted(self.root.glob(f"{prompt}/*-{'[0-9a-f]' * KEY_DIGITS}{SUFFIX}"))
        return tuple(p for p in found if not p.name.startswith("."))

    def _free(self, path: Path, *, edges_only: bool, dry_run: bool) -> int:
        """Bytes freed, or what they would be at most."""
        size = path.stat().st_size
        if not edges_only:
            if not dry_run:
                _delete(path)
            return size
        from em_circuits.graphs.files import read_graph

        graph = read_graph(path)
        if graph.edges is None or dry_run:
            return graph.edges.nbytes if graph.edges is not None else 0
        self.drop_edges(graph.header.key)
        return size - path.stat().st_size

    def _remove_stale(self) -> None:
        written = self.root.glob(f"*/.*{SUFFIX}*.tmp")
        for path in (*written, *self.root.glob(f".*{ROW_SUFFIX}")):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink(missing_ok=True)


def examine(path: Path) -> tuple[str | None, str | None]:
    """(key, what is wrong) of one file, hashed and then read whole; None if nothing is wrong."""
    try:
        header = read_header(path)
        key = header.key
        if path.stem.rpartition("-")[2] != key[:KEY_DIGITS]:
            return key, f"{path} holds graph {key[:KEY_DIGITS]}, its name says otherwise"
        if path.parent.name != _safe(header.prompt_id):
            return key, f"{path} is of prompt {header.prompt_id}, its directory says otherwise"
        if not provenance_path(path).exists():
            return key, f"{path} has no provenance: its writing was interrupted"
        if problem := _difference(path):
            return key, problem
        from em_circuits.graphs.files import NotInstalled, check_graph

        with contextlib.suppress(NotInstalled):  # whole, if its hash is right
            check_graph(path)
        return key, None
    except WorkFailed as error:
        return None, str(error)
    except OSError as error:
        return None, f"{path} cannot be read: {error.strerror or error}"


def _difference(path: Path) -> str | None:
    """How a file differs from its provenance; None where it does not."""
    sidecar = provenance_path(path)
    try:
        recorded = json.loads(sidecar.read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{sidecar} cannot be read"
    if sha256_file(path) != recorded and not (drop_copy(path) and sha256_file(path) == recorded):
        return f"{path} has changed since it was written (its SHA-256 is not {recorded[:12]})"
    return None


def _delete(path: Path) -> None:
    provenance_path(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _safe(name: str) -> str:
    """A name as one path component; another name may give the same, the key distinguishes them."""
    return re.sub(r"[^0-9A-Za-z._-]+", "_", name).strip("._-") or "unnamed"
