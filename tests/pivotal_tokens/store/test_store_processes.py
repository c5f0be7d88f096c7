"""Killed or crowded: what a store acknowledged is there, and nobody gets another's item."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pivotal_tokens
from pivotal_tokens.schema import Prompt
from pivotal_tokens.store import Store

# Prints one line after each acknowledged write: "labels ID", "settled ID".
WRITER = """
import sys
from pivotal_tokens.schema import LabelEvent, Prompt
from pivotal_tokens.store import Store

with Store.open(sys.argv[1]) as store:
    print("ready", flush=True)
    number = 0
    while True:
        number += 1
        prompt = Prompt.of(f"{sys.argv[2]} {number} " + "x" * 3000)
        store.prompts.add(prompt)
        store.assignments.add(prompt.prompt_id, "p", "flagged")
        item = store.queue.take(sys.argv[2], 600)
        ids = [f"{item.prompt_id}-{token}" for token in range(5)]
        store.labels.add(
            [
                LabelEvent(event_id=event_id, prompt_id=item.prompt_id, token_id=token,
                           from_label=None, to_label="evil", author="ada", author_kind="human")
                for token, event_id in enumerate(ids)
            ],
            item=item,
        )
        print("labels", item.prompt_id, flush=True)
        store.queue.settle(item, "done", item.fence)
        print("settled", item.prompt_id, flush=True)
"""

CLAIMER = """
import sys
from pivotal_tokens.store import Store

with Store.open(sys.argv[1]) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    while (item := store.queue.take(sys.argv[2], 600, session=sys.argv[2])) is not None:
        print(item.item_id, item.fence, flush=True)
"""

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(pivotal_tokens.__file__).parents[1])}


def start(code: str, path: Path, name: str, **streams) -> subprocess.Popen:
    """A Python process at work on a store."""
    command = [sys.executable, "-c", code, f"sqlite:///{path}", name]
    return subprocess.Popen(command, env=ENVIRONMENT, **streams)


def test_a_writer_killed_at_any_moment_loses_nothing_it_acknowledged(store, store_path, tmp_path):
    chance = random.Random(7)
    acknowledged: dict[str, set[str]] = {"labels": set(), "settled": set()}
    for run in range(5):
        output = tmp_path / f"acknowledged-{run}"
        with output.open("w") as stream:
            writer = start(WRITER, store_path, f"writer-{run}", stdout=stream)
        lines = chance.randint(1, 12)  # of which the first says that it is ready
        while output.read_text().count("\n") < lines:
            assert writer.poll() is None
            time.sleep(0.001)
        time.sleep(chance.uniform(0.0, 0.02))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        whole_lines = output.read_text().rpartition("\n")[0].splitlines()
        for word, prompt_id in map(str.split, whole_lines[1:]):
            acknowledged[word].add(prompt_id)

        connection = sqlite3.connect(store_path)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()
    assert acknowledged["settled"]
    done = {item.prompt_id for item in store.queue.items("done")}
    assert acknowledged["settled"] <= done
    for prompt_id in acknowledged["labels"] | done:
        assert len(store.labels.events(prompt_id)) == 5  # all five or none, and never twice


def test_two_processes_at_once_claim_disjoint_items(store, store_path):
    for number in range(30):
        prompt = Prompt.of(f"prompt {number}")
        store.prompts.add(prompt)
        store.assignments.add(prompt.prompt_id, "p", "flagged")
    claimers = [
        start(CLAIMER, store_path, name, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in ("ada", "bob")
    ]
    assert [process.stdout.readline() for process in claimers] == ["ready\n"] * 2
    for process in claimers:
        process.stdin.write("go\n")
        process.stdin.flush()
    claimed = [process.communicate()[0].split() for process in claimers]
    assert [process.returncode for process in claimers] == [0, 0]
    ids = [{*lines[::2]} for lines in claimed]
    assert not ids[0] & ids[1]
    assert len(ids[0] | ids[1]) == 30 == sum(len(lines) // 2 for lines in claimed)
    assert {fence for lines in claimed for fence in lines[1::2]} == {"1"}


def test_importing_every_module_brings_neither_torch_nor_the_other_package_nor_a_file(tmp_path):
    code = (
        "import importlib, pkgutil, sys, pivotal_tokens\n"
        "for m in pkgutil.walk_packages(pivotal_tokens.__path__, 'pivotal_tokens.'):\n"
        "    importlib.import_module(m.name)\n"
        "assert not {'torch', 'em_circuits'} & set(sys.modules), 'heavy import'\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, check=True)
    assert list(tmp_path.iterdir()) == []


def test_a_store_opened_twice_sees_the_others_writes(store, store_path):
    with Store.open(f"sqlite:///{store_path}") as other:
        prompt = Prompt.of("seen by both")
        other.prompts.add(prompt)
        assert store.prompts.get(prompt.prompt_id) == prompt
