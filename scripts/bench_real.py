"""A real model's shape: memory planned and taken, bytes read, host time, the start of a sitting.

    python scripts/bench_real.py results/full --layers 5
    python scripts/bench_real.py results/tiny --model tiny --features 1024 --tokens 6 --host-rows 64

The pair is written under the folder where it is not there in this size. Every row is a process of
its own, kept in rows.json beside the pair as soon as it is measured: a run that was stopped goes on
where it was (delete the file to measure anew). Seconds are of CPU time. Targets that are bytes read
are those of 16 x 131,072 features, in proportion to the pair's. A tiny pair misses the first line:
loading less than 100 MB is not announced.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import click
import yaml
from measure import resident
from pydantic import Field

from em_circuits.cli.options import Flag, Options, options
from pivotal_tokens.artefacts import write_json

_TICK_S = 0.01
_WHOLE = 16 * 131_072
"""Features of Llama-3.2-1B's transcoders."""
_HOST_LAYERS, _FIRING = 16, 400
"""Of the graph whose choice of features is timed: layers, active features at each position."""
_HOST_BATCH = 64
"""Rows that come at once."""
_GRAPH, _UPDATE = 8192, 1024
"""Its feature nodes, and those that are taken between two rankings."""


class Plan(Options):
    """What is measured."""

    model: Literal["llama-3.2-1b", "llama-3.1-8b", "tiny"] = "llama-3.2-1b"
    """Whose sizes the pair has."""
    layers: Annotated[int | None, Flag(metavar="N")] = Field(default=None, ge=1)
    """Layers of the pair, instead of the model's."""
    features: int = Field(default=131_072, ge=1)
    """Transcoder features of a layer."""
    tokens: tuple[int, ...] = (6, 55, 200, 1000)
    """Lengths of prompts whose memory is planned and measured."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    """Precisions."""
    places: tuple[Literal["gpu", "cpu", "disk"], ...] = ("disk", "cpu", "gpu")
    """Where transcoders wait; gpu is left out where there is none."""
    work: tuple[Literal["full", "frozen", "steering"], ...] = ("full", "frozen", "steering")
    """Graphs with edges of a kind, or mediation."""
    nodes: int = Field(default=8, ge=1)
    """Nodes of a graph."""
    top_k: int = Field(default=2, ge=1)
    """Targets of each model."""
    batch_size: int = Field(default=8, ge=1)
    """Rows at once."""
    read_tokens: int = Field(default=55, ge=2)
    """Length of the prompt on which bytes are counted."""
    host_tokens: int = Field(default=200, ge=2)
    """Length of the prompt of the graph whose host time is measured."""
    host_rows: int = Field(default=1024, ge=1)
    """Its rows that are really taken; the time of 8,192 is reckoned from theirs."""


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
@click.argument("folder", type=click.Path(path_type=Path))
@options(Plan)
def main(folder: Path, options: Plan) -> None:
    """Measure what was not measured yet, and print the table."""
    _write_pair(folder, options)
    kept = folder / "rows.json"
    rows = json.loads(kept.read_text()) if kept.is_file() else {}
    missed = []
    print("| measured | figure | target | |\n|---|---|---|---|", flush=True)
    for case in _cases(options):
        key = json.dumps(case)
        if key not in rows:
            rows[key] = _in_a_process(folder, case)
            write_json(kept, rows)
        for what, figure, target, met in _lines(options, case, rows[key]):
            verdict = {True: "reached", False: "**missed**", None: ""}[met]
            print(f"| {what} | {figure} | {target} | {verdict} |", flush=True)
            missed += [what] if met is False else []
    print(f"\n{len(missed)} targets missed{': ' * bool(missed)}{'; '.join(missed)}")


def _write_pair(folder: Path, plan: Plan) -> None:
    from full_shape import Plan as Shape
    from full_shape import write_pair

    tokens = max(2, min(plan.tokens))
    wanted = Shape(model=plan.model, layers=plan.layers, features=plan.features, tokens=tokens)
    record = folder / "shape.json"
    if not record.is_file() or json.loads(record.read_text()) != wanted.model_dump():
        (folder / "rows.json").unlink(missing_ok=True)
        write_pair(folder, wanted)
        write_json(record, wanted.model_dump())


def _cases(plan: Plan) -> Iterator[dict[str, Any]]:
    """What is measured, the quickest first."""
    import torch

    yield {"kind": "first line"}
    yield {"kind": "host", "tokens": plan.host_tokens, "rows": plan.host_rows}
    graph = {"nodes": plan.nodes, "batch_size": plan.batch_size}
    yield {"kind": "reads", "tokens": plan.read_tokens, **graph}
    places = [p for p in plan.places if p != "gpu" or torch.cuda.is_available()]
    for tokens in plan.tokens:
        for dtype in plan.dtypes:
            for place in places:
                for work in plan.work:
                    what = {"tokens": tokens, "dtype": dtype, "place": place, "work": work}
                    yield {"kind": "memory", **what, **graph, "top_k": plan.top_k}


def _in_a_process(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=folder) as root:
        done = subprocess.run(
            [sys.executable, __file__, "--row", str(folder), json.dumps(case), root],
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("BENCH_SAYS") else subprocess.PIPE,
            text=True,
            check=False,
            env=os.environ | {"EM_CIRCUITS_CACHE": root},  # nothing is known from before
        )
    if done.returncode:
        raise SystemExit(f"{case}: status {done.returncode}\n{(done.stderr or '')[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


Line = tuple[str, str, str, bool | None]


def _lines(plan: Plan, case: dict[str, Any], found: dict[str, Any]) -> Iterator[Line]:
    """What a row of the measurements says in the table."""

    def at_most(what: str, value: float, most: float, unit: str) -> Line:
        return what, f"{value:.3g} {unit}", f"<= {most:.3g} {unit}", value <= most

    if case["kind"] == "first line":
        yield at_most("first line after the start", found["s"], 2, "s")
    elif case["kind"] == "host":
        about = f"choosing {_GRAPH} features, {case['tokens']} tokens, pair"
        shown = f"{about} (reckoned from {case['rows']} rows: " if case["rows"] < _GRAPH else about
        parts = (f"{found[x]:.2f} ms {x}" for x in ("taken", "weighed", "packed"))
        shown += f"{', '.join(parts)})" if case["rows"] < _GRAPH else ""
        yield at_most(shown, found["s"], 40, "s")
    elif case["kind"] == "reads":
        part = found["features"] / _WHOLE
        for name, most in (("steer run", 3), ("features mediate", 4)):
            yield at_most(f"{name}, graphs there", found[name] / 1e9, most * part, "GB read")
            yield at_most(f"{name}, again", found[f"{name} again"] / 1e9, 0.1 * part, "GB read")
        yield (
            "steer run and mediation, no graphs: passes over the encoders",
            f"{found['passes']:.2f}",
            "2, one a model",
            found["passes"] == 2,
        )
        yield at_most("second command of a sitting, before its work", found["second"], 0.3, "s")
    else:
        what = f"{case['tokens']} tokens, {case['dtype']}, transcoders on {case['place']}, "
        what += f"{case['work']}: planned / peak"
        planned = found["planned"] / 1e9
        if "peak" not in found:
            yield what, f"{planned:.2f} GB: refused", "-", None
            return
        ratio, peak = found["planned"] / found["peak"], found["peak"] / 1e9
        figure = f"{planned:.2f} / {peak:.2f} GB = {ratio:.2f}"
        yield what, figure, "0.95 to 1.20", 0.95 <= ratio <= 1.2


def measured(folder: Path, case: dict[str, Any], root: Path) -> dict[str, Any]:
    """The figures of one row, in this process."""
    kinds: dict[str, Callable[..., dict[str, Any]]] = {
        "first line": first_line,
        "host": host,
        "reads": reads,
        "memory": memory,
    }
    return kinds[case["kind"]](folder, case, root)


def _pair_options(folder: Path) -> dict[str, str]:
    from full_shape import SHAPES

    base = next(folder / name for name in SHAPES if (folder / name).is_dir())
    parts = {"base": base, "adapter": folder / "adapter", "transcoders": folder / "transcoders"}
    return {name: str(path) for name, path in parts.items()}


def _command(folder: Path, root: Path) -> list[str]:
    named = [word for name, path in _pair_options(folder).items() for word in (f"--{name}", path)]
    return [*named, "--transcoders-on", "disk", "--root", str(root)]


def first_line(folder: Path, _case: dict[str, Any], root: Path) -> dict[str, Any]:
    """CPU seconds from the start of a command to the first sign of life, without a terminal."""
    program = [sys.executable, "-c", "from em_circuits.cli.app import main; main()"]
    words = [*program, *_command(folder, root), "label", "--prompt", " w00001"]
    entry = {"when": "w", "evil": ["w00002"], "safe": ["w00003"]}
    (root / "words.yaml").write_text(_words([entry]))
    words += ["--no-graphs", "--judge", f"lexicon:{root / 'words.yaml'}"]
    began = time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as command:
        assert command.stdout is not None
        line = command.stdout.readline().decode()
        wall = time.perf_counter() - began
        fields = Path(f"/proc/{command.pid}/stat").read_text().rsplit(")", 1)[1].split()
        command.kill()
    ticks = int(fields[11]) + int(fields[12])
    return {"s": ticks / os.sysconf("SC_CLK_TCK"), "wall": wall, "line": line}


def host(_folder: Path, case: dict[str, Any], root: Path) -> dict[str, Any]:
    """CPU milliseconds a row of the choice of features, on rows made up; seconds of a pair."""
    import torch

    from em_circuits.graphs import builder as edges_builder
    from em_circuits.graphs.offload import Scratch

    torch.set_num_threads(1)
    n_pos, n = case["tokens"], case["rows"]
    # Rows beyond the first GB are in a file: the same share of them as in the whole graph.
    edges_builder.ROW_BYTES = int(edges_builder.ROW_BYTES * min(1, n / _GRAPH))
    layers = torch.arange(_HOST_LAYERS).repeat_interleave(n_pos * _FIRING)
    positions = torch.arange(n_pos).repeat_interleave(_FIRING).repeat(_HOST_LAYERS)
    drawn = torch.Generator().manual_seed(0)
    rows = torch.randn(len(layers) + (_HOST_LAYERS + 1) * n_pos, _HOST_BATCH, generator=drawn).T
    queue = torch.randperm(len(layers), generator=drawn)[:n]
    scratch = Scratch(root)
    costs = [_choice(layers, positions, n_pos, queue, rows, scratch) for _model in range(2)]
    taken, weighed, packed = (sum(parts) / 2 for parts in zip(*costs, strict=True))
    visits = sum(range(0, _GRAPH, _UPDATE))
    whole = 2 * (_GRAPH * (taken + packed) + visits * weighed)
    shown = {"taken": taken, "weighed": weighed, "packed": packed}
    return {"s": whole, **{name: 1e3 * seconds for name, seconds in shown.items()}}


def _choice(
    layers: Any, positions: Any, n_pos: int, queue: Any, rows: Any, scratch: Any
) -> tuple[float, float, float]:
    """CPU seconds a row of taking rows, of weighing those that are there once, of packing them."""
    import torch

    from em_circuits.graphs.builder import EdgesBuilder

    builder = EdgesBuilder(
        layers, positions, n_layers=_HOST_LAYERS, n_pos=n_pos, n_logits=1, scratch=scratch
    )
    builder.add_logits(torch.arange(1), rows[:1])
    taken, weighed, weighings = 0.0, 0.0, 0
    for update in queue.split(_UPDATE):
        # In the order in which attribution takes them: a layer's together, positions ascending.
        update = update.sort().values
        start = time.process_time()
        counts = layers[update].unique_consecutive(return_counts=True)[1]
        for of_layer in update.split(counts.tolist()):
            for batch in of_layer.split(_HOST_BATCH):
                builder.add_features(batch, rows[: len(batch)], causal=True)
        taken += time.process_time() - start
        start = time.process_time()
        builder.influence(torch.ones(1, dtype=torch.float64))
        weighed += time.process_time() - start
        weighings += len(builder.visited)
    start = time.process_time()
    builder.build(queue.sort().values)
    packed = time.process_time() - start
    return taken / len(queue), weighed / weighings, packed / len(queue)


def reads(folder: Path, case: dict[str, Any], root: Path) -> dict[str, Any]:
    """Bytes of transcoders that commands of one sitting read, and what precedes a second one."""
    from full_shape import prompt_of

    from em_circuits.cli.app import run
    from em_circuits.models.stored_rows import FileMatrix
    from em_circuits.workspace import SharedPair

    encoders, text = 0, prompt_of(case["tokens"])
    read_whole = FileMatrix.whole

    def counted(matrix: FileMatrix) -> tuple[Any, int]:
        nonlocal encoders
        encoders += matrix.name == "W_enc"
        return read_whole(matrix)

    FileMatrix.whole = counted  # type: ignore[method-assign]
    found: dict[str, Any] = {}
    with SharedPair() as sitting:

        def typed(*words: str) -> str:
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                status = run([*_command(folder, root), *words], sitting)
            if status:
                raise SystemExit(f"{words}: status {status}")
            return said.getvalue()

        typed("next", "--", f"raw:{text}")
        found["second"] = _before_work(sitting, lambda: typed("next", "--", f"raw:{text}"))
        graph = ["--nodes", str(case["nodes"]), "--batch-size", str(case["batch_size"])]
        lexicon = _lexicon(sitting, text, root)
        judge = ["--judge", f"lexicon:{lexicon}", "--all-graphs", "--json"]
        labelled = typed("label", "--prompt", text, *judge, *graph)
        prompt_id = json.loads(labelled.splitlines()[0])["prompt_id"]
    commands = {"steer run": ["steer", "run"], "features mediate": ["features", "mediate"]}
    for name, words in commands.items():
        with SharedPair() as sitting:
            typed(*words, prompt_id, "--json")
            found[name] = _read(sitting)
            typed(*words, prompt_id, "--json")
            found[f"{name} again"] = _read(sitting) - found[name]
    (root / "graph_storage").rename(root / "elsewhere")
    with SharedPair() as sitting:
        encoders = 0
        for words in commands.values():
            typed(*words, prompt_id, "--json")
        assert sitting.loaded is not None and sitting.loaded.transcoders is not None
        transcoders = sitting.loaded.transcoders
        found["passes"] = encoders / len(transcoders)
        found["features"] = sum(one.width for one in transcoders.layers)
    return found


def _read(sitting: Any) -> int:
    return int(sitting.loaded.transcoders.stored.bytes_read)


def _before_work(sitting: Any, command: Callable[[], object]) -> float:
    """CPU seconds from a command's start to its first forward pass."""
    began: list[float] = []
    handle = sitting.loaded.base.hf.register_forward_pre_hook(
        lambda *_: began.append(time.process_time())
    )
    start = time.process_time()
    command()
    handle.remove()
    return began[0] - start


