"""Measurement of time and memory beside targets, and the command line of a benchmark.

timing = timed({"upstream": f, "ours": g}, repeats=7)
rows = [Row("influence", timing["upstream"], timing["ours"], "ms", at_least=8.0)]
benchmark(Plan, measure, __doc__)   # an option per field of the plan, then the table of its rows
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from em_circuits.cli.options import Options, options
from em_circuits.models.settings import PairSettings
from em_circuits.models.text import first_token
from em_circuits.organisms import organism_paths
from em_circuits.workspace import Workspace, embedded_parts
from pivotal_tokens.artefacts import library_versions, write_json
from pivotal_tokens.judge import Lexicon

Plan = TypeVar("Plan", bound=Options)


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


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a script returns in a fresh process, whose memory is nobody else's."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def benchmark(plan: type[Plan], measure: Callable[[Plan], list[Row]], what: str | None) -> None:
    """Read a plan, measure, print the table and what was missed; write the rows where asked."""

    @click.command(help=what)
    @options(plan)
    @click.option("--out", type=click.Path(path_type=Path), help="Also write the rows as JSON.")
    def command(options: Plan, out: Path | None) -> None:
        rows = measure(options)
        missed = [row.work for row in rows if row.met is False]
        print(f"{table(rows)}\n\n{len(missed)} targets missed{': ' * bool(missed)}", end="")
        print("; ".join(missed))
        if out is not None:
            record = [row.to_json() for row in rows]
            write_json(out, {"versions": library_versions(), "rows": record})

    command()


def organism(root: Path, **options: Any) -> Workspace:
    """The embedded organism under a root of its own."""
    parts = embedded_parts(dict.fromkeys(("base", "adapter", "merged", "transcoders")))
    return Workspace(root=root, models=PairSettings(**parts, **options), create=True)


def lexicon(work: Workspace) -> Lexicon:
    """The organism's own judge."""
    return Lexicon.from_file(
        organism_paths().lexicon, lambda text: first_token(work.pair.tokenizer, text)
    )
