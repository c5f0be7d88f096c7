"""The ledger against the endpoint's own count: many in flight, three processes, kills.

    QUESTIONS=1500 KILLS=12 python -m pytest tests/pivotal_tokens/llm/test_ledger_processes.py

Never below what the endpoint billed; above by at most what was in flight when a process died, or
came back without a word of what was used.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import servers
from fake_endpoint import FakeEndpoint
from sqlalchemy import select

from pivotal_tokens.store import Store, tables

PROGRAM = Path(__file__).with_name("asking_program.py")
ROOT = Path(__file__).parents[3]
PROCESSES, IN_FLIGHT = 3, 17
QUESTIONS, KILLS = int(os.environ.get("QUESTIONS", "150")), int(os.environ.get("KILLS", "3"))

pytestmark = pytest.mark.usefixtures("api_key")


def start(store: Path, endpoint: FakeEndpoint, share: int, usd: float) -> subprocess.Popen[str]:
    numbers = (IN_FLIGHT, QUESTIONS, share, PROCESSES, usd)
    run = [sys.executable, str(PROGRAM), str(store), endpoint.base_url, *map(str, numbers)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        run, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process: subprocess.Popen[str]) -> Counter[str]:
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return Counter(ast.literal_eval(out))


def thinking_at_length(request: servers.Body, completion: servers.Body) -> tuple[int, Any]:
    """Counts its thinking in the total alone, and now and then fails within a 200."""
    number = int(request["messages"][0]["content"].split()[-1])
    if number % 10 == 3 and time.time() % 1 < 0.5:
        return 200, {"error": {"message": "provider is busy", "code": 429}}
    usage = completion.get("usage")
    if usage:
        completion = completion | {"usage": usage | {"total_tokens": usage["total_tokens"] + 900}}
    return 200, completion


def charges(store: Store) -> list[Any]:
    with store.ledger._reading() as connection:
        return list(connection.execute(select(tables.llm_calls)))


def test_three_processes_and_kills_leave_no_token_uncharged(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    script = "ok*6,429:0.02,500,no_usage,ok*8"
    with (
        FakeEndpoint(script, cycle=True, latency_s=0.15, server=thinking_at_length) as endpoint,
        Store.open(path, create=True) as store,
    ):
        running = [start(path, endpoint, share, 1000) for share in range(PROCESSES)]
        for kill in range(KILLS):
            wanted = (kill + 1) * QUESTIONS // (KILLS + 1)
            while len(endpoint.requests) < wanted:
                time.sleep(0.005)
            victim = running[kill % PROCESSES]
            victim.kill()
            victim.communicate()
            running[kill % PROCESSES] = start(path, endpoint, kill % PROCESSES, 1000)
        outcomes = sum((ended(process) for process in running), Counter[str]())
        while endpoint.in_flight:
            time.sleep(0.01)
        billed, requests = sum(endpoint.billed), len(endpoint.requests)
        most_in_flight = endpoint.most_in_flight
        store.ledger.give_up_dead_calls()
        counts, rows = store.ledger.counts(), charges(store)
    assert set(outcomes) <= {"Ok"}, outcomes
    by_state = counts.by_state
    assert "reserved" not in by_state
    unknown = sum(row.tokens for row in rows if row.state == "unknown")
    assert billed <= counts.tokens <= billed + unknown
    silent = sum(row.status == "200, no usage" for row in rows)
    assert by_state["unknown"] <= silent + KILLS * IN_FLIGHT
    assert requests <= counts.calls <= requests + KILLS * IN_FLIGHT
    settled = sum(row.tokens for row in rows if row.state == "settled")
    assert settled <= billed
    print(
        json.dumps(
            {"billed": billed, "charged": counts.tokens, "unknown": unknown, "calls": counts.calls}
            | {"requests": requests, "in flight": most_in_flight, "states": by_state}
        )
    )


def test_three_processes_hold_one_budget_together(tmp_path: Path) -> None:
    """A process that finds it taken by others' calls waits for them, and none goes over."""
    path, usd = tmp_path / "store.sqlite", 0.05
    worst = 0.016  # gpt-4o: 1,500 output tokens at $10 a million, and the question
    with (
        FakeEndpoint(latency_s=0.1, server=thinking_at_length) as endpoint,
        Store.open(path, create=True) as store,
    ):
        running = [start(path, endpoint, share, usd) for share in range(PROCESSES)]
        outcomes = [ended(process) for process in running]
        charged = store.ledger.counts().usd
    assert usd - worst <= charged <= usd
    assert all(outcome["exhausted"] for outcome in outcomes)
    assert sum(outcome["Ok"] for outcome in outcomes) > 3
