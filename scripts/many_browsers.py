"""Many browsers that review one queue through the real server, on a machine as busy as asked.

Each has its own signed link, takes items, labels every token and finishes them, as a person with
quick keys would; while others load pages. No answer is 500, and none takes longer than five
seconds, is what is asked of it.

python scripts/many_browsers.py --browsers 20 --seconds 60 --busy 4
"""

from __future__ import annotations

import contextlib
import multiprocessing
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from browsing import running
from measure import Row, benchmark
from rooms import Room, enter, furnish

from em_circuits.cli.options import Options
from em_circuits.viewer import Sessions

MOST_MS = 5000.0
PAGES = ("/", "/prompts", "/review", "/fragments/overview")


class Plan(Options):
    """How many, for how long."""

    browsers: int = 20
    """Browsers at once."""
    seconds: float = 60.0
    """How long they work."""
    prompts: int = 400
    """In the queue."""
    busy: int = 4
    """Further processes that keep the processor busy meanwhile."""


class Crowd:
    """What the requests of all browsers came to."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.slowest = 0.0
        """Seconds."""
        self.finished = 0
        self._lock = threading.Lock()

    def ask(self, client: httpx.Client, path: str, body: dict[str, Any] | None = None) -> Any:
        """One request, timed; its JSON, or None."""
        began = time.perf_counter()
        answer = client.get(path) if body is None else client.post(path, json=body)
        seconds = time.perf_counter() - began
        with self._lock:
            self.statuses[answer.status_code] += 1
            self.slowest = max(self.slowest, seconds)
        good = answer.status_code == 200 and body is not None
        return answer.json() if good else None

    def review(self, client: httpx.Client, until: float) -> None:
        """Answer items until the time is over or nothing waits."""
        state = self.ask(client, "/api/review", {"do": "next"})
        pages = 0
        while time.monotonic() < until:
            question = state and state["question"]
            if not question:
                self.ask(client, PAGES[pages % len(PAGES)])
                pages += 1
                state = self.ask(client, "/api/review", {"do": "next"})
                continue
            item = question["item"]
            for token in question["missing"][:2]:
                labels = {str(token): "evil"}
                self.ask(client, "/api/review", {"do": "label", "labels": labels, "item": item})
            self.ask(client, "/api/review", {"do": "finish", "rest": "safe", "item": item})
            with self._lock:
                self.finished += 1
            self.ask(client, PAGES[pages % len(PAGES)])
            pages += 1
            state = self.ask(client, "/api/review", {"do": "next"})


def crowd(root: Path, *, browsers: int, seconds: float) -> Crowd:
    """Let so many browsers review the queue of a furnished root."""
    names = [f"reviewer {number}" for number in range(browsers)]
    found = Crowd()
    with enter(root) as room:
        sessions = Sessions("", reviewers=names)
        shared = Room(room.root, room.work, sessions, room.prompts, room.graphs)
        with running(shared) as address, contextlib.ExitStack() as opened:
            clients = []
            for name in names:
                origin = {"Origin": address.rstrip("/")}
                client = httpx.Client(base_url=address, headers=origin, timeout=120)
                clients.append(opened.enter_context(client))
                entered = client.get("/", params={"token": sessions.link_of(name)})
                assert entered.status_code == 303
            until = time.monotonic() + seconds
            threads = [
                threading.Thread(target=found.review, args=(client, until)) for client in clients
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    return found


def _spin() -> None:
    while True:
        sum(range(10_000))


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Processes that do nothing but take the processor."""
    context = multiprocessing.get_context("spawn")
    several = [context.Process(target=_spin, daemon=True) for _ in range(processes)]
    for process in several:
        process.start()
    try:
        yield
    finally:
        for process in several:
            process.kill()
            process.join()


def measure(plan: Plan) -> list[Row]:
    """Fill a queue, and let them work on it."""
    with tempfile.TemporaryDirectory() as directory, busy(plan.busy):
        root = Path(directory)
        furnish(root, n_graphs=0, n_more=plan.prompts)
        found = crowd(root, browsers=plan.browsers, seconds=plan.seconds)
    failed = sum(n for status, n in found.statuses.items() if status >= 500)
    return [
        Row("requests", None, found.statuses.total(), ""),
        Row("items finished", None, found.finished, "", value_at_least=1),
        Row("answers of 500 or more", None, failed, "", at_most=0),
        Row("slowest answer", None, 1e3 * found.slowest, "ms", at_most=MOST_MS),
    ]


if __name__ == "__main__":
    benchmark(Plan, measure, __doc__)
