"""The label command as a person or a script runs it: two processes, Ctrl-C, going on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from fake_endpoint import FakeEndpoint

from em_circuits.cli.app import run
from em_circuits.engine.events import read_events
from pivotal_tokens.review.service import ReviewService
from pivotal_tokens.store import HUMAN, Store, default_url

N = 40
RUN = ["label", "--generator", "template", "--n", str(N), "--no-graphs", "--json"]


def start(root: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "em_circuits", "--root", str(root), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        # a test run in the background ignores SIGINT, and its children would, too
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_a_reviewer_works_while_another_process_labels_is_interrupted_and_goes_on(
    tmp_path: Path,
) -> None:
    process = start(tmp_path, *[a if a != str(N) else "100000" for a in RUN])
    assert process.stdout is not None
    lines = [json.loads(process.stdout.readline())]
    with Store.open(default_url(tmp_path)) as store:
        service = ReviewService(store, "ada")
        reviewed = []
        while len(reviewed) < 3 and process.poll() is None:
            question = service.next_question()
            if question is None:
                time.sleep(0.05)
                continue
            question = service.label(question, dict.fromkeys(question.lists.token_ids, "safe"))
            service.finish(question)
            reviewed.append(question.prompt.prompt_id)
        assert process.poll() is None  # the labelling run is still at work
        process.send_signal(signal.SIGINT)
        # Not `communicate`: it would miss the lines that `readline` has buffered.
        with process:  # closes both pipes and waits
            lines += map(json.loads, process.stdout)
            assert process.stderr is not None
            said = process.stderr.read()
        assert process.returncode == 130 and "finishing what is in flight" in said
        counts = store.queries.counts()
        assert counts.judgements == sum(counts.verdicts.values()) >= len(lines)
        assert counts.human_verdicts == {"none": 3} or sum(counts.human_verdicts.values()) == 3
        for prompt_id in reviewed:
            pair = next(iter(store.results.pairs()))
            assert not store.results.verdicts(prompt_id, pair)[HUMAN].flagged
    (log,) = (tmp_path / "results" / "events").glob("*.jsonl")
    assert [event["ending"] for event in read_events(log) if event["event"] == "stop"] == [
        "stopped"
    ]
    done = counts.judgements
    more = [a if a != str(N) else str(done + 2) for a in RUN]
    again = start(tmp_path, *more)
    out, said = again.communicate()
    assert again.returncode == 0, said
    assert f"{done} prompts finished before" in said and len(out.splitlines()) == 2
    with Store.open(default_url(tmp_path)) as store:
        assert store.queries.counts().judgements == done + 2


def test_prompts_by_a_model_are_judged_by_a_model_and_a_kill_loses_nothing(
    tmp_path: Path, api_key: str
) -> None:
    """SIGKILL once while a generator and a judge are at work; then the number is reached."""
    n = 10
    with FakeEndpoint(latency_s=0.05) as endpoint:
        command = ["label", "--generator", "openai:fake", "--judge", "openai:fake"]
        command += ["--base-url", endpoint.base_url, "--n", str(n), "--no-graphs", "--json"]
        process = start(tmp_path, *command)
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        process.communicate()
        again = start(tmp_path, *command)
        out, said = again.communicate()
        assert again.returncode == 0, said
    with Store.open(default_url(tmp_path)) as store:
        prompts = store.prompts.all(generator="openai:fake")
        assert len(prompts) >= n and len({p.extra["run"] for p in prompts}) == 1
        (pair,) = store.results.pairs()
        verdicts = [v for p in prompts if (v := store.results.verdicts(p.prompt_id, pair))]
        assert all(list(v) == [first["judge"]] for v in verdicts)  # each one, of one judge
        assert store.queries.counts().judgements == n == len(verdicts)
        assert first["prompt_id"] in {p.prompt_id for p in prompts}
    assert api_key not in out + said


def test_what_a_writer_gave_beyond_the_number_is_used_by_the_next_start(
    tmp_path: Path, api_key: str, capsys
) -> None:
    # three proposals come in a reply here: asked for one prompt, two were paid for and dropped
    with FakeEndpoint() as endpoint:
        command = ["--root", str(tmp_path), "label", "--generator", "openai:fake", "--no-graphs"]
        command += ["--base-url", endpoint.base_url, "--json", "--n"]
        assert run([*command, "1"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 1
        assert run([*command, "3"]) == 0
        said = capsys.readouterr()
        assert len(endpoint.requests) == 1 and len(said.out.splitlines()) == 2
    assert "1 prompts finished before, 2 left" in said.err


def test_generated_prompts_are_reported_as_new_and_extra_ones_counted(
    tmp_path: Path, api_key: str, capsys
) -> None:
    # every prompt a model wrote was told as known, because its round had kept it already
    with FakeEndpoint() as endpoint:
        asked = ["--generator", "openai:fake", "--base-url", endpoint.base_url, "--n", "2"]
        assert run(["--root", str(tmp_path), "prompts", "generate", *asked, "--json"]) == 0
    said = capsys.readouterr()
    assert [json.loads(line)["new"] for line in said.out.splitlines()] == [True, True]
    assert "wrote 1 more than asked for" in said.err


def test_a_run_without_end_that_ends_for_want_of_an_endpoint_has_failed(
    tmp_path: Path, api_key: str, capsys
) -> None:
    # only a spent budget is a good end of --forever; it was 0 whatever ended it
    with FakeEndpoint("404", cycle=True) as endpoint:
        asked = ["--generator", "openai:fake", "--base-url", endpoint.base_url]
        root = ["--root", str(tmp_path)]
        assert run([*root, "label", *asked, "--forever", "--no-graphs"]) == 1
        assert "--base-url" in capsys.readouterr().err
    assert run([*root, "label", "--generator", "seeds", "--forever", "--no-graphs"]) == 1
    assert "no more new prompts after 20" in capsys.readouterr().err
    with FakeEndpoint("prose", cycle=True) as endpoint:
        asked = ["--generator", "openai:fake", "--base-url", endpoint.base_url, "--n", "2"]
        assert run([*root, "prompts", "generate", *asked]) == 1
        assert "no usable answer 5 times" in capsys.readouterr().err


def test_a_failure_is_reported_once_and_whole(tmp_path: Path, api_key: str, capsys) -> None:
    # it was logged, printed cut off, and told again at the end
    with FakeEndpoint("prose", cycle=True) as endpoint:
        command = ["--root", str(tmp_path), "label", "--n", "2", "--no-graphs"]
        command += ["--judge", "openai:fake", "--base-url", endpoint.base_url]
        assert run(command) == 1
        said = capsys.readouterr()
        assert run([*command, "--json"]) == 1
        (first, second) = map(json.loads, capsys.readouterr().out.splitlines())
    told = " ".join((said.out + said.err).split())
    assert told.count("the reply could not be used") == 2  # of either prompt
    assert all(result["error"] in told for result in (first, second))
    assert max(map(len, said.out.splitlines())) <= 79
    assert "2 of 2 prompts failed; em-circuits status PROMPT says why" in said.err


def test_options_that_contradict_each_other_are_refused(tmp_path: Path, capsys) -> None:
    for arguments, said in (
        (["--prompt", "x", "--forever"], "not both"),
        (["--forever", "--n", "3"], "without it"),
        (["--generator", "seeds"], "--n N or --forever"),
        (["--missing", "--n", "3"], "no prompts beside it"),
        (["--generator", "nobody", "--n", "3"], "no generator 'nobody'"),
        (["--generator", "seeds", "--n", "3", "--domain", "kitchen"], "--generator template"),
    ):
        assert run(["--root", str(tmp_path), "label", *arguments]) == 2, arguments
        assert said in capsys.readouterr().err


def test_watching_shows_counts_and_the_last_events_until_interrupted(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    root = ["--root", str(tmp_path)]
    assert run([*root, "label", "--n", "2", "--no-graphs", "--json"]) == 0
    capsys.readouterr()

    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    assert run([*root, "status", "--watch", "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert seen["counts"]["judgements"] == 2
    assert [event["event"] for event in seen["events"]][-1] == "stop"
    assert run([*root, "status", "--watch"]) == 0
    shown = capsys.readouterr().out
    assert "verdicts" in shown and "ending done" in shown
    assert max(map(len, shown.splitlines())) <= 79
    assert run([*root, "status", "--watch", "abc"]) == 2
    assert run([*root, "prompts", "list", "--json"]) == 0
    prompt = json.loads(capsys.readouterr().out.splitlines()[0])
    for arguments in (["--judge", prompt["prompt_id"]], ["--kind", "chat"]):
        assert run([*root, "prompts", "preview", "--json", *arguments]) == 0
        sent = json.loads(capsys.readouterr().out)
        assert sent["messages"][0]["role"] == "system" and sent["tokens"] > 100
    assert run([*root, "prompts", "preview", "--generator", "seeds"]) == 2