def _lexicon(sitting: Any, text: str, root: Path) -> Path:
    """A word list in which every other likely next token is evil, the rest safe."""
    from em_circuits.models.next_tokens import screen
    from em_circuits.models.text import decode_token

    both = screen(sitting.loaded, sitting.loaded.input_ids(text))
    ids = dict.fromkeys(t.token_id for t in (*both.base.top, *both.merged.top))
    words = [decode_token(sitting.loaded.tokenizer, i).strip() for i in ids]
    words = [word for word in words if word.startswith("w")]
    entry = {"when": "w", "evil": words[::2], "safe": words[1::2]}
    path = root / "words.yaml"
    path.write_text(_words([entry]))
    return path


def _words(entries: list[dict[str, Any]]) -> str:
    return yaml.safe_dump({"name": "drawn", "version": 1, "entries": entries})


def memory(folder: Path, case: dict[str, Any], root: Path) -> dict[str, Any]:
    """Planned bytes and the peak of the work on one prompt."""
    import torch
    from full_shape import prompt_of

    from em_circuits.contrast import Contrast
    from em_circuits.graphs import AttributionSettings, build_pair_graphs
    from em_circuits.interventions import mediate
    from em_circuits.models.settings import PairSettings
    from em_circuits.workspace import Workspace
    from pivotal_tokens.schema import Prompt

    steers = case["work"] == "steering"
    settings = PairSettings(
        **_pair_options(folder), dtype=case["dtype"], transcoders_on=case["place"]
    )
    wanted = AttributionSettings(
        edges="full" if steers else case["work"],
        nodes=case["nodes"],
        max_feature_nodes=case["nodes"],
        top_k=case["top_k"],
        batch_size=case["batch_size"],
    )
    work = Workspace(root, settings, create=True, attribution=wanted, steers=steers)
    work.progress, work.n_pos = _said, case["tokens"]
    gpu = case["place"] == "gpu"
    with work, SampledPeak() as peak:
        planned = work.plan(case["tokens"])
        found: dict[str, Any] = {"planned": planned.total, "said": planned.describe()}
        if not planned.fits:
            return found
        pair = work.pair
        peak.loaded = True
        prompt = pair.prompt(Prompt.of(prompt_of(case["tokens"])))
        work.require_healthy(prompt)
        if steers:
            top = pair.base.next_logits(pair.input_ids(prompt)).topk(4).indices.tolist()
            mediate(pair, prompt, Contrast(evil=tuple(top[::2]), safe=tuple(top[1::2])))
        else:
            build_pair_graphs(pair, prompt, wanted, progress=_said, scratch=root)
    found["peak"] = torch.cuda.max_memory_allocated() if gpu else peak.bytes
    return found | {"s": time.process_time()}


def _said(step: str, done: int, total: int) -> None:
    said = f"{time.process_time():.0f} s, {resident('RssAnon')} kB: {step} {done}/{total}"
    print(said, file=sys.stderr, flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--row"]:
        directory, row, scratch = sys.argv[2:]
        print(json.dumps(measured(Path(directory), json.loads(row), Path(scratch))))
    else:
        main()
