"""Killed twice on the way, a run ends with every verdict once, and the ledger knows every call."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from fake_endpoint import FakeEndpoint

from pivotal_tokens.schema import Prompt
from pivotal_tokens.store import Screened, Store

PROGRAM = Path(__file__).with_name("judging_program.py")
ROOT = Path(__file__).parents[3]
PAIR, PROMPTS, IN_FLIGHT = "pair-1", 50, 10


def start(store: Path, endpoint: FakeEndpoint) -> subprocess.Popen[str]:
    run = [sys.executable, str(PROGRAM), str(store), endpoint.base_url, str(IN_FLIGHT)]
    return subprocess.Popen(
        run, cwd=ROOT, env=None, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def kill_after(process: subprocess.Popen[str], endpoint: FakeEndpoint, requests: int) -> None:
    """SIGKILL, the moment the endpoint has seen so many requests."""
    while len(endpoint.requests) < requests:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.kill()
    process.communicate()


@pytest.mark.usefixtures("api_key")
def test_two_kills_lose_no_verdict_and_no_charge(tmp_path: Path, make_pair, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    path = tmp_path / "store.sqlite"
    lists = make_pair({1: 0.8, 2: 0.1}, {1: 0.2, 2: 0.7}, texts={1: " avoid", 2: " eat"})
    prompts = [Prompt.of(f"case {i}") for i in range(PROMPTS)]
    with FakeEndpoint(latency_s=0.2) as endpoint, Store.open(path, create=True) as store:
        store.results.put_screened(PAIR, [Screened(prompt=p, next_tokens=lists) for p in prompts])
        for seen in (15, 38):
            kill_after(start(path, endpoint), endpoint, seen)
        last = start(path, endpoint)
        out, errors = last.communicate()
        assert last.returncode == 0, errors
        assert out

        asked = Counter(seen.body["messages"][-1]["content"] for seen in endpoint.requests)
        seen_calls, counts = len(endpoint.requests), store.ledger.counts("judge")
        verdicts = [store.results.verdicts(p.prompt_id, PAIR) for p in prompts]
        votes = Counter(vote.prompt_id for vote in store.results.votes(pair=PAIR))
        events = [len(store.labels.events(p.prompt_id)) for p in prompts]

    assert [len(v) for v in verdicts] == [1] * PROMPTS
    assert votes == dict.fromkeys((p.prompt_id for p in prompts), 1)
    assert events == [2] * PROMPTS
    assert len(asked) == PROMPTS and seen_calls <= PROMPTS + 2 * IN_FLIGHT
    assert seen_calls <= counts.calls <= seen_calls + 2 * IN_FLIGHT
    # No row is left open: what was in flight at a kill is marked, and stays charged.
    assert set(counts.by_state) == {"settled", "unknown"}
    assert counts.by_state["settled"] >= PROMPTS and counts.by_state["unknown"] <= 2 * IN_FLIGHT
    assert counts.usd > counts.by_state["unknown"] * 0.08  # o3: 10,000 output tokens at $8
