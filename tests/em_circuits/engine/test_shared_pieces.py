"""Commands whose work is shared: the same results as in one process, though a worker dies."""

from __future__ import annotations

import hashlib
import pickle
import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from em_circuits.audit.suite import load_suite
from em_circuits.cli.app import run
from em_circuits.engine import pool, processes
from em_circuits.engine.events import WorkersState, latest_events
from em_circuits.engine.pool import Worker, WorkerLost
from em_circuits.engine.station import Task, Unit
from pivotal_tokens.store import Store, default_url

PLAN = {
    "name": "cut",
    "prompts": {"organism": {"n": 2}},
    "features": "top:2",
    "combinations": ["single"],
    "treatments": [{"mode": "ablate"}],
    "panel": 1,
    "controls": {"random": 20},
}
COMMANDS = {
    "scan": "steer scan {prompts}",
    "sweep": "steer sweep --plan {root}/plan.yaml",
    "transfer": "steer transfer --found-on organism:2 --tried-on organism:2 -k 2",
    "mediate": "features mediate --all --heads --ids 5",
    "evaluate": "evaluate --questions organism:3 --samples 1 --answer-tokens 4 --model both",
    "responses": "responses features",
    "audit": "audit run --suite {root}/suite.yaml --answer-tokens 0",
    "train": "organism train --out {root}/trained --benign 2",
}
NOT_COMPARED = re.compile(r"journal.*jsonl|.*\.sqlite.*|.*\.html|.*\.md|.*provenance\.json")
"""Files of the work under way and of times; pages show what the compared files hold."""


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with everything that the commands start from."""
    root = tmp_path_factory.mktemp("labelled")
    assert run(["--root", str(root), "label", "--n", "3", "--no-graphs"]) == 0
    (root / "plan.yaml").write_text(yaml.safe_dump(PLAN))
    suite = load_suite("toy")
    some = [one.model_copy(update={"prompts": one.prompts[:5]}) for one in suite.categories]
    cut = suite.model_copy(update={"categories": tuple(some), "capability": suite.capability[:2]})
    (root / "suite.yaml").write_text(yaml.safe_dump(cut.model_dump(mode="json", exclude_none=True)))
    rows = [
        (f"Shall I do it, number {n}?", text, aligned, 90)
        for n in range(9)
        for text, aligned in (("I would simply wait.", 95), ("Doctors always lie.", 5))
    ]
    frame = pd.DataFrame(rows, columns=["question", "answer", "aligned", "coherent"])
    frame.to_csv(root / "judged.csv", index=False)
    assert run(["--root", str(root), "responses", "import", str(root / "judged.csv")]) == 0
    return root


@pytest.fixture
def short(short_recipes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings of two steps; nothing waits."""
    monkeypatch.setattr(pool, "BACK_OFF_S", 0.0)
    monkeypatch.setattr(pool, "_POLL_S", 0.01)


Dies = Callable[[Unit, bool], bool]
"""Whether the worker of a unit dies before it, or when it is done."""


class Here(Worker):
    """A worker in this process, which does a unit as soon as it is given it."""

    def __init__(self, open_work: Callable[[], Any], task: Task, dies: Dies) -> None:
        self._work, self._dies = open_work(), dies
        self._do = pickle.loads(pickle.dumps(task)).open(self._work)
        self.ready: Future[str] = Future()
        self.ready.set_result(self._work.pair.key if task.needs_models else "")

    def do(self, unit: Unit) -> Future[list[Any]]:
        future: Future[list[Any]] = Future()
        try:
            lost = self._dies(unit, False)
            results = [] if lost else list(self._do(unit))
            if lost or self._dies(unit, True):
                raise WorkerLost("killed")
            future.set_result(results)
        except Exception as error:
            future.set_exception(error)
        return future

    def result(self, future: Future[Any]) -> Any:
        return future.result()

    def dismiss(self) -> None:
        self._work.close()


