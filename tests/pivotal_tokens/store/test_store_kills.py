"""Processes killed or stopped at any moment: the short form of `make test-kills`."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from kills import _SETUP, kill_at_random

import pivotal_tokens
from pivotal_tokens.errors import LeaseLost
from pivotal_tokens.review import ReviewService
from pivotal_tokens.schema import Judgement, NextTokenPair, Prompt, TokenLabel

ZOMBIE = (
    _SETUP
    + """
with Store.open(sys.argv[1]) as store:
    service = ReviewService(store, "ada", lease_seconds=0.5)
    question = service.next_question()
    print("leased", flush=True)
    sys.stdin.readline()
    try:
        service.finish(question, rest="evil")
        print("written", flush=True)
    except LeaseLost as error:
        print("fenced", flush=True)
"""
).replace("import sys\n", "import sys\nfrom pivotal_tokens.errors import LeaseLost\n", 1)


def test_killed_at_random_moments_nothing_acknowledged_is_lost_or_doubled(
    store, store_url, tmp_path
):
    store.close()
    result = kill_at_random(store_url, tmp_path, 6, seed=3)
    assert result.clean, result


def test_a_reviewer_stopped_past_the_lease_and_woken_is_fenced(store, store_url, pair):
    prompt = Prompt.of("slept over")
    store.prompts.add(prompt)
    store.results.put_next_tokens(prompt.prompt_id, "p", pair.base, pair.merged)
    labels = (TokenLabel(token_id=2, label="evil"),)
    store.results.put_judgement(
        "p", Judgement(prompt_id=prompt.prompt_id, judge="j", labels=labels)
    )
    store.assignments.add(prompt.prompt_id, "p", "flagged")
    zombie = subprocess.Popen(
        [sys.executable, "-c", ZOMBIE, store_url],
        env=os.environ | {"PYTHONPATH": str(Path(pivotal_tokens.__file__).parents[1])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert zombie.stdout.readline() == "leased\n"
        zombie.send_signal(signal.SIGSTOP)
        store._clock = store._clock.__class__()  # at work by another clock: long after the lease
        store._clock.time = store._clock.time.replace(year=2100)
        bob = ReviewService(store, "bob")
        question = bob.next_question()
        assert question.prompt == prompt
        zombie.send_signal(signal.SIGCONT)
        out, _ = zombie.communicate("go\n")
        assert out == "fenced\n"
        bob.finish(question, rest="safe")
    finally:
        zombie.kill()
        zombie.wait()
    assert {
        e.author for e in store.labels.events(prompt.prompt_id) if e.author_kind == "human"
    } == {"bob"}
    assert store.labels.of(prompt.prompt_id).by_token == {1: "safe", 2: "safe", 3: "safe"}
    with pytest.raises(LeaseLost):
        bob.finish(question, rest="safe")
    assert isinstance(store.results.next_tokens(prompt.prompt_id, "p"), NextTokenPair)
