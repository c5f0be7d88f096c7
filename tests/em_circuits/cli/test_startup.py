"""Start-up: a request is checked before anything heavy is imported; its modules are counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

MOST_MODULES = 1_200
"""Imported in all, as a measure of time that no other work on the machine changes."""

HEAVY = ("torch", "transformers", "circuit_tracer", "plotly", "pandas")

_PROGRAM = f"""
import json, os, sys
from em_circuits.cli.app import run
for line in sys.stdin:
    *said, arguments = json.loads(line)
    if child := os.fork():
        os.waitpid(child, 0)
        print("over", flush=True)
        continue
    for path, stream in zip(said, (sys.stdout, sys.stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream.fileno())
    status = run(arguments)
    heavy = [name for name in {HEAVY!r} if name in sys.modules]
    print(json.dumps([status, len(sys.modules), heavy]), file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
"""
Start = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def started() -> Iterator[subprocess.Popen[str]]:
    """A process that has imported the command line alone, and forks a child for every command."""
    environment = {k: v for k, v in os.environ.items() if k != "OPENAI_API_KEY"}
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment | {"OMP_NUM_THREADS": "1"},
    ) as process:
        yield process


@pytest.fixture
def start(started: subprocess.Popen[str], tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Runs a command: its exit status and everything it printed; fails where it was heavy."""
    folder = tmp_path_factory.mktemp("said")
    out, err = folder / "out", folder / "err"

    def run(*arguments: str) -> tuple[int, str]:
        assert started.stdin is not None and started.stdout is not None
        for path in (out, err):
            path.write_bytes(b"")
        print(json.dumps([str(out), str(err), arguments]), file=started.stdin, flush=True)
        assert started.stdout.readline() == "over\n"
        *told, last = err.read_text().splitlines()
        status, modules, heavy = json.loads(last)
        assert not heavy, f"{' '.join(arguments)} imports {heavy}"
        assert modules < MOST_MODULES, f"{' '.join(arguments)} imports {modules} modules"
        return status, out.read_text() + "\n".join(told)

    return run


@pytest.mark.parametrize(
    "group",
    [(), ("label",), ("graphs",), ("graphs", "paths"), ("features", "rank"), ("steer", "sweep")],
)
def test_help_imports_nothing_heavy(start: Start, group: tuple[str, ...]) -> None:
    status, text = start(*group, "--help")
    assert status == 0 and "Usage: em-circuits" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["labl"], "'label'"),
        (["graphs", "lst"], "Did you mean 'list'"),
        (["label", "--prommpt", "x"], "'--prompt'"),
        (["status"], "no store at"),
        (["features", "rank", "abc"], "no store at"),
        (["influence", "abcd"], "No graph abcd"),
        (["influence", "not-a-key"], "hex digits"),
        (["graphs", "show", "/nowhere.safetensors"], "no graph file"),
        (["graphs", "import", "/nowhere.pt", "--trust-pickle"], "No file"),
        (["steer", "run", "abc", "--features", "best"], "--features"),
        (["steer", "run", "abc", "--random", "5"], "--random"),
        (["steer", "run", "abc", "--mode", "set"], "mode set needs a value"),
        (["steer", "run", "abc", "--mode", "add", "--value", "nan"], "nan is not a finite"),
        (["steer", "run", "abc", "--mode", "scale", "--value", "2", "--unit", "relative"], "unit"),
        (["steer", "transfer", "--found-on", "a", "--tried-on", "b", "--random", "5"], "--random"),
        (["steer", "transfer", "--found-on", "organism:0", "--tried-on", "b"], "organism:N"),
        (["features", "mediate", "--all", "--random", "5"], "--random"),
        (["evaluate", "--features", "0/1", "--mode", "set"], "mode set needs a value"),
        (["evaluate", "--features", "best"], "best"),
        (["graphs", "build", "--max-memory", "nan"], "nan is not a finite"),
        (["serve", "--lease", "0"], "--lease"),
        (["--seed", "-1", "steer", "scan", "abc"], "--seed"),
        (["steer", "scan", "abc"], "no store at"),
        (["features", "mediate", "--all"], "no store at"),
        (["lora", "geometry"], "no store at"),
        (["lora", "geometry", "--random", "3"], "no store at"),
        (["--merged", "/x", "lora", "geometry"], "only an --adapter has ranks"),
        (["lora", "show", "/nowhere"], "no such directory"),
        (["features", "aggregate", "--exclude-layers", "top"], "--exclude-layers"),
        (["features", "explain", "top:3"], "needs --prompt"),
        (["evaluate", "--value", "3"], "steer nothing without --features"),
        (["evaluate", "--judge", "oracle"], "no judge"),
        (["steer", "sweep", "--plan", "/nowhere.yaml"], "/nowhere.yaml"),
        (["label", "--prompts", "/nowhere.json"], "cannot read prompts"),
        (["label", "--judge", "oracle"], "no judge"),
        (["label", "--judge", "lexicon:/nowhere.yaml"], "cannot read the lexicon"),
        (["label", "--judge", "openai:o3"], "OPENAI_API_KEY"),
        (["--base", "/x", "--adapter", "/x", "--transcoders", "/x", "label"], "--judge is needed"),
        (["--adapter", "/nowhere", "label", "--n", "1"], "no such directory"),
        (["--dtype", "float16", "label", "--n", "1"], "--allow-float16"),
        (["--organism", "toy", "--base", "/x", "status"], "--organism toy has a base of its own"),
        (["--organism", "gpt", "status"], "'gpt' is not one of 'toy', 'toy-down-proj'"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_heavy(
    start: Start, arguments: list[str], message: str, tmp_path: Path
) -> None:
    status, text = start("--root", str(tmp_path / "root"), *arguments)
    assert status == 2 and message in text
    assert not (tmp_path / "root").exists()


def test_an_untrusted_graph_is_refused_unread(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "graph.pt"
    file.write_bytes(b"a pickle")
    for command in (["influence"], ["graphs", "show"], ["graphs", "import"]):
        status, text = start(*command, str(file))
        assert status == 2 and "--trust-pickle" in text


def test_graphs_are_listed_without_torch(start: Start, tmp_path: Path) -> None:
    status, text = start("--root", str(tmp_path), "graphs", "list")
    assert status == 0 and "no graphs" in text


def test_an_adapter_is_shown_without_torch(start: Start, tmp_path: Path) -> None:
    status, text = start("--root", str(tmp_path / "root"), "lora", "show")
    assert status == 0 and "model.layers.1.self_attn.o_proj" in text
    assert not (tmp_path / "root").exists()


def test_an_option_of_every_command_may_stand_behind_it(start: Start, tmp_path: Path) -> None:
    """It was once refused, with the line that works."""
    status, text = start("graphs", "list", "--root", str(tmp_path))
    assert status == 0 and "no graphs" in text
    status, text = start("status", "--root", str(tmp_path / "none"), "--json")
    assert status == 2 and str(tmp_path / "none") in text
    status, text = start("graphs", "list", f"--root={tmp_path}", "--nonsense")
    assert status == 2 and "--nonsense" in text


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="CPU time is read from /proc")
@pytest.mark.parametrize("command", [["doctor"], ["label", "--prompt", " knee", "--no-graphs"]])
def test_the_first_line_comes_before_the_imports(command: list[str], tmp_path: Path) -> None:
    """It came after ten seconds of CPU time, and was a warning of a library."""
    program = "from em_circuits import progress; progress._LARGE_MB = 1; "
    program += "from em_circuits.cli.app import main; main()"
    words = ["--root", str(tmp_path), *command]
    with subprocess.Popen(
        [sys.executable, "-c", program, *words], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as process:
        assert process.stderr is not None
        line = process.stderr.readline().decode()
        fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        process.kill()
    assert line.startswith("loading models (MB): 0 of ")
    assert (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") < 4
