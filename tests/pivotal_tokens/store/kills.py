"""Reviewers and a writer killed at random moments: nothing acknowledged is lost or doubled.

Workers say each acknowledged write on their output, a line each. Whoever kills them reads these
lines and afterwards asks the store: every acknowledged label there, no answer applied twice, no
item under two live leases, the database whole.

    python tests/pivotal_tokens/store/kills.py --kills 1000 --store sqlite:////tmp/kills.sqlite
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pivotal_tokens
from pivotal_tokens.schema import ReviewConfig
from pivotal_tokens.store import Store

_SETUP = """
import sys
from pivotal_tokens.review import ReviewService
from pivotal_tokens.schema import *
from pivotal_tokens.store import Screened, Store
from pivotal_tokens.verdict import decide

def lists(model, other):
    tokens = [TokenScore(token_id=t, text=f" w{t}", logit=-float(r), probability=p, rank=r)
              for r, (t, p) in enumerate(other, start=1)]
    return NextTokens(model=model, fingerprint=model, top_k=10, tokens=tuple(tokens))

BASE = lists("base", [(1, 0.8), (3, 0.1), (2, 0.02)])
MERGED = lists("merged", [(2, 0.7), (3, 0.12), (1, 0.1)])
"""

WRITER = (
    _SETUP
    + """
with Store.open(sys.argv[1]) as store:
    print("ready", flush=True)
    number = 0
    while True:
        number += 1
        prompt = Prompt.of(f"{sys.argv[2]} {number}")
        screened = Screened(prompt=prompt, next_tokens=NextTokenPair(base=BASE, merged=MERGED))
        store.results.put_screened("p", [screened])
        labels = tuple(TokenLabel(token_id=t, label="evil") for t in (1, 2, 3))
        judgement = Judgement(prompt_id=prompt.prompt_id, judge="j", labels=labels)
        verdict = decide(BASE, MERGED, judgement.by_token)
        judged = JudgedPrompt(
            prompt=prompt, next_tokens=screened.next_tokens, outcome=judgement, verdict=verdict
        )
        store.results.put_judged("p", [judged])
        print("queued", prompt.prompt_id, flush=True)
"""
)

REVIEWER = (
    _SETUP
    + """
import random, time
chance = random.Random(sys.argv[2])
with Store.open(sys.argv[1]) as store:
    service = ReviewService(store, sys.argv[3], lease_seconds=2.0)
    print("ready", flush=True)
    while True:
        question = service.next_question()
        if question is None:
            time.sleep(0.05)
            continue
        print("leased", question.item.item_id, question.item.fence, flush=True)
        for token in chance.sample((1, 2, 3), chance.randint(1, 3)):
            label = chance.choice(("evil", "safe", "unsure"))
            question = service.label(question, {token: label})
            print("label", question.prompt.prompt_id, token, label, sys.argv[3], flush=True)
        if chance.random() < 0.2:
            question = service.undo(question)
            print("undone", question.prompt.prompt_id, sys.argv[3], flush=True)
            service.release(question)
            continue
        reveal = service.finish(question, rest="unsure")
        print("done", reveal.prompt_id, sys.argv[3], flush=True)
"""
)


@dataclass
class Killed:
    """What was acknowledged, and what the store says to it."""

    kills: int = 0
    acknowledged: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    two_leases: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Nothing went wrong, and there was something that could have."""
        wrong = self.lost or self.doubled or self.two_leases or self.damaged
        return not wrong and self.acknowledged > 0


def kill_at_random(url: str, directory: Path, kills: int, *, seed: int = 0) -> Killed:
    """Keep a writer and two reviewers at work and kill one of them after the other.

    Args:
        url: Of a store that exists.
        directory: For the workers' output.
        kills: How many processes are killed.
        seed: Of the moments.
    """
    chance = random.Random(seed)
    with Store.open(url) as store:
        store.assignments.set_config(ReviewConfig(repeat_share=0.0))
    roles = [("writer", ""), ("ada", "ada"), ("bob", "bob")]
    running: dict[int, tuple[subprocess.Popen, Path]] = {}
    result, outputs = Killed(), []
    for number in range(kills):
        for slot, (role, reviewer) in enumerate(roles):
            if slot not in running:
                output = directory / f"{role}-{number}"
                outputs.append(output)
                code = WRITER if not reviewer else REVIEWER
                running[slot] = (_start(code, output, url, f"{role}-{number}", reviewer), output)
        slot = chance.choice([0, 1, 1, 2, 2])
        process, output = running.pop(slot)
        _wait_until_ready(process, output)
        time.sleep(chance.uniform(0.0, 0.25))
        process.send_signal(signal.SIGKILL)
        process.wait()
        result.kills += 1
        if url.startswith("sqlite") and number % 20 == 19:
            _check_file(url, result)
    for process, _ in running.values():
        process.kill()
        process.wait()
    _check(url, outputs, result)
    return result