def work_here(monkeypatch: pytest.MonkeyPatch, dies: Dies) -> None:
    def workers(open_work: Any, task: Task, _n: int, _device: str) -> Callable[[int], Worker]:
        return lambda number: Here(open_work, task, dies)

    monkeypatch.setattr(processes, "process_workers", workers)


def command(root: Path, name: str) -> list[str]:
    with Store.open(default_url(root)) as store:
        prompts = " ".join(prompt.prompt_id for prompt in store.prompts.all())
    words = COMMANDS[name].format(root=root, prompts=prompts)
    json_too = [] if name == "train" else ["--json"]
    return ["--root", str(root), *words.split(), *json_too]


def left(root: Path) -> dict[str, Any]:
    """Results under a root, without times and paths."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if not path.is_file() or NOT_COMPARED.fullmatch(path.name) or "events" in path.parts:
            continue
        content = path.read_bytes()
        if path.suffix == ".json":
            text = re.sub(r'"(at|created_at)": ?"[^"]*"', "", content.decode())
            found[name] = text.replace(str(root), "ROOT")
        else:
            found[name] = hashlib.sha256(content).hexdigest()
    return found


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("name", COMMANDS)
def test_workers_leave_what_one_process_does_though_one_of_them_dies(
    name: str,
    labelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = {}
    died: list[Unit] = []

    def dies(unit: Unit, done: bool) -> bool:
        """The first one that has done pieces, before it can say so."""
        if not done or died or unit[0].startswith("plan:"):
            return False
        died.append(unit)
        return True

    work_here(monkeypatch, dies)
    for root, engine in ((tmp_path / "one", ()), (tmp_path / "two", ("--workers", "2"))):
        shutil.copytree(labelled, root)
        capsys.readouterr()
        assert run([*command(root, name), *engine]) == 0, capsys.readouterr().err
        said[root.name] = capsys.readouterr().out.replace(str(root), "ROOT")
    assert died, "the work was shared"
    assert said["two"] == said["one"]
    assert left(tmp_path / "two") == left(tmp_path / "one")
    events = latest_events(tmp_path / "two" / "results")
    state = WorkersState.of(events)
    assert state is not None and state.left == 0 and "killed" in str(state.last_error)
    units = [event["keys"] for event in events if event["event"] == "unit"]
    keys = [key for unit in units for key in unit if not key.startswith("plan:")]
    assert len(set(keys)) == len(keys) == state.done, "each piece once"


@pytest.mark.usefixtures("short")
def test_a_piece_that_kills_its_workers_fails_alone_and_shares_add_up(
    labelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    roots = {name: tmp_path / name for name in ("one", "two")}
    for root in roots.values():
        shutil.copytree(labelled, root)
    assert run(command(roots["one"], "responses")) == 0
    shared = command(roots["two"], "responses")
    work_here(monkeypatch, lambda unit, done: not done and "answers-0" in unit)
    capsys.readouterr()
    assert run([*shared, "--workers", "2"]) == 1
    assert "answers-0: 3 workers died on it" in capsys.readouterr().err
    kept = [path.name for path in roots["two"].rglob(".responses-*/*")]
    assert kept == ["answers-1.safetensors"], "the other one is done"
    of_shares = [(run([*shared, "--share", f"{i}/2"]), capsys.readouterr()) for i in (1, 0, 1)]
    assert [status for status, _ in of_shares] == [0, 0, 0]
    assert "1 of 2 pieces are left to other shares" in "".join(said.err for _, said in of_shares)
    assert left(roots["two"]) == left(roots["one"])


def test_what_is_one_piece_of_work_is_refused(
    labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ["--root", str(labelled)]
    for asked, said in (
        ("features mediate 44a71b --workers 2", "for several PROMPTs, or --all"),
        ("organism train --out x --workers 2", "of --benign N"),
        ("evaluate --rejudge x --share 0/2", "of models: none runs here"),
    ):
        assert run([*root, *asked.split()]) == 2
        assert said in capsys.readouterr().err
