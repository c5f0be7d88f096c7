"""Plans of memory beside measured peaks, and what a sitting costs, at a real model's shape.

    python scripts/full_shape.py results/full --layers 5
    python scripts/bench_real.py --pair results/full

Each row of the first table is a process of its own that loads the pair, checks its health and
builds both graphs of one prompt. With few nodes and rows at once a row takes minutes, not hours.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import click
from measure import resident
from pydantic import Field

from em_circuits.cli.options import Flag, Options, options

_TICK_S = 0.01


class Plan(Options):
    """What is measured."""

    pair: Annotated[str, Flag(metavar="DIR")] = "results/full"
    """Folder that full_shape.py wrote."""
    tokens: tuple[int, ...] = (6, 24, 55)
    """Lengths of prompts."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    """Precisions."""
    places: tuple[Literal["gpu", "cpu", "disk"], ...] = ("disk",)
    """Where transcoders wait."""
    edges: tuple[Literal["full", "frozen"], ...] = ("full",)
    """Kinds of edges."""
    nodes: int = Field(default=8, ge=1)
    """Nodes of a graph."""
    top_k: int = Field(default=2, ge=1)
    """Targets of each model."""
    batch_size: int = Field(default=8, ge=1)
    """Rows at once."""


class SampledPeak:
    """Largest resident memory of this process within the block, sampled (Linux).

    Pages of files count once `loaded`: weights that stay mapped are needed, those that are read to
    be turned into another precision are given up.
    """

    def __init__(self) -> None:
        self.bytes, self.loaded, self._over = 0, False, threading.Event()
        self._before = resident("RssFile")
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> SampledPeak:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_TICK_S):
            mapped = max(0, resident("RssFile") - self._before) if self.loaded else 0
            self.bytes = max(self.bytes, 1024 * (resident("RssAnon") + mapped))


@click.command(help=__doc__)
@options(Plan)
def main(options: Plan) -> None:
    """Print the table."""
    print("| tokens | precision | transcoders | edges | planned GB | peak GB | planned / peak |")
    print("|---|---|---|---|---|---|---|")
    for tokens in options.tokens:
        for dtype in options.dtypes:
            for place in options.places:
                for edges in options.edges:
                    case = {"tokens": tokens, "dtype": dtype, "place": place, "edges": edges}
                    _print_row(case, _in_a_process(options, case))


def _print_row(case: dict[str, Any], found: dict[str, Any]) -> None:
    planned, peak = found["planned"] / 1e9, found["peak"] / 1e9
    print("| " + " | ".join(map(str, case.values())), end=" | ")
    print(f"{planned:.2f} | {peak:.2f} | {planned / peak:.2f} |", flush=True)


def _in_a_process(plan: Plan, case: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, plan.model_dump_json(), json.dumps(case)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def one_graph(plan: Plan, case: dict[str, Any]) -> dict[str, Any]:
    """Planned bytes and the peak of building one prompt's graphs, in this process."""
    from full_shape import SHAPES, prompt_of

    from em_circuits.graphs import AttributionSettings, build_pair_graphs
    from em_circuits.models.settings import PairSettings
    from em_circuits.workspace import Workspace
    from pivotal_tokens.schema import Prompt

    folder = Path(plan.pair)
    base = next(folder / name for name in SHAPES if (folder / name).is_dir())
    settings = PairSettings(
        base=str(base),
        adapter=str(folder / "adapter"),
        transcoders=str(folder / "transcoders"),
        dtype=case["dtype"],
        transcoders_on=case["place"],
    )
    wanted = AttributionSettings(
        edges=case["edges"],
        nodes=plan.nodes,
        max_feature_nodes=plan.nodes,
        top_k=plan.top_k,
        batch_size=plan.batch_size,
    )
    start = time.process_time()
    with tempfile.TemporaryDirectory() as root:
        os.environ["EM_CIRCUITS_CACHE"] = root  # health is checked in every row
        work = Workspace(Path(root), settings, create=True, attribution=wanted)
        work.progress = _said
        work.n_pos = case["tokens"]
        with work, SampledPeak() as peak:
            planned = work.plan(case["tokens"])
            _ = work.pair
            peak.loaded = True
            prompt = work.pair.prompt(Prompt.of(prompt_of(case["tokens"])))
            work.require_healthy(prompt)
            build_pair_graphs(work.pair, prompt, wanted, progress=_said, scratch=Path(root))
    about = {"planned": planned.total, "peak": peak.bytes, "s": time.process_time() - start}
    return about | {"parts": [planned.weights, planned.transcoders, planned.attribution]}


def _said(step: str, done: int, total: int) -> None:
    said = f"{time.process_time():.0f} s, {resident('RssAnon')} kB: {step} {done}/{total}"
    print(said, file=sys.stderr, flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1].startswith("{"):
        print(json.dumps(one_graph(Plan.model_validate_json(sys.argv[1]), json.loads(sys.argv[2]))))
    else:
        main()