def _start(code: str, output: Path, *arguments: str) -> subprocess.Popen:
    root = str(Path(pivotal_tokens.__file__).parents[1])
    with output.open("w") as stream:
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdout=stream,
            env=os.environ | {"PYTHONPATH": root},
        )


def _wait_until_ready(process: subprocess.Popen, output: Path) -> None:
    while "ready" not in output.read_text():
        if process.poll() is not None:
            raise AssertionError(f"{output.name} ended by itself with {process.returncode}")
        time.sleep(0.02)


def _check(url: str, outputs: list[Path], result: Killed) -> None:
    """Compare what workers said with what the store has."""
    leases: Counter[tuple[int, int]] = Counter()
    with Store.open(url) as store:
        queue = {item.prompt_id: item for item in store.queue.items()}
        events = {prompt_id: store.labels.events(prompt_id) for prompt_id in queue}
    for output in outputs:
        for line in output.read_text().rpartition("\n")[0].splitlines()[1:]:
            word, *rest = line.split()
            result.acknowledged += 1
            if word == "leased":
                leases[int(rest[0]), int(rest[1])] += 1
            elif (
                (word == "queued" and rest[0] not in queue)
                or (word == "done" and not _answered(events[rest[0]], rest[1]))
                or (word == "label" and not _given(events[rest[0]], *rest[1:]))
            ):
                result.lost.append(line)
    result.two_leases += [str(lease) for lease, times in leases.items() if times > 1]
    for prompt_id, of_prompt in events.items():
        result.doubled += _doubled(prompt_id, of_prompt)
    if url.startswith("sqlite"):
        _check_file(url, result)


def _given(events, token: str, label: str, author: str) -> bool:
    """An answer that repeats the standing label adds no event: it must stand by then."""
    return any(
        event.token_id == int(token) and event.to_label == label and event.author == author
        for event in events
    )


def _answered(events, author: str) -> bool:
    return {e.token_id for e in events if e.author == author and e.to_label} == {1, 2, 3}


def _doubled(prompt_id: str, events) -> list[str]:
    """Each author's events on a token must form a chain: from what the one before left."""
    last: dict[tuple[str, int], str | None] = {}
    wrong = []
    for event in events:
        key = (event.author, event.token_id)
        if event.from_label != last.get(key) or event.from_label == event.to_label:
            wrong.append(f"{prompt_id} {key}: {event.from_label} after {last.get(key)}")
        last[key] = event.to_label
    return wrong


def _check_file(url: str, result: Killed) -> None:
    connection = sqlite3.connect(url.removeprefix("sqlite:///"), timeout=60)
    found = connection.execute("PRAGMA integrity_check").fetchone()
    broken = connection.execute("PRAGMA foreign_key_check").fetchall()
    connection.close()
    if found != ("ok",) or broken:
        result.damaged.append(f"{found} {broken}")


def main() -> None:
    """Kill as often as asked and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--postgresql", action="store_true", help="on a server of its own")
    parser.add_argument("--directory", type=Path, required=True, help="new or empty")
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    if options.postgresql:
        sys.path.insert(0, str(Path(__file__).parents[1]))
        from postgres import postgres_server

        with postgres_server(durable=True) as server:
            result = _run(server.url, options.directory, options.kills)
    else:
        path = options.directory.absolute() / "kills.sqlite"
        result = _run(f"sqlite:///{path}", options.directory, options.kills)
    sys.exit(0 if result.clean else 1)


def _run(url: str, directory: Path, kills: int) -> Killed:
    began = time.monotonic()
    Store.open(url, create=True).close()
    result = kill_at_random(url, directory, kills)
    sys.stdout.write(
        f"{result.kills} kills in {time.monotonic() - began:.0f} s: {result.acknowledged} "
        f"acknowledged, {len(result.lost)} lost, {len(result.doubled)} applied twice, "
        f"{len(result.two_leases)} items with two live leases, {len(result.damaged)} damages\n"
    )
    for line in (*result.lost, *result.doubled, *result.two_leases, *result.damaged)[:20]:
        sys.stdout.write(f"  {line}\n")
    return result


if __name__ == "__main__":
    main()
