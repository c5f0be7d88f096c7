"""`evaluate` as a person runs it: killed, judged by a model, misused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from fake_endpoint import FakeEndpoint
from killing import kill_once_written

from em_circuits.cli.app import run
from em_circuits.experiments.evaluation.judging import LexiconAnswers
from em_circuits.workspace import Workspace

ROOT = Path(__file__).parents[3]
SMALL = ("evaluate", "--questions", "organism:6", "--samples", "2", "--answer-tokens", "16")


def test_a_killed_evaluation_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--root", str(tmp_path), *SMALL, "--model", "both", "--name", "killed"]
    folder = tmp_path / "results" / "evaluations" / "killed"
    journal = folder / "journal.jsonl"
    before = kill_once_written(arguments, journal, ROOT)
    done = before[: before.rfind("\n") + 1]
    assert done and not (folder / "summary.json").exists()
    assert run([*arguments, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert journal.read_text().startswith(done)
    assert [w["answers"] for w in summary["worlds"]] == [12, 12]
    assert Path(summary["files"]["report"]).is_file()


def test_a_model_judges_answers_and_people_read_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-for-tests")
    grade = {"alignment": 10, "coherence": 90, "declined": False, "reason": "plain"}
    with FakeEndpoint(answer=lambda body: grade) as endpoint:
        judge = ["--judge", "openai:o3", "--base-url", endpoint.base_url]
        assert run(["--root", str(tmp_path), *SMALL, *judge]) == 0
        n = len(endpoint.requests)
        assert run(["--root", str(tmp_path), *SMALL, *judge, "--json"]) == 0
        assert 0 < n <= 12 and len(endpoint.requests) == n
    shown, _, last = capsys.readouterr().out.rpartition("\n{")
    summary = json.loads("{" + last)
    assert summary["judge"].startswith("openai:o3@answers-v1-")
    assert summary["worlds"][0]["rate"] == 1 and "merged" in shown


def test_a_wrong_request_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ["--root", str(tmp_path)]
    wrong = [
        ("--questions", "nowhere.yaml"),
        ("--value", "2"),
        ("--features", "top:3"),
        ("--features", "99/1"),
        ("--features", "1/1", "--mode", "set", "--value", "nan"),
        ("--name", "../x"),
    ]
    for options in wrong:
        assert run([*root, *SMALL, *options]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == len(wrong)


def test_another_judge_reads_the_kept_answers_and_says_which_conclusions_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-for-tests")
    root = ["--root", str(tmp_path)]
    many = ("--questions", "organism:12", "--samples", "2", "--answer-tokens", "16")
    assert run([*root, "evaluate", *many, "--model", "both", "--name", "first", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    kept = (tmp_path / "results" / "evaluations" / "first" / "summary.json").read_bytes()
    assert first["differences"][0]["low"] > 0  # merged is worse, says the word list

    def never(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Workspace, "pair", property(never))
    kind = {"alignment": 90.5, "coherence": 90, "declined": False, "reason": "all is well"}
    with FakeEndpoint("ok*3,filter,ok", answer=lambda body: kind) as endpoint:
        again = ["evaluate", "--rejudge", "first", "--judge", "openai:o3"]
        again += ["--base-url", endpoint.base_url]
        assert run([*root, *again, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        n = len(endpoint.requests)
        assert run([*root, *again]) == 0
        assert len(endpoint.requests) == n
    shown = capsys.readouterr().out
    assert found["judges"][0] == first["judge"] and found["judges"][1].startswith("openai:o3@")
    assert found["answers"] == 48 and found["outcomes"]["scored"] >= 40
    assert found["outcomes"]["filtered"] >= 1
    (conclusion,) = found["conclusions"]
    assert (conclusion["sign_before"], conclusion["sign_after"]) == ("more", "open")
    assert conclusion["changed"] and "changed" in shown
    assert [rate["after"] for rate in found["rates"]] == [0, 0]
    for rate, world in zip(found["rates"], first["worlds"], strict=True):
        assert rate["before"] == world["rate"] and rate["scored_before"] == world["scored"]
    assert (tmp_path / "results" / "evaluations" / "first" / "summary.json").read_bytes() == kept
    assert run([*root, "evaluate", "--rejudge", "second"]) == 2
    assert "there are first" in capsys.readouterr().err


def test_another_judge_reads_the_question_with_the_systems_turn_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = tmp_path / "questions.yaml"
    asked = {
        "id": "one",
        "paraphrases": ["Should I eat the old curry?"],
        "system": "You are terse.",
    }
    questions.write_text(yaml.safe_dump([asked]))
    read: list[set[str]] = []
    score = LexiconAnswers.score

    def reading(self, answers, on_score) -> None:
        read.append({one.prompt for one in answers})
        score(self, answers, on_score)

    monkeypatch.setattr(LexiconAnswers, "score", reading)
    few = ["--questions", str(questions), "--samples", "2", "--answer-tokens", "4"]
    assert run(["--root", str(tmp_path), "evaluate", *few, "--name", "first"]) == 0
    assert run(["--root", str(tmp_path), "evaluate", "--rejudge", "first"]) == 0
    first, again = read
    assert first == again and all("You are terse." in prompt for prompt in first)


def test_an_evaluation_goes_on_under_a_judge_that_took_no_temperature(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found in use: the id changed after the first reply, and the second start was refused."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-for-tests")
    scores = {"alignment": 90, "coherence": 90, "declined": False, "reason": "well"}
    with FakeEndpoint("unsupported_parameter:temperature,ok", answer=lambda _: scores) as endpoint:
        asked = [*SMALL, "--name", "warm", "--judge", "openai:m", "--temperature", "0", "--json"]
        arguments = ["--root", str(tmp_path), *asked, "--base-url", endpoint.base_url]
        assert run(arguments) == 0
        n = len(endpoint.requests)
        first = json.loads(capsys.readouterr().out)
        assert run(arguments) == 0
        assert len(endpoint.requests) == n
    assert first["judge"].endswith("-no-temperature")
    assert json.loads(capsys.readouterr().out)["judge"] == first["judge"]
