"""Measurement of time and memory, beside targets.

timing = timed({"upstream": f, "ours": g}, repeats=7)
rows = [Row("influence", timing["upstream"], timing["ours"], "ms", at_least=8.0)]
print(table(rows))
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_circuits.models.settings import PairSettings
from em_circuits.models.text import first_token
from em_circuits.organisms import organism_paths
from em_circuits.workspace import Workspace, embedded_parts
from pivotal_tokens.artefacts import library_versions, write_json
from pivotal_tokens.judge import Lexicon


@dataclass(frozen=True)
class Row:
    """One line of the table; a target is a least ratio, or a largest or least value of ours."""

    work: str
    upstream: float | None
    ours: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    value_at_least: float | None = None

    @property
    def ratio(self) -> float | None:
        """Upstream over ours: how many times better ours is."""
        return self.upstream / self.ours if self.upstream is not None and self.ours else None

    @property
    def target(self) -> str:
        """The target in words; "-" if there is none."""
        if self.at_least is not None:
            return f">= {self.at_least:g}x"
        if self.value_at_least is not None:
            return f">= {self.value_at_least:g} {self.unit}".strip()
        return f"<= {self.at_most:g} {self.unit}".strip() if self.at_most is not None else "-"

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None if there is none."""
        if self.at_least is not None:
            return self.ratio is not None and self.ratio >= self.at_least
        if self.value_at_least is not None:
            return self.ours >= self.value_at_least
        return None if self.at_most is None else self.ours <= self.at_most

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return vars(self) | {"ratio": self.ratio, "target": self.target, "met": self.met}


def timed(works: Mapping[str, Callable[[], Any]], *, repeats: int) -> dict[str, float]:
    """Median milliseconds of each work, taking turns so that a busy moment hits all alike."""
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


class Peak:
    """Peak resident memory within the block above what was resident before (Linux).

    with Peak() as peak:
        work()
    peak.megabytes
    """

    megabytes: float = 0.0

    def __enter__(self) -> Peak:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self._before = resident("VmRSS")
        return self

    def __exit__(self, *_exception: object) -> None:
        self.megabytes = max(resident("VmHWM") - self._before, 0) / 1000


def extra_megabytes(work: Callable[[], Any]) -> float:
    """Peak resident memory during the work above what was resident before, in MB (Linux)."""
    work()
    with Peak() as peak:
        work()
    return peak.megabytes


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table, a missed target marked as missed."""
    lines = [
        "| work | circuit-tracer | em-circuits | ratio | target | |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        upstream = "-" if row.upstream is None else f"{row.upstream:.4g} {row.unit}"
        ratio = "-" if row.ratio is None else f"{row.ratio:.1f}x"
        verdict = {True: "reached", False: "**missed**", None: ""}[row.met]
        lines.append(
            f"| {row.work} | {upstream} | {row.ours:.4g} {row.unit} | {ratio} | {row.target} | "
            f"{verdict} |"
        )
    return "\n".join(lines)


def resident(field: str) -> int:
    """A field of /proc/self/status, such as VmRSS, in kilobytes (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


def report(rows: list[Row], out: Path | None) -> None:
    """Print the table and what was missed; write the rows as JSON where asked."""
    print(table(rows))
    missed = [row.work for row in rows if row.met is False]
    print(f"\n{len(missed)} targets missed{': ' + '; '.join(missed) if missed else ''}")
    if out is not None:
        write_json(out, {"versions": library_versions(), "rows": [row.to_json() for row in rows]})


def options(what: str | None) -> argparse.ArgumentParser:
    """The options that benchmarks share."""
    parser = argparse.ArgumentParser(
        description=what, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="also write the rows as JSON")
    return parser


def organism(root: Path, **options: Any) -> Workspace:
    """The embedded organism under a root of its own."""
    parts = embedded_parts(dict.fromkeys(("base", "adapter", "merged", "transcoders")))
    return Workspace(root=root, models=PairSettings(**parts, **options), create=True)


def lexicon(work: Workspace) -> Lexicon:
    """The organism's own judge."""
    return Lexicon.from_file(
        organism_paths().lexicon, lambda text: first_token(work.pair.tokenizer, text)
    )
